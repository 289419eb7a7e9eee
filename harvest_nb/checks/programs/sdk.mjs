// Imports the package named in the first argument from the working directory and prints what it found as JSON.
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const name = process.argv[2];
const sdk = await import(name);
const resolved = fileURLToPath(import.meta.resolve(name));

// The package's exports may hide its package.json from import, so it is read from the nearest folder above.
let folder = dirname(resolved);
while (!existsSync(join(folder, "package.json")) && folder !== dirname(folder)) folder = dirname(folder);
const { version } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));

process.stdout.write(JSON.stringify({ query: typeof sdk.query, version, resolved }));
// The SDK may hold handles open; there is nothing to wait for.
process.exit(0);
