// All addresses that the page requests. They are relative to the page's own, so that it works below a path too, such as
// that of a proxy: https://host/octavo/.

// A file of the page: fileUrl("vendor/uPlot.iife.min.js").
export const fileUrl = (name) => new URL(`page/${name}`, document.baseURI).href;

// A path of the API: apiUrl("lens/shapes").
export const apiUrl = (path) => new URL(path, document.baseURI).href;
