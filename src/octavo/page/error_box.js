// An error at the top of a panel, in the user's language.

import { ApiError, isAbortError } from "octavo/api";
import { el } from "octavo/dom";

const SENTENCES = {
  "-1": "error.unreachable",
  401: "error.key",
  404: "error.offline",
  429: "error.busy",
  503: "error.none",
};

// Shows an error at the top of a panel; null removes it. An aborted request is no error.
export function showError(panel, error) {
  if (isAbortError(error)) return;
  panel.querySelector(":scope > .problem")?.remove();
  if (!error) return;
  if (!(error instanceof ApiError)) console.error(error);
  panel.prepend(errorBox(error));
}

// A message of the server is English. Its hint is left out if it is about the command line.
function errorBox(error) {
  const isServers = error instanceof ApiError && error.message;
  const message = isServers
    ? [el("span", { say: "error.server" }), " ", el("bdi", { lang: "en", dir: "ltr" }, error.message)]
    : el("span", { say: error.sentence ?? SENTENCES[error.status] ?? "error.unknown" });
  const hasHint = isServers && error.hint && !/--|octavo /.test(error.hint);
  const hint = () => [el("span", { say: "error.try" }), " ", el("code", { dir: "ltr" }, error.hint)];
  return el(
    "div",
    { class: "problem", role: "alert" },
    el("p", {}, el("strong", { say: "error.title" }), " ", message),
    hasHint && el("p", { class: "quiet" }, hint()),
  );
}
