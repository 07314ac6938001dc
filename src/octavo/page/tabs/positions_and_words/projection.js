// The map: the tokens' rows of wte as a plane, with search and neighbours, along the checkpoints of training.

import { lens, refusal } from "octavo/api";
import { PIECES, readable } from "octavo/tabs/positions_and_words/position";
import { boxOf, scatter } from "octavo/pictures/bars";
import { chip, el, field, number, percent, said, say, t } from "octavo/dom";

export function map(app) {
  let shown = []; // {token, x, y} of the step on screen
  let steps = [],
    at = 0,
    target = null,
    found = null,
    playing = null,
    last = null;

  const find = el("input", {
    id: "find",
    type: "search",
    size: 14,
    dir: "auto",
    maxlength: 100,
    spellcheck: "false",
    autocomplete: "off",
  });
  const scrubber = el("input", {
    id: "scrub",
    type: "range",
    min: 0,
    step: 1,
    oninput: () => {
      stop();
      scrub(Number(scrubber.value));
    },
  });
  const moment = el("output", { class: "mono", for: "scrub" });
  const play = el("button", {
    type: "button",
    class: "small",
    say: "words.play",
    onclick: () => (playing ? stop() : start()),
  });
  const training = el(
    "div",
    { class: "scrub" },
    el("label", { for: "scrub", class: "quiet", say: "words.training" }),
    play,
    scrubber,
    moment,
  );
  const picture = scatter([], { height: 520 });
  const near = el("div");
  const caveat = el("p", { class: "caveat" });
  const node = el(
    "section",
    { class: "card", "aria-labelledby": "words-map" },
    el("h2", { id: "words-map", say: "words.map.title" }),
    el("p", { say: ["words.map.does", { C: 0 }] }),
    el(
      "form",
      {
        class: "row",
        onsubmit: (event) => {
          event.preventDefault();
          search(find.value);
        },
      },
      field(find, "words.find"),
      el("button", { say: "words.find.do" }),
    ),
    near,
    training,
    picture,
    el("p", { class: "quiet", say: "words.align" }),
    caveat,
  );

  // The steps that can be scrubbed; the last is the one that is chosen above where it isn't a kept one.
  async function load() {
    const { model } = app;
    say(node.querySelector("h2 + p"), "words.map.does", { C: model.model.n_embd });
    steps = model.steps.length ? model.steps : [null];
    training.hidden = steps.length < 2;
    node.querySelector(".scrub + figure + p").hidden = steps.length < 2;
    scrubber.max = steps.length - 1;
    at = app.step !== null && steps.includes(app.step) ? steps.indexOf(app.step) : steps.length - 1;
    last = null;
    await draw();
    if (target) await neighbors();
  }

  const words = () => (target?.word && app.model.model.vocab_size > 2000 ? [target.word] : []);
  const ask = (step) => lens("projection", { ...(step !== null && { step }), words: words() });

  async function draw() {
    scrubber.value = at;
    if (steps[at] !== null) moment.textContent = t("head.step.at", { step: steps[at] });
    scrubber.setAttribute("aria-valuetext", moment.textContent);
    last = await ask(steps.at(-1));
    const asked = at;
    const answer = at === steps.length - 1 ? last : await ask(steps[at]);
    if (asked !== at) return; // scrubbed on meanwhile
    const reference = new Map(last.tokens.map((token, i) => [token.id, last.points[i]]));
    const turned = align(
      answer.points,
      answer.tokens.map((token) => reference.get(token.id)),
    );
    shown = answer.tokens.map((token, i) => ({ token, x: turned[i][0], y: turned[i][1] }));
    say(caveat, "words.map.caveat", {
      C: app.model.model.n_embd,
      share: percent(answer.explained[0] + answer.explained[1], 0),
    });
    paint({
      extent: boxOf([...last.points, ...turned]),
      caption: () => said("words.map.caption", { n: answer.tokens.length, V: answer.vocab_size }),
    });
  }

  function paint(more = {}) {
    const nearIds = new Set(found?.neighbors.map(({ token }) => token.id)),
      own = new Set(found?.tokens.map((token) => token.id));
    picture.show(
      shown.map(({ token, x, y }) => ({
        key: token.id,
        label: token.label,
        x,
        y,
        kind: own.has(token.id) ? "chosen" : nearIds.has(token.id) ? "near" : "",
      })),
      {
        extent: picture.extent,
        label: t("words.map.title"),
        columns: [t("draw.token"), "1", "2"],
        tell: (point) => [
          el("span", { class: "chip" }, el("bdi", {}, point.label)),
          " ",
          ...said("words.point", { id: point.key }),
        ],
        onPick: (id) => pick(shown.find((each) => each.token.id === id).token),
        ...more,
      },
    );
  }

  const scrub = async (to) => {
    at = to;
    await app.trying(node, draw);
    if (target && !playing) await app.trying(node, neighbors);
  };

  async function start() {
    say(play, "words.stop");
    const run = (playing = {});
    if (at === steps.length - 1) at = -1;
    while (playing === run && at < steps.length - 1) {
      await scrub(at + 1);
      await new Promise((resolve) => setTimeout(resolve, 750));
    }
    if (playing === run) {
      stop();
      if (target) await app.trying(node, neighbors);
    }
  }

  function stop() {
    playing = null;
    say(play, "words.play");
  }

  const search = (word) =>
    word &&
    app.trying(node, async () => {
      const pieces = await readable(app.model, word);
      if (!pieces || pieces.length > PIECES) throw refusal("error.word");
      target = { word };
      await neighbors();
      await draw();
      const own = found.tokens.length === 1 ? found.tokens[0].id : null;
      if (own !== null) picture.choose(own);
    });

  // A token's bytes, as the text that the tokenizer would make it of.
  const pick = (token) =>
    app.trying(node, async () => {
      const bytes = Uint8Array.from(token.bytes.split(" "), (each) => parseInt(each, 16));
      target = { word: new TextDecoder().decode(bytes) };
      find.value = target.word;
      await neighbors();
    });

  async function neighbors() {
    const step = steps[at] ?? null;
    found = await lens(
      "neighbors",
      { word: target.word, top: 12, ...(step !== null && { step }) },
      { instead: "neighbors" },
    );
    near.replaceChildren(
      el(
        "p",
        { class: "quiet" },
        ...said("words.near", {
          word: el(
            "span",
            {},
            found.tokens.map((token) => chip(token)),
          ),
        }),
        " ",
        steps[at] !== null && steps.length > 1 ? `(${t("head.step.at", { step: steps[at] })})` : "",
      ),
      el(
        "ol",
        { class: "near" },
        found.neighbors.map(({ token, cosine }) =>
          el(
            "li",
            {},
            el(
              "button",
              { type: "button", class: "small", onclick: () => pick(token) },
              chip(token),
              " ",
              number(cosine, 2),
            ),
          ),
        ),
      ),
    );
    paint();
  }

  return { node, load, hide: stop };
}

// Points (N, 2), turned and if need be mirrored to lie on others as closely as can be: orthogonal Procrustes in the plane.
function align(points, others) {
  let [a, b, c, d] = [0, 0, 0, 0]; // pointsᵀ others
  points.forEach(([x, y], i) => {
    if (!others[i]) return;
    const [u, v] = others[i];
    a += x * u;
    b += x * v;
    c += y * u;
    d += y * v;
  });
  const mirror = Math.hypot(a - d, b + c) > Math.hypot(a + d, b - c) ? -1 : 1; // of y, where that lies closer
  const angle = Math.atan2(b - mirror * c, a + mirror * d);
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  return points.map(([x, y]) => [x * cos - mirror * y * sin, x * sin + mirror * y * cos]);
}
