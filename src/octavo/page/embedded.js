// The data of a page that was exported as one file (octavo inspect --html): {text, models, answers, i18n}. Null on a
// served page.

const element = document.getElementById("octavo-static");

export const embedded = element ? JSON.parse(element.textContent) : null;
