// The one way to the server: the lens, the runs, and the texts that a model writes.
//
// Answers of the lens are kept, so going back costs nothing. In the static page there is no server: the answers that
// were written into it are found here instead, under the same names.

import { embedded, store, stored } from "octavo/dom";

export const offline = embedded !== null;

const KEPT = 80; // answers
const AT_ONCE = 3; // requests to the lens; the server answers two at a time, and lets few wait

// What a person should read. `hint` says what to do, where that is known.
export class ApiError extends Error {
  constructor(message, hint = "", status = 0) {
    super(message);
    Object.assign(this, { hint, status });
  }
}

// What the page says of it itself, in the reader's language.
export const refusal = (key, values) => Object.assign(new ApiError(""), { says: [key, values] });

// True where a request was only overtaken by a newer one: nothing to show.
export const isAborted = (error) => error?.name === "AbortError";
export const overtaken = () => new DOMException("a newer one counts", "AbortError");

let key = stored("octavo-key", "sessionStorage");
let askKey = async (wrong) => null;
let chosen = { model: null, step: null };

function setKey(value) {
  key = value;
  store("octavo-key", value, "sessionStorage"); // for this window and session only
}

// `ask(wrong)` gives a key, or null where the reader gives none; `wrong`: one was refused. It is called once for all
// requests that wait.
export function onKey(ask) {
  let asking = null;
  askKey = (wrong) => (asking ??= ask(wrong).finally(() => (asking = null)));
}

// The model and step that `lens` and `complete` speak of, unless they are told another.
export function choose(model, step) {
  chosen = { model, step };
}

// ---- What is there

// {models: [{id, model: {n_layer, …}, tokenizer, steps, step, run}], views}
export const models = async () => (offline ? embedded.models : (await request("/lens")).json());

// [{name, settings, tokens_per_step, last_step, running, parameters}]
export const runs = async () => (offline ? [] : (await (await request("/runs")).json()).runs);

// {lines, next, restarted}: lines of "metrics" or "samples" from line `after` on.
export const lines = async (run, kind, after = 0, { signal } = {}) =>
  (await request(`/runs/${encodeURIComponent(run)}/${kind}?after=${after}`, { signal })).json();

// ---- The lens

const answers = new Map();
const running = new Map(); // the name of what is asked for -> how to give it up

// A view as it comes from the server: await lens("shapes", {text, layer: 1}).
//   model, step in the options stand for the ones that are chosen
//   instead: "name"   gives up what was asked for under that name before: its promise fails, see `isAborted`
export async function lens(view, options = {}, { instead, signal } = {}) {
  if (offline) return carried(view, options);
  const body = { ...chosen, ...options };
  const wanted = view + JSON.stringify(body, Object.keys(body).sort());
  const control = new AbortController();
  if (instead) {
    running.get(instead)?.abort();
    running.set(instead, control);
  }
  if (answers.has(wanted)) {
    const found = answers.get(wanted);
    answers.delete(wanted);
    answers.set(wanted, found); // the last used is the last to go
    return found;
  }
  signal?.addEventListener("abort", () => control.abort());
  const found = await inTurn(async () => {
    const answer = await request(`/lens/${view}`, {
      method: "POST",
      body: JSON.stringify(body),
      signal: control.signal,
    });
    return answer.json();
  }, control.signal);
  answers.set(wanted, found);
  if (answers.size > KEPT) answers.delete(answers.keys().next().value);
  return found;
}

// What of a text a model's tokenizer knows. It is asked with a character behind it that the model has written, so that
// nothing is refused where that is nothing. Only where characters are the tokens are there any that it doesn't know.
export async function knownOf(text, { id, tokenizer }) {
  if (!text || tokenizer !== "char") return text;
  const [sign] = await ownCharacters(id);
  const read = await lens("tokens", { model: id, step: null, text: text + sign, unknown: "skip" });
  return read.text.slice(0, -sign.length);
}

const ownCharacters = async (model) => [...new Set((await lens("tokens", { model, step: null, text: null })).text)];

// Why a model can't read a text, as a sentence's [key, values]; null where it can read any of it.
export async function unreadable(text, model) {
  if (!text) return ["play.none"];
  if (await knownOf(text, model)) return null;
  const own = await ownCharacters(model.id),
    letters = own.filter((each) => /\p{L}/u.test(each));
  const some = (characters) => characters.slice(0, 12).join(" ");
  return ["text.unknown", { characters: some([...new Set(text)]), known: some(letters.length ? letters : own) }];
}

// Raises that, so that nothing is asked of a text that would be refused.
export async function mustRead(text, model) {
  const why = await unreadable(text, model);
  if (why) throw refusal(...why);
}

// Of the static page: the options of the answers to a view that it carries. Null where a server answers anything.
export const available = (view) =>
  offline ? embedded.answers.filter((each) => each.view === view).map((each) => each.options) : null;

function carried(view, options) {
  const asked = Object.entries(options).filter(([name]) => !["model", "step", "text"].includes(name));
  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
  const found = embedded.answers.find(
    (each) =>
      each.view === view && asked.every(([name, value]) => !(name in each.options) || same(each.options[name], value)),
  );
  if (!found) throw new ApiError("", "", 404);
  return found.answer;
}

let places = AT_ONCE;
const waiting = [];

async function inTurn(ask, signal) {
  if (places) places--;
  else await new Promise((resolve) => waiting.push(resolve));
  try {
    signal.throwIfAborted();
    return await ask();
  } finally {
    if (waiting.length) waiting.shift()();
    else places++;
  }
}

// ---- Writing

// The chunks of a completion as they come: for await (const chunk of complete({prompt, max_tokens: 40}, {signal})).
export async function* complete(body, { signal } = {}) {
  const answer = await request("/v1/completions", {
    method: "POST",
    body: JSON.stringify({ model: chosen.model, ...body, stream: true }),
    signal,
  });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let unread = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      unread += value;
      const events = unread.split("\n\n");
      unread = events.pop();
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

// ---- Asking

export async function request(path, { method = "GET", body, signal } = {}) {
  for (let again = 0; ; again++) {
    const headers = {
      ...(body && { "content-type": "application/json" }),
      ...(key && { authorization: `Bearer ${key}` }),
    };
    let answer;
    try {
      answer = await fetch(path, { method, body, headers, signal, cache: "no-store" });
    } catch (error) {
      if (isAborted(error)) throw error;
      throw new ApiError("", "", -1); // nobody answers
    }
    if (answer.ok) return answer;
    if (answer.status === 401) {
      const given = await askKey(Boolean(headers.authorization));
      if (given === null) throw new ApiError("", "", 401);
      setKey(given);
    } else if (answer.status === 429 && again < 5) {
      await new Promise((resolve) => setTimeout(resolve, 300 * (again + 1)));
      signal?.throwIfAborted();
    } else {
      const { error } = await answer.json().catch(() => ({ error: null }));
      throw new ApiError(error?.message ?? answer.statusText, error?.hint ?? "", answer.status);
    }
  }
}
