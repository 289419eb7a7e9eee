// The executor's own call, with the path of the call as JSON as its last argument; prints each message as one line
// of JSON. The prompt comes from the file, as data; it is never part of a program.
import { readFileSync } from "node:fs";
import { query } from "@anthropic-ai/claude-agent-sdk";

const call = JSON.parse(readFileSync(process.argv.at(-1), "utf8"));
const append = call.rules.map((path) => readFileSync(path, "utf8")).join("\n\n");
const options = { ...call.options, systemPrompt: { type: "preset", preset: "claude_code", append } };
for await (const message of query({ prompt: call.prompt, options })) {
  process.stdout.write(JSON.stringify(message) + "\n");
}
