// The tree of all texts that were generated from a prompt. A branch has the tokens of its text from position `start`
// on; those before belong to its ancestors and are never copied, so every earlier text is still there, id by id.
//
// A token here is {id, windowStart}: the position at which the model's window for this token begins. If a text is
// longer than the context, the window moves on as the text grows. A generated token is explained with the window that
// it was generated with, a token of the prompt with the longest window that ends at it.

import { el } from "octavo/dom";

const MAX_JSON = 1_000_000; // characters; a browser keeps a few million

export class Tree {
  constructor() {
    this.roots = [];
    this.count = 0; // of branches so far
  }

  // Adds a root and removes those from which nothing was generated.
  addRoot(tokens) {
    this.roots = this.roots.filter((root) => root.children.length);
    if (!this.roots.length) this.count = 0;
    return this.#addBranch(null, 0, tokens, this.roots);
  }

  // A new branch that shares the first `start` tokens of the text of `branch`.
  fork(branch, start, tokens) {
    const parent = parentOfFork(branch, start);
    return this.#addBranch(parent, start, tokens, parent.children);
  }

  // The branch that such a fork would be, if it exists: it begins with the token `id` at position `start`.
  find(branch, start, id) {
    const siblings = parentOfFork(branch, start).children;
    return siblings.find((sibling) => sibling.start === start && sibling.tokens[0]?.id === id);
  }

  // The tree as JSON, from which `parse` builds it again. It leaves out the oldest roots if it would be too long.
  toString() {
    const roots = [...this.roots];
    const stringify = () => JSON.stringify({ count: this.count, roots }, (key, value) => (key === "parent" ? null : value));
    while (roots.length > 1 && stringify().length > MAX_JSON) roots.shift();
    return stringify();
  }

  static parse(json) {
    const tree = Object.assign(new Tree(), JSON.parse(json));
    const setParent = (branch, parent) => {
      branch.parent = parent;
      for (const child of branch.children) setParent(child, branch);
    };
    for (const root of tree.roots) setParent(root, null);
    return tree;
  }

  // The branch with a number, or undefined.
  branch(number, branches = this.roots) {
    for (const branch of branches) {
      const found = branch.number === number ? branch : this.branch(number, branch.children);
      if (found) return found;
    }
  }

  #addBranch(parent, start, tokens, siblings) {
    const branch = { number: ++this.count, parent, start, tokens: [...tokens], children: [] };
    siblings.push(branch);
    return branch;
  }
}

// The parent of a fork at position `start` of the text of `branch`: the branch itself, or the ancestor that has the
// token before that position.
function parentOfFork(branch, start) {
  while (branch.parent && start <= branch.start) branch = branch.parent;
  return branch;
}

// All tokens from the prompt to the end of a branch.
export function branchTokens(branch) {
  return branch.parent ? [...branchTokens(branch.parent).slice(0, branch.start), ...branch.tokens] : [...branch.tokens];
}

// Where the window of the next token begins: unchanged while there is room, else half a context further.
export function nextWindowStart(tokens, blockSize) {
  const start = tokens.at(-1)?.windowStart ?? 0;
  return tokens.length - start < blockSize ? start : tokens.length - (blockSize >> 1);
}

// The tree on screen, by the ARIA pattern for trees: one item is in the tab order, arrow keys move, open and close,
// Enter chooses.
export class TreeView {
  constructor(onPick) {
    this.onPick = onPick;
    this.items = new Map(); // branch -> its item, in the order on screen
    this.closed = new WeakSet();
    this.element = el("ul", {
      role: "tree",
      class: "tree",
      labelKey: "tree.title",
      onkeydown: (event) => this.#handleKey(event),
    });
  }

  // `selected` is the branch on screen. The item of `focused` gets the focus if the tree had it.
  draw(tree, selected = this.selected, focused = selected) {
    const hadFocus = this.element.contains(document.activeElement);
    Object.assign(this, { tree, selected });
    this.items.clear();
    this.element.replaceChildren(...tree.roots.map((root) => this.#item(root, 1)));
    while (focused && !this.items.has(focused)) focused = focused.parent; // an ancestor is closed
    const item = this.items.get(focused) ?? this.element.firstChild;
    item?.setAttribute("tabindex", "0");
    if (hadFocus) item?.focus({ preventScroll: true });
  }

  #item(branch, level) {
    const { parent, start, tokens, children, number, text = "" } = branch;
    const isOpen = children.length > 0 && !this.closed.has(branch);
    const beginning = Array.from(text).slice(0, 60).join("").replace(/\s+/g, " ");
    const onclick = (event) => {
      event.stopPropagation();
      if (event.target.closest(".tree-toggle")) this.#setOpen(branch, !isOpen);
      else this.onPick(branch);
    };
    const toggleSign = children.length ? (isOpen ? "▾" : "▸") : "";
    const item = el(
      "li",
      {
        role: "treeitem",
        tabindex: "-1",
        "aria-level": level,
        "aria-selected": String(branch === this.selected),
        "aria-expanded": children.length ? String(isOpen) : null,
        "aria-labelledby": `branch-${number}-name`,
        onclick,
      },
      el(
        "span",
        { class: "tree-row" },
        el("span", { class: "tree-toggle", "aria-hidden": "true" }, toggleSign),
        el(
          "span",
          { id: `branch-${number}-name` },
          parent && el("code", {}, String(start)),
          " ",
          el("bdi", {}, beginning || "…"),
          " ",
          el("small", { textKey: ["tree.size", { count: tokens.length }] }),
        ),
      ),
    );
    this.items.set(branch, item);
    const childItems = isOpen ? children.map((child) => this.#item(child, level + 1)) : [];
    if (isOpen) item.append(el("ul", { role: "group" }, ...childItems));
    return item;
  }

  #setOpen(branch, isOpen) {
    if (isOpen) this.closed.delete(branch);
    else this.closed.add(branch);
    this.draw(this.tree, this.selected, branch);
  }

  #focus(branch) {
    for (const item of this.items.values()) item.tabIndex = -1;
    this.items.get(branch).tabIndex = 0;
    this.items.get(branch).focus();
  }

  #handleKey(event) {
    const branches = [...this.items.keys()];
    const item = event.target.closest("[role=treeitem]");
    const index = branches.findIndex((candidate) => this.items.get(candidate) === item);
    if (index < 0) return;
    const branch = branches[index];
    const isRtl = getComputedStyle(this.element).direction === "rtl";
    const mirrored = { ArrowLeft: "ArrowRight", ArrowRight: "ArrowLeft" };
    const key = isRtl ? (mirrored[event.key] ?? event.key) : event.key;
    const isOpen = item.getAttribute("aria-expanded") === "true";
    if (key === "ArrowRight" && isOpen) this.#focus(branch.children[0]);
    else if (key === "ArrowRight" && branch.children.length) this.#setOpen(branch, true);
    else if (key === "ArrowLeft" && isOpen) this.#setOpen(branch, false);
    else if (key === "ArrowLeft" && branch.parent) this.#focus(branch.parent);
    else if (key === "ArrowDown" && branches[index + 1]) this.#focus(branches[index + 1]);
    else if (key === "ArrowUp" && index) this.#focus(branches[index - 1]);
    else if (key === "Home") this.#focus(branches[0]);
    else if (key === "End") this.#focus(branches.at(-1));
    else if (key === "Enter" || key === " ") this.onPick(branch);
    else if (!key.startsWith("Arrow")) return;
    event.preventDefault();
  }
}
