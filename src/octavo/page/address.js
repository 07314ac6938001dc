// The page's address: the tab, a subpath if the tab has any, and what the user has chosen:
//   #walk/6?model=my-1&step=500&text=The+king&layer=2&head=1&position=3
// It is kept current, so a reload, a bookmark or a copied link shows the same.

const NUMBERS = ["step", "layer", "head", "position"];
const MAX_TEXT = 2000; // characters; a longer text isn't in the address

export const fitsInAddress = (text) => text.length <= MAX_TEXT;

// {tab, subpath, choices}; `choices` has those of model, step, text, layer, head and position that the address names.
export function parseAddress(hash = location.hash) {
  const [path, query = ""] = hash.slice(1).split(/\?(.*)/s);
  const [tab, subpath = ""] = path.split("/");
  const choices = Object.fromEntries(new URLSearchParams(query));
  for (const name of NUMBERS) {
    if (!(name in choices)) continue;
    if (/^\d{1,9}$/.test(choices[name])) choices[name] = Number(choices[name]);
    else delete choices[name];
  }
  return { tab, subpath, choices };
}

export function formatAddress({ tab, subpath, choices }) {
  const query = new URLSearchParams();
  for (const name of ["model", ...NUMBERS, "text"]) {
    const value = choices[name] ?? null;
    if (value !== null && value !== "" && (name !== "text" || fitsInAddress(value))) query.set(name, value);
  }
  return `#${tab}${subpath ? `/${subpath}` : ""}${query.size ? `?${query}` : ""}`;
}
