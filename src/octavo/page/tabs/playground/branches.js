// The tree of all that was written from a prompt. A branch is a run of tokens that leaves its parent at `start`: what
// stands before it there is shared, never copied, so going back finds every id as it was.
//
// A token here is {id, from}: `from` is where the model's window began when the token came. A text that is longer than
// the block is written through a window that moves on, and the odds of each token are looked up as they were.

import { el } from "octavo/dom";

export class Tree {
  constructor() {
    this.roots = [];
    this.count = 0;
  }

  // A root. One from which nothing was written makes room.
  plant(tokens) {
    this.roots = this.roots.filter((root) => root.children.length);
    if (!this.roots.length) this.count = 0;
    return this.#made(null, 0, tokens, this.roots);
  }

  // A branch that shares the first `at` tokens of `branch`, then goes its own way. A place before the branch's own
  // beginning belongs to its parent, so the new one is its sibling or its aunt.
  fork(branch, at, tokens) {
    while (branch.parent && at <= branch.start) branch = branch.parent;
    return this.#made(branch, at, tokens, branch.children);
  }

  // The branch that goes on with that id at that place, if there is one.
  find(branch, at, id) {
    while (branch.parent && at <= branch.start) branch = branch.parent;
    return branch.children.find((each) => each.start === at && each.tokens[0]?.id === id);
  }

  // Every branch with its depth, parents first.
  *walk(branches = this.roots, depth = 1) {
    for (const branch of branches) {
      yield { branch, depth };
      yield* this.walk(branch.children, depth + 1);
    }
  }

  #made(parent, start, tokens, among) {
    const branch = { number: ++this.count, parent, start, tokens: [...tokens], children: [] };
    among.push(branch);
    return branch;
  }
}

// All tokens from the prompt to the end of a branch.
export function path(branch) {
  return branch.parent ? [...path(branch.parent).slice(0, branch.start), ...branch.tokens] : [...branch.tokens];
}

// Where the window of the next token begins: it stays while there is room, then moves on by half a block.
export function windowStart(tokens, blockSize) {
  const from = tokens.at(-1)?.from ?? 0;
  return tokens.length - from < blockSize ? from : tokens.length - (blockSize >> 1);
}

// The tree as an outline, by ARIA's practice: one item can be tabbed to, arrows walk, open and close, Enter picks.
export class Outline {
  constructor(onPick) {
    this.onPick = onPick;
    this.items = new Map(); // branch -> its item, in the order in which they are seen
    this.closed = new WeakSet();
    this.element = el("ul", {
      role: "tree",
      class: "tree",
      sayLabel: "tree.title",
      onkeydown: (event) => this.#key(event),
    });
  }

  // `here` is the branch that is seen. The focus stays in the tree, if it was there, on `at`.
  draw(tree, here = this.here, at = here) {
    const focused = this.element.contains(document.activeElement);
    Object.assign(this, { tree, here });
    this.items.clear();
    this.element.replaceChildren(...tree.roots.map((root) => this.#item(root, 1)));
    while (at && !this.items.has(at)) at = at.parent; // it is closed away
    const item = this.items.get(at) ?? this.element.firstChild;
    item?.setAttribute("tabindex", "0");
    if (focused) item?.focus({ preventScroll: true });
  }

  #item(branch, level) {
    const { parent, start, tokens, children, number, text = "" } = branch;
    const open = children.length > 0 && !this.closed.has(branch);
    const words = Array.from(text).slice(0, 60).join("").replace(/\s+/g, " ");
    const pick = (event) => {
      event.stopPropagation();
      if (event.target.closest(".fold")) this.#fold(branch, open);
      else this.onPick(branch);
    };
    const item = el(
      "li",
      {
        role: "treeitem",
        tabindex: "-1",
        "aria-level": level,
        "aria-selected": String(branch === this.here),
        "aria-expanded": children.length ? String(open) : null,
        "aria-labelledby": `branch-${number}-name`,
        onclick: pick,
      },
      el(
        "span",
        { class: "twig" },
        el("span", { class: "fold", "aria-hidden": "true" }, children.length ? (open ? "▾" : "▸") : ""),
        el(
          "span",
          { id: `branch-${number}-name` },
          parent && el("code", {}, String(start)),
          " ",
          el("bdi", {}, words || "…"),
          " ",
          el("small", { say: ["tree.size", { count: tokens.length }] }),
        ),
      ),
    );
    this.items.set(branch, item);
    if (open) item.append(el("ul", { role: "group" }, ...children.map((each) => this.#item(each, level + 1))));
    return item;
  }

  #fold(branch, close) {
    if (close) this.closed.add(branch);
    else this.closed.delete(branch);
    this.draw(this.tree, this.here, branch);
  }

  #key(event) {
    const branches = [...this.items.keys()];
    const item = event.target.closest("[role=treeitem]");
    const at = branches.findIndex((each) => this.items.get(each) === item);
    if (at < 0) return;
    const branch = branches[at];
    const rtl = getComputedStyle(this.element).direction === "rtl";
    const key = rtl ? ({ ArrowLeft: "ArrowRight", ArrowRight: "ArrowLeft" }[event.key] ?? event.key) : event.key;
    const open = item.getAttribute("aria-expanded") === "true";
    const go = (to) => {
      for (const each of this.items.values()) each.tabIndex = -1;
      this.items.get(to).tabIndex = 0;
      this.items.get(to).focus();
    };
    if (key === "ArrowRight" && branch.children.length) open ? go(branch.children[0]) : this.#fold(branch, false);
    else if (key === "ArrowLeft" && open) this.#fold(branch, true);
    else if (key === "ArrowLeft" && branch.parent) go(branch.parent);
    else if (key === "ArrowDown" && branches[at + 1]) go(branches[at + 1]);
    else if (key === "ArrowUp" && at) go(branches[at - 1]);
    else if (key === "Home") go(branches[0]);
    else if (key === "End") go(branches.at(-1));
    else if (key === "Enter" || key === " ") this.onPick(branch);
    else if (!key.startsWith("Arrow")) return;
    event.preventDefault();
  }
}
