// What is below every picture: its values as a table, and buttons that save it as PNG or SVG. The code that saves is
// loaded with the first click.

import { el } from "octavo/dom";
import { t } from "octavo/i18n";

const KINDS = ["png", "svg"];

// `table` is a `dataTable`, `label()` the picture's name, `parts()` its elements from top to bottom; `figure` is null
// for a picture that is a list. Call `.fill()` after the content or the name has changed.
export function pictureTools(table, label, parts, figure = null) {
  const buttons = KINDS.map((kind) => {
    const onclick = async () => {
      const { savePicture } = await import("octavo/figures/save_picture");
      await savePicture(kind, parts(), figure, label());
    };
    return el("button", { type: "button", class: "small", onclick }, kind.toUpperCase());
  });
  const save = el("span", { class: "save quiet" }, el("span", { textKey: "figure.save" }), buttons);
  const tools = el("div", { class: "tools" }, table, save);
  tools.fill = () => {
    table.fill();
    buttons.forEach((button, i) =>
      button.setAttribute("aria-label", t("figure.save_as", { kind: KINDS[i].toUpperCase(), label: label() })),
    );
  };
  return tools;
}
