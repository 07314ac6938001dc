// Local and session storage. A browser may refuse both; then nothing is kept and nothing fails.

export function readStorage(key, area = "localStorage") {
  try {
    return window[area].getItem(key);
  } catch {
    return null;
  }
}

export function writeStorage(key, value, area = "localStorage") {
  try {
    window[area].setItem(key, value);
  } catch {
    // The browser refuses storage.
  }
}
