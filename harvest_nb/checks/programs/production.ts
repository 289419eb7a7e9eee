// The same call as production.mjs, in TypeScript as `code_run` takes it: compiled to CommonJS, so no top-level await.
import { readFileSync } from "node:fs";
import { query, type Options } from "@anthropic-ai/claude-agent-sdk";

interface Call {
  prompt: string;
  rules: string[];
  options: Options;
}

async function main(path: string): Promise<void> {
  const call: Call = JSON.parse(readFileSync(path, "utf8"));
  const append = call.rules.map((rule: string): string => readFileSync(rule, "utf8")).join("\n\n");
  const options: Options = { ...call.options, systemPrompt: { type: "preset", preset: "claude_code", append } };
  for await (const message of query({ prompt: call.prompt, options })) {
    process.stdout.write(JSON.stringify(message) + "\n");
  }
}

main(process.argv[process.argv.length - 1]).catch((error: unknown) => {
  console.error(error);
  process.exitCode = 1;
});
