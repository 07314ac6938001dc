// OpenAI's package for JavaScript in Node.js: a completion, a chat, their streams, and the exception for an unknown model.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const { OCTAVO_ANSWER, OCTAVO_FOLDER, OCTAVO_KEY, OCTAVO_MAX_TOKENS, OCTAVO_MODEL, OCTAVO_PROMPT, OCTAVO_TEXT, OCTAVO_URL } = process.env;
const require = createRequire(join(OCTAVO_FOLDER, "package.json"));
const { default: OpenAI, NotFoundError } = await import(pathToFileURL(require.resolve("openai")));
const client = new OpenAI({ baseURL: OCTAVO_URL, apiKey: OCTAVO_KEY, maxRetries: 0 });
const options = { model: OCTAVO_MODEL, prompt: OCTAVO_PROMPT, max_tokens: Number(OCTAVO_MAX_TOKENS), temperature: 0 };
const completion = await client.completions.create(options);
assert.equal(completion.choices[0].text, OCTAVO_TEXT);
let text = "";
for await (const chunk of await client.completions.create({ ...options, stream: true })) text += chunk.choices[0].text;
assert.equal(text, OCTAVO_TEXT);
const messages = [{ role: "user", content: OCTAVO_PROMPT }];
const chat = { model: OCTAVO_MODEL, messages, max_tokens: Number(OCTAVO_MAX_TOKENS), temperature: 0 };
assert.equal((await client.chat.completions.create(chat)).choices[0].message.content, OCTAVO_ANSWER);
let answer = "";
for await (const chunk of await client.chat.completions.create({ ...chat, stream: true }))
  answer += chunk.choices[0].delta.content ?? "";
assert.equal(answer, OCTAVO_ANSWER);
await assert.rejects(client.completions.create({ ...options, model: "gpt-4" }), NotFoundError);
console.log(JSON.parse(readFileSync(join(OCTAVO_FOLDER, "node_modules", "openai", "package.json"))).version);
