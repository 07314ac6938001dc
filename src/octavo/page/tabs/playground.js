// Playground: the model writes, and every token that it wrote can be asked what else could have stood there. Choosing
// another keeps the ids before it and grows a branch; `octavo/branches` keeps them all.

import { complete, isAborted, knownOf, lens, mustRead } from "octavo/api";
import { Outline, path, Tree, windowStart } from "octavo/tabs/playground/branches";
import { Layers, Parts } from "octavo/tabs/playground/logit_lens";
import { leftOut, signBreak, stacked } from "octavo/controls";
import { Odds } from "octavo/sampling";
import { Bars, Bend } from "octavo/tabs/playground/next_token";
import { Surprisal } from "octavo/tabs/playground/surprisal";
import { el, field, say, t, tokenSpans } from "octavo/dom";

const LONGEST = 2000; // tokens that are written at once

export function mount(panel, app) {
  let tree = new Tree();
  let shown = null; // {branch, tokens, reading: the answer of the view `tokens`}
  let place = null; // the one whose odds are seen: {at, end, ids, came, step, next}
  let model = null;
  let writing = null; // what stops it
  let showing = 0; // times that a branch was to be shown

  // ---- What is seen

  const prompt = el("textarea", { id: "prompt", rows: 2, dir: "auto", spellcheck: "false", maxlength: 20000 });
  const length = el("input", { id: "length", type: "number", min: 1, max: LONGEST, value: 100 });
  const write = el("button", { class: "main", type: "submit", say: "play.write" });
  const stop = el("button", { type: "button", say: "words.stop", onclick: () => writing?.abort() });
  const onward = el("button", { type: "button", say: "play.on", onclick: () => app.trying(panel, goOn) });
  const status = el("p", { class: "quiet" }); // said aloud once it ends, not with every token
  const skipped = el("p", { class: "quiet", hidden: true });
  const elsewhere = el("p", { class: "caveat" });
  const text = el("div", { class: "page" });
  const hint = el("p", { class: "quiet" });
  const pieces = el("p", { class: "pieces" });
  const outline = new Outline((branch) => !writing && app.trying(panel, () => show(branch)));
  const treeHint = el("p", { class: "quiet" });
  const bend = new Bend(() => bars.draw());
  const idle = el("p", { class: "quiet", say: "place.idle" });
  const bars = new Bars(bend, (token) => app.trying(panel, () => choose(token)));
  const layers = new Layers(),
    parts = new Parts(),
    surprisal = new Surprisal(app);
  const form = el(
    "form",
    {
      class: "card",
      onsubmit: (event) => {
        event.preventDefault();
        app.trying(panel, begin);
      },
    },
    stacked(prompt, "play.prompt"),
    el("div", { class: "row" }, write, stop, onward, field(length, "play.length")),
    elsewhere,
    skipped,
    status,
  );
  panel.append(
    el("p", { class: "lead", say: "play.lead" }),
    el(
      "div",
      { class: "desk" },
      form,
      el("div", { class: "card" }, el("h2", { say: "play.text" }), hint, text),
      el("div", { class: "card side" }, bend.element, idle, pieces, bars.element),
      el("div", { class: "card" }, el("h2", { say: "tree.title" }), treeHint, outline.element),
      card(layers),
    ),
    card(parts),
    surprisal.element,
  );

  // ---- Writing

  async function begin() {
    if (!prompt.value) {
      prompt.focus();
      return void say(status, "play.none");
    }
    const root = await rooted();
    if (root) await grow(tree.fork(root, root.tokens.length, []));
  }

  // The tree's root for what stands in the prompt: the same one for the same ids.
  async function rooted() {
    const own = tree;
    await mustRead(prompt.value, app.model);
    const { tokens, groups } = await lens("tokens", { text: prompt.value, unknown: "skip" });
    if (own !== tree) return null; // another model was chosen meanwhile
    const unknown = leftOut(prompt.value, groups);
    skipped.hidden = !unknown;
    say(skipped, "text.left_out", { characters: unknown });
    const ids = tokens.map((token) => token.id).join();
    const root =
      tree.roots.find((each) => each.tokens.map((token) => token.id).join() === ids) ??
      tree.plant(tokens.map(({ id }, at) => ({ id, from: Math.max(0, at - model.block_size + 1) })));
    root.text = groups.map((group) => group.text).join("");
    return root;
  }

  // From the end of what is seen. A branch that others have left goes on itself: they keep what they share.
  async function goOn() {
    await grow(shown.branch.parent ? shown.branch : tree.fork(shown.branch, shown.branch.tokens.length, []));
  }

  // The tokens before the place stay, the chosen one is next. Where the text has gone that way before, it goes back there.
  async function choose({ id }) {
    if (writing || (!place.end && id === place.came.id)) return;
    const { branch, tokens } = shown;
    const known = tree.find(branch, place.at, id);
    if (known) return show(known);
    const from = place.end ? windowStart(tokens, model.block_size) : tokens[place.at].from;
    const token = { id, from };
    if (place.end && branch.parent) branch.tokens.push(token);
    await grow(place.end && branch.parent ? branch : tree.fork(branch, place.at, [token]));
  }

  // Writes at a branch's end, window by window, and shows it as it grows.
  async function grow(branch) {
    writing?.abort();
    const control = (writing = new AbortController());
    const wanted = Math.min(LONGEST, Math.max(1, length.valueAsNumber || 100));
    await show(branch, { odds: false });
    buttons();
    let count = 0;
    const running = text.querySelector(".running");
    try {
      for await (const { id, piece, from } of written(branch, wanted, control.signal)) {
        branch.tokens.push(...id.map((each) => ({ id: each, from })));
        count += id.length;
        running?.append(el("span", { class: "fresh" }, piece));
        text.scrollTop = text.scrollHeight;
        say(status, "play.writing", { count });
      }
    } catch (error) {
      if (!isAborted(error)) throw error;
    } finally {
      if (writing === control) {
        writing = null;
        buttons();
        say(status, control.signal.aborted ? "play.stopped" : "play.wrote", { count });
        app.announce(status.textContent);
        await show(branch);
      }
    }
  }

  // {id: [...], piece, from}: ids and their text, as they are written.
  async function* written(branch, wanted, signal) {
    const served = app.step === null || app.step === app.model.step;
    for (let left = wanted; left > 0;) {
      const tokens = path(branch);
      const from = windowStart(tokens, model.block_size);
      const ids = tokens.slice(from).map((token) => token.id);
      if (!served) {
        yield { ...(await drawn(ids, signal)), from };
        left--;
        continue;
      }
      const room = Math.min(left, model.block_size - ids.length);
      const body = { prompt: ids, max_tokens: room, return_token_ids: true, ...bend.body };
      let came = 0,
        reason = null;
      for await (const {
        choices: [choice],
      } of complete(body, { signal })) {
        if (!choice) continue;
        const id = choice.token_ids ?? [];
        came += id.length;
        reason = choice.finish_reason ?? reason;
        if (id.length || choice.text) yield { id, piece: choice.text, from };
      }
      left -= came;
      if (reason === "stop" || !came) return;
    }
  }

  // A token of a step that the server doesn't write with: its logits are asked for, and it is drawn here.
  async function drawn(ids, signal) {
    const { logits, vocabulary } = await lens("next_token", { text: ids }, { signal });
    const id = new Odds(logits).drawn(bend.settings, Math.random());
    return { id: [id], piece: (vocabulary[id] ?? "").replace(/[␣⏎]/g, (sign) => (sign === "␣" ? " " : "\n")) };
  }

  // ---- Reading

  // Ids as tokens, block by block, for no more are answered at once. A character that a block's end cuts through is read
  // with the next block.
  async function read(ids) {
    const found = { tokens: [], groups: [] };
    for (let first = 0; first < ids.length; first = found.tokens.length) {
      const part = ids.slice(first, first + model.block_size);
      const { tokens, groups: all } = await lens("tokens", { text: part });
      const groups = first + part.length < ids.length && all.length > 1 ? all.slice(0, -1) : all;
      const { first: last, count } = groups.at(-1);
      found.tokens.push(...tokens.slice(0, last + count));
      found.groups.push(...groups.map((group) => ({ ...group, first: first + group.first })));
    }
    return found;
  }

  async function show(branch, { at = null, odds = true } = {}) {
    const tokens = path(branch);
    const mine = ++showing;
    const reading = await read(tokens.map((token) => token.id));
    if (mine !== showing) return; // overtaken
    shown = { branch, tokens, reading };
    branch.text = reading.groups
      .filter((group) => group.first >= branch.start)
      .map((group) => group.text)
      .join("");
    say(hint, "play.hint");
    const spans = tokenSpans(reading.tokens, reading.groups, {
      each: signBreak,
      onPick: (first, group, how) => how === "click" && app.trying(panel, () => look(first)),
    });
    text.replaceChildren(spans);
    drawTree();
    buttons();
    if (odds) await look(at ?? tokens.length);
  }

  // What could stand at a place of the text that is seen, and why.
  async function look(at) {
    const { tokens, reading } = shown;
    const end = at >= tokens.length;
    const from = end ? windowStart(tokens, model.block_size) : tokens[at].from;
    const ids = tokens.slice(from, at).map((token) => token.id);
    const found = { at, end, ids, came: end ? null : reading.tokens[at], step: app.step };
    mark(at, from);
    found.next = ids.length ? await lens("next_token", { text: ids }, { instead: "place" }) : null;
    if (shown?.reading !== reading) return;
    place = found;
    idle.hidden = true;
    bars.show(place);
    for (const part of [layers, parts]) part.element.parentElement.hidden = !place.next;
    if (place.next) await Promise.all([layers.show(place), parts.show(place, bars.likely)]);
  }

  // The chosen token stands out; what lay outside the model's window then is pale.
  function mark(at, from) {
    const {
      reading: { tokens, groups },
    } = shown;
    text.querySelectorAll(".token").forEach((span, i) => {
      const { first, count } = groups[i];
      const chosen = at >= first && at < first + count;
      span.classList.toggle("chosen", chosen);
      span.classList.toggle("forgotten", first + count <= from);
      if (chosen) span.setAttribute("aria-current", "true");
      else span.removeAttribute("aria-current");
    });
    say(hint, from ? "play.window" : "play.hint", { block: model.block_size });
    const group = groups.find(({ first, count }) => at >= first && at < first + count && count > 1);
    pieces.hidden = !group;
    if (group)
      pieces.replaceChildren(
        t("place.pieces", { count: group.count }),
        " ",
        ...tokens.slice(group.first, group.first + group.count).map((token, i) =>
          el(
            "button",
            {
              type: "button",
              class: "small chip",
              "aria-pressed": String(at === group.first + i),
              title: token.bytes,
              onclick: () => app.trying(panel, () => look(group.first + i)),
            },
            token.label,
          ),
        ),
      );
  }

  // ---- What is chosen above

  function drawTree() {
    say(treeHint, tree.roots.some((root) => root.children.length) ? "tree.hint" : "tree.empty");
    outline.draw(tree, shown?.branch);
  }

  function buttons() {
    write.disabled = !!writing;
    stop.disabled = !writing;
    onward.disabled = !!writing || !shown;
    bars.list.classList.toggle("waiting", !!writing); // one can't branch from what is being written
  }

  async function update() {
    if (!app.model) return;
    const chosen = app.model,
      another = model?.id !== chosen.id;
    const known = another ? await knownOf(app.text, chosen) : "";
    if (chosen !== app.model) return; // another was chosen meanwhile
    if (another) {
      writing?.abort();
      writing = null;
      model = { id: app.model.id, ...app.model.model };
      tree = new Tree();
      shown = place = null;
      showing++;
      bend.known(model.vocab_size);
      prompt.value = known.split(/\s+/).slice(0, 3).join(" ");
      text.replaceChildren();
      drawTree();
      for (const part of [bars, layers, parts]) part.element.hidden = true;
      for (const part of [layers, parts]) part.element.parentElement.hidden = true;
      idle.hidden = false;
      say(hint, "play.idle");
      say(status, "play.ready");
      buttons();
    }
    bend.show();
    const { step: served } = app.model;
    elsewhere.hidden = app.step === null || app.step === served;
    if (!elsewhere.hidden) say(elsewhere, "play.other", { served, step: app.step });
    surprisal.update(another);
    if (another && prompt.value) {
      const root = await rooted(); // so that there is something to see and to bend
      if (root) await show(root);
      return;
    }
    if (!shown || writing) return;
    drawTree();
    await look(place?.at ?? shown.tokens.length);
  }

  return { update };
}

const card = (part) => el("div", { class: "card" }, part.element);
