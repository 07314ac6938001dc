// All requests to the server: views of the lens, runs, and completions.
//
// Answers of the lens are cached, so going back costs nothing. A page exported with `octavo inspect --html`
// has no server: its views are those that were written into it.

import { embedded } from "octavo/embedded";
import { readStorage, writeStorage } from "octavo/storage";
import { apiUrl } from "octavo/urls";

export const offline = embedded !== null;

const MAX_CACHED_ANSWERS = 80;
const MAX_LENS_REQUESTS = 3; // at once; the server answers two at a time, and its queue is short
const MAX_RETRIES = 5; // while the server is busy

// ---- Errors

// An error that the server reports: an English message, a hint on what to do, and the HTTP status.
export class ApiError extends Error {
  constructor(message, hint = "", status = 0) {
    super(message);
    Object.assign(this, { hint, status });
  }
}

// An error that the page itself reports, by a sentence in the user's language.
export const pageError = (key, values) => Object.assign(new ApiError(""), { sentence: [key, values] });

// The error of a request that a newer one replaced: there is nothing to show.
export const replacedError = () => new DOMException("a newer request replaced this one", "AbortError");
export const isAbortError = (error) => error?.name === "AbortError";

// ---- The key and the model

let key = readStorage("octavo-key", "sessionStorage");
let askForKey = async () => null;
let selected = { model: null, step: null };

// `prompt(isWrong)` returns a key, or null if the user gives none; `isWrong`: the last key was rejected. It is called
// once for all requests that wait for a key.
export function setKeyPrompt(prompt) {
  let answer = null;
  askForKey = (isWrong) => (answer ??= prompt(isWrong).finally(() => (answer = null)));
}

// Selects the model and step that `fetchView` and `streamCompletion` use by default.
export function selectModel(model, step) {
  selected = { model, step };
}

// ---- Models and runs

// {models: [{id, model: {n_layer, …}, tokenizer, dropout, wte_init, wpe_init, steps, step, run, has_chat_template}],
// views}. `wte_init` and `wpe_init` name how the embeddings were initialized; null if the model was imported.
export const fetchModels = async () => (offline ? embedded.models : (await request("lens")).json());

// [{name, settings, tokens_per_step, last_step, running, parameters}]
export const fetchRuns = async () => (offline ? [] : (await (await request("runs")).json()).runs);

// {lines, next, restarted} of a run's "metrics" or "samples". The caller already has the first `after` lines:
//   lines       the lines after those
//   next        the `after` of the next request
//   restarted   whether the file now has fewer lines, because training started again: then `lines` begins at the first
export const fetchLines = async (run, kind, after = 0, { signal } = {}) =>
  (await request(`runs/${encodeURIComponent(run)}/${kind}?after=${after}`, { signal })).json();

// Texts to begin with, from the validation split of a model's run; none if the server doesn't have its text.
export async function fetchExamples(model) {
  if (offline) return [];
  const answer = await request(`lens/examples?model=${encodeURIComponent(model)}`).catch(() => null);
  return answer ? (await answer.json()).examples : [];
}

// The page as one file with the views of a text (octavo inspect --html), as a Blob.
export const fetchStandalonePage = async (options) =>
  (await request("lens/html", { method: "POST", body: JSON.stringify({ ...selected, ...options }) })).blob();

// ---- Views of the lens

const answers = new Map(); // view and options -> answer; an LRU cache: the most recently used is last
const replaceable = new Map(); // name -> AbortController of the last request of that name

// A view as the server answers it: await fetchView("shapes", {text, layer: 1}).
//   options.model, options.step   override the selected ones
//   replaces: "name"              aborts the request that was made under that name before
export async function fetchView(view, options = {}, { replaces, signal } = {}) {
  if (offline) return findExportedAnswer(view, options);
  signal?.throwIfAborted(); // addEventListener doesn't fire for a signal that is already aborted
  const body = { ...selected, ...options };
  const cacheKey = view + JSON.stringify(body, Object.keys(body).sort());
  const controller = new AbortController();
  if (replaces) {
    replaceable.get(replaces)?.abort();
    replaceable.set(replaces, controller);
  }
  if (answers.has(cacheKey)) {
    const answer = answers.get(cacheKey);
    answers.delete(cacheKey);
    answers.set(cacheKey, answer); // moves it to the end: the first is the least recently used
    return answer;
  }
  signal?.addEventListener("abort", () => controller.abort());
  const answer = await limitConcurrency(async () => {
    const response = await request(`lens/${view}`, {
      method: "POST",
      body: JSON.stringify(body),
      signal: controller.signal,
    });
    return response.json();
  }, controller.signal);
  answers.set(cacheKey, answer);
  if (answers.size > MAX_CACHED_ANSWERS) answers.delete(answers.keys().next().value);
  return answer;
}

// Forgets all answers, when the server has loaded newer checkpoints.
export const forgetAnswers = () => answers.clear();

let freePermits = MAX_LENS_REQUESTS;
const waiting = [];

// A semaphore: sends a request when fewer than MAX_LENS_REQUESTS are active, first come, first served.
async function limitConcurrency(send, signal) {
  if (freePermits) freePermits--;
  else await new Promise((resolve) => waiting.push(resolve));
  try {
    signal.throwIfAborted();
    return await send();
  } finally {
    if (waiting.length) waiting.shift()();
    else freePermits++;
  }
}

