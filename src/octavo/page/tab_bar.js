// The tabs and their panels. The address names the tab, and a subpath if the tab has any (octavo/address).
//
// Each tab is a module octavo/tabs/<id> with
//   mount(panel, app) -> {update(), show?(), hide?(), onSubpath?(subpath)}
// The module is loaded, with its sentences, when the tab is first opened. `update()` is called after a change of model,
// step, text or language: at once on the open tab, on any other tab when it is opened next. `onSubpath(subpath)` is
// called when the address changes.

import { formatAddress, parseAddress } from "octavo/address";
import { arrowDirection, el } from "octavo/dom";
import { showError } from "octavo/error_box";
import { loadSentences } from "octavo/i18n";

const ADDRESS_DELAY = 400; // milliseconds

// `ids` are the tabs, in order. Callbacks: `findProblem(id)` returns an error to show instead of the tab, or null;
// `onOpen(id)` is called when a tab opens, `onUpdate()` after each update of a tab.
export function createTabBar(ids, app, { findProblem, onOpen, onUpdate }) {
  const tabs = new Map(ids.map((id) => [id, createTab(id, () => navigateTo(id))]));
  let openId = null;
  const list = el(
    "div",
    { role: "tablist", class: "tabs", labelKey: "header.tabs" },
    [...tabs.values()].map((tab) => tab.button),
  );
  const panels = el(
    "main",
    { id: "main" },
    [...tabs.values()].map((tab) => tab.panel),
  );

  list.addEventListener("keydown", (event) => {
    const current = ids.indexOf(openId);
    const step = arrowDirection(event.key);
    const index = step ? (current + step + ids.length) % ids.length : { Home: 0, End: ids.length - 1 }[event.key];
    if (index === undefined) return;
    event.preventDefault();
    navigateTo(ids[index]);
    tabs.get(ids[index]).button.focus();
  });

  // ---- The address

  const addressOf = (id) => formatAddress({ tab: id, subpath: tabs.get(id).subpath, choices: app.choices() });
  let timer; // of the next update of the address

  function navigateTo(id, subpath = tabs.get(id).subpath) {
    updateAddress();
    const isOther = subpath !== tabs.get(id).subpath;
    tabs.get(id).subpath = subpath;
    if (openId !== id || isOther) history.pushState(null, "", addressOf(id));
    if (isOther) tabs.get(id).mounted?.onSubpath?.(subpath);
    openTab(id);
  }

  // Opens the tab that the address names, or the first one.
  function followAddress() {
    const { tab: id, subpath } = parseAddress();
    if (!tabs.has(id)) return openTab(ids[0]);
    const tab = tabs.get(id);
    tab.subpath = subpath;
    tab.mounted?.onSubpath?.(subpath);
    return openTab(id);
  }

  function setSubpath(id, subpath) {
    if (tabs.get(id).subpath === subpath) return;
    tabs.get(id).subpath = subpath;
    if (openId === id) updateAddress();
  }

  // Writes what is chosen into the address. Browsers limit how often that may be done, so a pointer that moves over a
  // figure must wait.
  function updateAddress() {
    clearTimeout(timer);
    timer = null;
    if (openId && location.hash !== addressOf(openId)) history.replaceState(null, "", addressOf(openId));
  }

  function scheduleAddress() {
    timer ??= setTimeout(updateAddress, ADDRESS_DELAY);
  }

  // ---- Opening and updating

  async function openTab(id) {
    if (openId === id) return;
    tabs.get(openId)?.mounted?.hide?.();
    openId = id;
    for (const [tabId, { button, panel }] of tabs) {
      button.setAttribute("aria-selected", String(tabId === id));
      button.tabIndex = tabId === id ? 0 : -1;
      panel.hidden = tabId !== id;
    }
    document.body.dataset.tab = id;
    updateAddress();
    onOpen(id);
    await mountOpenTab();
  }

  // Loads the open tab if it is new, and updates it if something has changed since it was open last.
  async function mountOpenTab() {
    const id = openId;
    const tab = tabs.get(id);
    const error = findProblem(id);
    showError(tab.panel, error);
    if (error) return;
    try {
      tab.loading ??= loadTab(id, tab);
      await tab.loading;
      if (openId !== id) return;
      tab.mounted.show?.();
      if (!tab.isStale) return;
      tab.isStale = false;
      await tab.mounted.update();
      await onUpdate();
    } catch (error) {
      showError(tab.panel, error);
    }
  }

  async function loadTab(id, tab) {
    const [module] = await Promise.all([import(`octavo/tabs/${id}`), loadSentences(id)]);
    tab.mounted = module.mount(tab.panel, app);
  }

  // The open tab has changed a choice itself; all others must follow when they are opened.
  function markOthersStale() {
    for (const [id, tab] of tabs) if (id !== openId) tab.isStale = true;
  }

  // Resolves when the open tab is up to date.
  async function updateAll() {
    for (const [id, tab] of tabs) tab.isStale = id !== openId || !tab.mounted;
    const open = tabs.get(openId);
    if (open && !open.isStale) await updateTab(open);
  }

  async function updateTab({ mounted, panel }) {
    try {
      await mounted.update();
    } catch (error) {
      showError(panel, error);
    }
    await onUpdate();
  }

  return {
    list,
    panels,
    followAddress,
    getSubpath: (id) => tabs.get(id).subpath,
    setSubpath,
    navigateTo,
    updateAddress,
    scheduleAddress,
    mountOpenTab,
    markOthersStale,
    updateAll,
    openId: () => openId,
    panelOf: (id) => tabs.get(id)?.panel,
  };
}

function createTab(id, onclick) {
  const button = el("button", {
    role: "tab",
    id: `tab-${id}`,
    "aria-controls": `panel-${id}`,
    type: "button",
    textKey: `tab.${id}`,
    onclick,
  });
  const panel = el("section", {
    role: "tabpanel",
    id: `panel-${id}`,
    "aria-labelledby": `tab-${id}`,
    hidden: true,
    tabindex: "-1",
    class: `panel ${id}`,
  });
  return { button, panel, mounted: null, loading: null, isStale: true, subpath: "" };
}
