// The dialog that asks for an API key.

import { el } from "octavo/dom";

// Returns the key, or null if the user gives none. `isWrong`: the server rejected the last key.
export function askForKey(isWrong) {
  return new Promise((resolve) => {
    const input = el("input", { id: "key", type: "password", autocomplete: "off", required: true });
    const dialog = el(
      "dialog",
      { "aria-labelledby": "key-title" },
      el(
        "form",
        { method: "dialog", onsubmit: () => (dialog.returnValue = "given") },
        el("h2", { id: "key-title", textKey: "key.title" }),
        el("p", { textKey: "key.why" }),
        isWrong && el("p", { class: "problem", role: "alert", textKey: "key.wrong" }),
        el("label", { class: "field", for: "key" }, el("span", { textKey: "key.field" }), input),
        el(
          "p",
          { class: "buttons" },
          el("button", { class: "main", value: "given", textKey: "key.use" }),
          el("button", { type: "button", textKey: "key.cancel", onclick: () => dialog.close("") }),
        ),
      ),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "given" && input.value ? input.value.trim() : null);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