// The option sets for which an exported page can answer `view`; null on a served page, which can answer any.
export const exportedOptions = (view) =>
  offline ? embedded.answers.filter((answer) => answer.view === view).map((answer) => answer.options) : null;

function findExportedAnswer(view, options) {
  const wanted = Object.entries(options).filter(([name]) => !["model", "step", "text"].includes(name));
  const isSame = (a, b) => JSON.stringify(a) === JSON.stringify(b);
  const match = embedded.answers.find(
    (answer) =>
      answer.view === view &&
      wanted.every(([name, value]) => !(name in answer.options) || isSame(answer.options[name], value)),
  );
  if (!match) throw pageError("error.offline");
  return match.answer;
}

// ---- Texts and words that a tokenizer can encode: it must know one character of a text, but all characters of a word

// A word may have this many tokens; octavo.lens has the same limit.
export const MAX_WORD_TOKENS = 16;

// A text without the characters that a model's tokenizer doesn't know; only a character tokenizer has unknown ones. The
// request appends a known character, because the server rejects a text with no known character at all.
export async function keepKnownCharacters(text, { id, tokenizer }) {
  if (!text || tokenizer !== "char") return text;
  const [character] = await generatedCharacters(id);
  const answer = await fetchView("tokens", { model: id, step: null, text: text + character, unknown: "skip" });
  return answer.text.slice(0, -character.length);
}

// Some characters that the tokenizer knows: those of a text that the model generates without a prompt (text: null).
const generatedCharacters = async (model) => [
  ...new Set((await fetchView("tokens", { model, step: null, text: null })).text),
];

// Why the tokenizer can't encode a text, as the [key, values] of a sentence; null if it knows at least one character.
export async function findTokenizationProblem(text, model) {
  if (!text) return ["error.no_text"];
  if (await keepKnownCharacters(text, model)) return null;
  const known = await generatedCharacters(model.id);
  const letters = known.filter((character) => /\p{L}/u.test(character));
  const joinFirst = (items) => items.slice(0, 12).join(" ");
  const characters = joinFirst([...new Set(text)]);
  return ["text.unknown", { characters, known: joinFirst(letters.length ? letters : known) }];
}

// Throws if the tokenizer knows no character of a text.
export async function requireTokenizable(text, model) {
  const problem = await findTokenizationProblem(text, model);
  if (problem) throw pageError(...problem);
}

// The tokens of a word as the lens tokenizes it: with a space before it if that makes it one token. Null if the
// tokenizer doesn't know all of its characters.
export async function tokenizeWord(model, word) {
  if (!word || (await keepKnownCharacters(word, model)) !== word) return null;
  const tokenize = async (text) =>
    (await fetchView("tokens", { model: model.id, step: null, text, unknown: "skip" })).tokens;
  const tokens = await tokenize(word);
  if (tokens.length === 1 || !["bpe", "gpt2"].includes(model.tokenizer)) return tokens;
  const spaced = await tokenize(` ${word}`);
  return spaced.length === 1 ? spaced : tokens;
}

// The same, but throws an error for the user if the tokenizer doesn't know all characters of the word, or the word has
// too many tokens.
export async function requireWord(model, word, maxTokens = MAX_WORD_TOKENS) {
  const tokens = await tokenizeWord(model, word);
  if (!tokens || tokens.length > maxTokens) throw pageError("error.word");
  return tokens;
}

// ---- Generation

// The chunks of a completion, or of the answer to a conversation, as they arrive:
//   for await (const chunk of streamCompletion({prompt, max_tokens: 40}, {signal}))
//   for await (const chunk of streamChat({messages}, {signal}))
export const streamCompletion = (body, options) => streamChunks("v1/completions", body, options);
export const streamChat = (body, options) => streamChunks("v1/chat/completions", body, options);

async function* streamChunks(path, body, { signal } = {}) {
  const response = await request(path, {
    method: "POST",
    body: JSON.stringify({ model: selected.model, ...body, stream: true }),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      buffer += value;
      const events = buffer.split("\n\n");
      buffer = events.pop();
      for (const event of events) {
        const data = event.replace(/^data: ?/, "").trim();
        if (data === "[DONE]") return;
        if (!data || event.startsWith(":")) continue;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ApiError(chunk.error.message, chunk.error.hint);
        yield chunk;
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

// ---- Requests

async function request(path, { method = "GET", body, signal } = {}) {
  for (let retries = 0; ; retries++) {
    const headers = {
      ...(body && { "content-type": "application/json" }),
      ...(key && { authorization: `Bearer ${key}` }),
    };
    let response;
    try {
      response = await fetch(apiUrl(path), { method, body, headers, signal, cache: "no-store" });
    } catch (error) {
      if (isAbortError(error)) throw error;
      throw pageError("error.unreachable");
    }
    if (response.ok) return response;
    if (response.status === 401) await renewKey(Boolean(headers.authorization));
    else if (response.status === 429 && retries < MAX_RETRIES) {
      await new Promise((resolve) => setTimeout(resolve, 300 * (retries + 1)));
      signal?.throwIfAborted();
    } else if (response.status === 429) throw pageError("error.busy");
    else {
      const { error } = await response.json().catch(() => ({ error: null }));
      throw new ApiError(error?.message ?? response.statusText, error?.hint ?? "", response.status);
    }
  }
}

async function renewKey(isWrong) {
  const answer = await askForKey(isWrong);
  if (answer === null) throw pageError("error.key");
  key = answer;
  writeStorage("octavo-key", key, "sessionStorage"); // for this window and session only
}
