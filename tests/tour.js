// What test_page_everywhere.py asks of a page that stands on a tab, put into it as `window.tour`. It changes nothing
// but the focus.

window.tour = (() => {
  const all = (selector) => [...document.querySelectorAll(selector)].filter((each) => each.checkVisibility());
  const name = (each) => each.outerHTML.slice(0, 120);

  // What isn't said by the page: code, the model's text and names, what a reader types.
  const OWN = `code, pre, bdi, textarea, option, .running, .chip, .name, .tree, table th, table td, [lang]:not(html),
    .unseen[role=status]`;

  // Its words, and those for screen readers.
  function said() {
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node; (node = walker.nextNode()); ) {
      const { parentElement: parent, data } = node;
      if (data.trim() && parent.checkVisibility() && !parent.closest(OWN)) found.push(data.trim());
    }
    for (const each of all("[aria-label], [placeholder]"))
      if (!each.closest(".running, .near"))
        found.push(...["aria-label", "placeholder"].map((label) => each.getAttribute(label)).filter(Boolean));
    return found;
  }

  // The direction as it is said, as it is computed, and of all that reads from left to right in every language.
  function directions() {
    const computed = (each) => getComputedStyle(each).direction;
    const { lang, dir } = document.documentElement;
    const formulas = all("main canvas, main .formula, main .uplot, main .shape");
    return [lang, dir, computed(document.body), computed(all("main h2, main p")[0]), ...new Set(formulas.map(computed))];
  }

  // How wide the page is, and what of it stands out.
  function width() {
    const wide = document.scrollingElement.scrollWidth;
    const out = all("body *").filter((each) => {
      const { left, right } = each.getBoundingClientRect();
      return (right > innerWidth + 1 || left < -1) && !each.closest(".scroll, .unseen, .skip, table, svg");
    });
    return [wide, out.slice(0, 5).map(name)];
  }

  // Every picture, and how many rows its table has; -1 where there is none.
  function pictures() {
    const drawn = all("main figure, main canvas, main .uplot, main .ladder, main .pushes, main .pairs");
    return drawn.filter((each) => !each.closest("[aria-hidden=true]")).map((each) => {
      const table = (each.closest("figure") ?? each.closest("section")).querySelector("details.table");
      return [name(each), table?.checkVisibility() ? table.querySelectorAll("tbody tr").length : -1];
    });
  }

  // What the Tab key should reach: after `begin`, and a Tab for each, `end` tells what wasn't, and what was but
  // looks as before.
  let wanted, before, reached;
  const look = (each) =>
    [each, ...each.children].map(getComputedStyle).map((style) => [
      style.outlineStyle === "none" ? "" : style.outlineWidth + style.outlineColor, style.boxShadow, style.stroke,
      style.strokeWidth,
    ].join()).join();
  const arrived = ({ target }) => reached.set(target, look(target));

  function begin() {
    wanted = all("a[href], button, input, select, textarea, summary, [tabindex]").filter(
      (each) => each.tabIndex >= 0 && !each.disabled && !(each.type === "radio" && !each.checked),
    );
    document.activeElement.blur();
    before = new Map(wanted.map((each) => [each, look(each)]));
    reached = new Map();
    wanted.at(-1).focus();
    document.addEventListener("focusin", arrived);
    return wanted.length;
  }

  function end() {
    document.removeEventListener("focusin", arrived);
    document.activeElement.blur();
    const missed = wanted.filter((each) => each.isConnected && !reached.has(each));
    const unseen = [...reached].filter(([each, now]) => now === before.get(each));
    return [missed.map(name), unseen.map(([each]) => name(each))];
  }

  // Text that is cut into spans, beside the same text in one piece: [wide, wide as one, spans, direction]. The end of a
  // line has a sign of its own, so texts with one are left out.
  function spans() {
    return all("main .running").filter((each) => !each.querySelector(".break")).map((each) => {
      const plain = each.cloneNode(false);
      plain.textContent = each.textContent;
      each.after(plain);
      const wide = (node) => {
        node.style.whiteSpace = "nowrap";
        const range = document.createRange();
        range.selectNodeContents(node);
        return range.getBoundingClientRect().width;
      };
      const found = [wide(each), wide(plain), each.children.length, getComputedStyle(each).direction];
      plain.remove();
      each.style.whiteSpace = "";
      return found;
    });
  }

  // Spans that have what would break the joining of letters.
  function apart() {
    const sides = ["paddingLeft", "paddingRight", "marginLeft", "marginRight", "borderLeftWidth", "borderRightWidth"];
    return all("main .running span").filter((each) => {
      const style = getComputedStyle(each);
      return sides.some((side) => parseFloat(style[side])) || style.display !== "inline" || /isolate/.test(style.unicodeBidi);
    }).map(name);
  }

  return { said, directions, width, pictures, begin, end, spans, apart };
})();
