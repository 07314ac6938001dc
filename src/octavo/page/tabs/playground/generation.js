// Generates tokens and decodes them, for texts that may be longer than the model's context.

import { fetchView, streamCompletion } from "octavo/api";
import { TokenDistribution } from "octavo/sampling";
import { branchTokens, nextWindowStart } from "octavo/tabs/playground/branches";

// Yields {ids, text, windowStart} as the model generates at the end of a branch, window by window. The caller appends
// the ids to the branch. While `isServedStep()` is true, the server generates; for another step, the logits of each
// position are fetched and sampled here.
export async function* generateTokens(branch, maxTokens, blockSize, { isServedStep, controls, signal }) {
  for (let left = maxTokens; left > 0;) {
    const tokens = branchTokens(branch);
    const windowStart = nextWindowStart(tokens, blockSize);
    const prompt = tokens.slice(windowStart).map((token) => token.id);
    if (!isServedStep()) {
      yield { ...(await sampleToken(prompt, controls.settings, signal)), windowStart };
      left--;
      continue;
    }
    const room = Math.min(left, blockSize - prompt.length);
    const request = { prompt, max_tokens: room, return_token_ids: true, ...controls.requestOptions };
    let count = 0;
    let finishReason = null;
    for await (const { choices } of streamCompletion(request, { signal })) {
      if (!choices[0]) continue;
      const { token_ids, text, finish_reason } = choices[0];
      const ids = token_ids ?? [];
      count += ids.length;
      finishReason = finish_reason ?? finishReason;
      if (ids.length || text) yield { ids, text, windowStart };
    }
    left -= count;
    if (finishReason === "stop" || !count) return;
  }
}

// Samples one token after `ids`. The token's `text`, shown until the branch is decoded, is the token's label, with the
// symbols ␣ and ⏎ replaced by the whitespace that they mark.
async function sampleToken(ids, settings, signal) {
  const { logits, vocabulary } = await fetchView("next_token", { text: ids }, { signal });
  const id = new TokenDistribution(logits).sample(settings, Math.random());
  const text = (vocabulary[id] ?? "").replace(/[␣⏎]/g, (symbol) => (symbol === "␣" ? " " : "\n"));
  return { ids: [id], text };
}

// The tokens and groups of ids, as the view `tokens` answers them. The server rejects more than `blockSize` ids in one
// request, so they are decoded in blocks; a character that is cut at a block's end is decoded with the next block.
export async function decodeTokens(ids, blockSize) {
  const decoded = { tokens: [], groups: [] };
  for (let first = 0; first < ids.length; first = decoded.tokens.length) {
    const block = ids.slice(first, first + blockSize);
    const { tokens, groups } = await fetchView("tokens", { text: block });
    const isLast = first + block.length >= ids.length;
    const complete = isLast || groups.length === 1 ? groups : groups.slice(0, -1); // the last one may be cut
    const end = complete.at(-1);
    decoded.tokens.push(...tokens.slice(0, end.first + end.count));
    decoded.groups.push(...complete.map((group) => ({ ...group, first: first + group.first })));
  }
  return decoded;
}
