// An error at the top of a panel, in the user's language.

import { ApiError, isAbortError } from "octavo/api";
import { el } from "octavo/dom";

// Shows an error at the top of a panel; null removes it. An aborted request is no error.
export function showError(panel, error) {
  if (isAbortError(error)) return;
  panel.querySelector(":scope > .problem")?.remove();
  if (!error) return;
  if (!(error instanceof ApiError)) console.error(error);
  panel.prepend(errorBox(error));
}

// The server's messages are in English. A hint about the command line is left out.
function errorBox(error) {
  const isFromServer = error instanceof ApiError && error.message;
  const message = isFromServer
    ? [el("span", { textKey: "error.server" }), " ", el("bdi", { lang: "en", dir: "ltr" }, error.message)]
    : el("span", { textKey: error.sentence ?? "error.unknown" });
  const hasHint = isFromServer && error.hint && !/--|octavo /.test(error.hint);
  const hint = () => [el("span", { textKey: "error.try" }), " ", el("code", { dir: "ltr" }, error.hint)];
  return el(
    "div",
    { class: "problem", role: "alert" },
    el("p", {}, el("strong", { textKey: "error.title" }), " ", message),
    hasHint && el("p", { class: "quiet" }, hint()),
  );
}
