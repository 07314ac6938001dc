// The functions with which test_page_everywhere.py reads the open page, in `window.tour`. They change only the focus and the
// stage of the walk.

window.tour = (() => {
  const visible = (selector) => [...document.querySelectorAll(selector)].filter((element) => element.checkVisibility());
  const describe = (element) => element.outerHTML.slice(0, 120);

  // Everything but sentences of the page: code, texts and names of the model, the text of input fields.
  const NO_SENTENCES = `code, pre, bdi, textarea, option, .running, .chip, .name, .tree, table th, table td,
    [lang]:not(html), .visually-hidden[role=status]`;

  // The page's sentences, also those for screen readers.
  function sentences() {
    const texts = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node; (node = walker.nextNode());) {
      const { parentElement: parent, data } = node;
      if (data.trim() && parent.checkVisibility() && !parent.closest(NO_SENTENCES)) texts.push(data.trim());
    }
    for (const element of visible("[aria-label], [placeholder]"))
      if (!element.closest(".running, .neighbors"))
        texts.push(...["aria-label", "placeholder"].map((name) => element.getAttribute(name)).filter(Boolean));
    return texts;
  }

  // The language, the directions of the page and of its text, and those of the elements that are left to right in every
  // language.
  function directions() {
    const computed = (element) => getComputedStyle(element).direction;
    const { lang, dir } = document.documentElement;
    const formulas = visible("main canvas, main .formula, main .uplot, main .shape");
    const text = computed(visible("main h2, main p")[0]);
    return [lang, dir, computed(document.body), text, ...new Set(formulas.map(computed))];
  }

  // The width of the page, and elements that are wider than the window.
  function width() {
    const pageWidth = document.scrollingElement.scrollWidth;
    const overflowing = visible("body *").filter((element) => {
      const { left, right } = element.getBoundingClientRect();
      const isOutside = right > innerWidth + 1 || left < -1;
      return isOutside && !element.closest(".scroll, .visually-hidden, .skip, table, svg");
    });
    return [pageWidth, overflowing.slice(0, 5).map(describe)];
  }

  // [width, sentences] in each stage of the walk. The other tabs have one stage.
  async function stages() {
    const read = () => [width(), sentences()];
    const boxes = visible(".walk .diagram .box");
    if (!boxes.length) return [read()];
    const all = [];
    for (const box of [...boxes, boxes[7]]) {
      box.dispatchEvent(new MouseEvent("click", { bubbles: true }));
      await new Promise((done) => setTimeout(done));
      all.push(read());
    }
    return all;
  }

  // Every picture, with the number of rows of its table; -1 without a table.
  function pictures() {
    const all = visible("main figure, main canvas, main .uplot, main .token-bars, main .signed-bars, main .pairs");
    return all
      .filter((picture) => !picture.closest("[aria-hidden=true]"))
      .map((picture) => {
        const table = (picture.closest("figure") ?? picture.closest("section")).querySelector("details.table");
        return [describe(picture), table?.checkVisibility() ? table.querySelectorAll("tbody tr").length : -1];
      });
  }

  // The controls that the Tab key should reach. `watchFocus` returns their number; after that many Tabs, `focusReport`
  // returns those that were not reached, and those that look the same with the focus.
  let controls, looksBefore, looksFocused;
  const look = (element) =>
    [element, ...element.children]
      .map(getComputedStyle)
      .map(({ outlineStyle, outlineWidth, outlineColor, boxShadow, stroke, strokeWidth }) => {
        const outline = outlineStyle === "none" ? "" : outlineWidth + outlineColor;
        return [outline, boxShadow, stroke, strokeWidth].join();
      })
      .join();
  const onFocus = ({ target }) => looksFocused.set(target, look(target));

  function watchFocus() {
    controls = visible("a[href], button, input, select, textarea, summary, [tabindex]").filter(
      ({ tabIndex, disabled, type, checked }) => tabIndex >= 0 && !disabled && !(type === "radio" && !checked),
    );
    document.activeElement.blur();
    looksBefore = new Map(controls.map((control) => [control, look(control)]));
    looksFocused = new Map();
    controls.at(-1).focus();
    document.addEventListener("focusin", onFocus);
    return controls.length;
  }

  function focusReport() {
    document.removeEventListener("focusin", onFocus);
    document.activeElement.blur();
    const unreached = controls.filter((control) => control.isConnected && !looksFocused.has(control));
    const unchanged = [...looksFocused].filter(([control, focused]) => focused === looksBefore.get(control));
    return [unreached.map(describe), unchanged.map(([control]) => describe(control))];
  }

  // The width of each text in spans and in one piece: [width, width in one piece, number of spans, direction]. It leaves
  // out texts with a line break, because spans draw it as a sign.
  function spans() {
    const textWidth = (node) => {
      node.style.whiteSpace = "nowrap";
      const range = document.createRange();
      range.selectNodeContents(node);
      return range.getBoundingClientRect().width;
    };
    return visible("main .running")
      .filter((text) => !text.querySelector(".break"))
      .map((text) => {
        const plain = text.cloneNode(false);
        plain.textContent = text.textContent;
        text.after(plain);
        const result = [textWidth(text), textWidth(plain), text.children.length, getComputedStyle(text).direction];
        plain.remove();
        text.style.whiteSpace = "";
        return result;
      });
  }

  // Spans whose style would separate joined letters.
  function separatedSpans() {
    const sides = ["paddingLeft", "paddingRight", "marginLeft", "marginRight", "borderLeftWidth", "borderRightWidth"];
    return visible("main .running span")
      .filter((span) => {
        const style = getComputedStyle(span);
        const hasSpace = sides.some((side) => parseFloat(style[side]));
        return hasSpace || style.display !== "inline" || /isolate/.test(style.unicodeBidi);
      })
      .map(describe);
  }

  return { sentences, directions, width, stages, pictures, watchFocus, focusReport, spans, separatedSpans };
})();
