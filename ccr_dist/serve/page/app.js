// The page: what is asked for (in the address, so that Back, reload and links work), and what is shown of it.

import * as api from "./api.js";
import { Detail } from "./detail.js";
import { Filters } from "./filters.js";
import { fill, navigate, wait } from "./grid.js";
import { Chips, languageName } from "./languages.js";

const FIRST = 30; // hits that are asked for at once
const find = (id) => document.getElementById(id);
const query = find("query");
let info = null;
let request = null; // the search that is under way
let picture = null; // a file that is searched with
let answers = []; // of each index
let shown = ""; // what `answers` are the answers to

// State: {q, lang, where: ["label=value"], via: "" | "only" | "average", item: [index, number] | null}

function state() {
  const words = new URLSearchParams(location.hash.slice(1));
  const item = /^(\d+)\.(\d+)$/.exec(words.get("item") ?? "");
  const via = ["only", "average"].find((way) => way === words.get("via")) ?? "";
  return { q: words.get("q") ?? "", lang: words.get("lang") ?? "", where: words.getAll("where"), via, item: item ? [Number(item[1]), Number(item[2])] : null };
}

function go({ q, lang, where, via, item }, { replace = false, depth = 0 } = {}) {
  const words = new URLSearchParams();
  if (q) words.set("q", q);
  if (lang) words.set("lang", lang);
  for (const word of where) words.append("where", word);
  if (via) words.set("via", via);
  if (item) words.set("item", item.join("."));
  const text = words.toString();
  history[replace ? "replaceState" : "pushState"]({ depth }, "", text ? `#${text}` : location.pathname);
  render();
}

function render() {
  const now = state();
  if (!picture) query.value = now.q;
  chips.value = now.lang;
  filters.value = now;
  document.title = now.q ? `${now.q} · Picture search` : "Picture search";
  find("clear").hidden = !(query.value || picture);
  const wanted = JSON.stringify([picture ? "picture" : now.q, now.lang, now.where, now.via]);
  if (wanted !== shown) {
    shown = wanted;
    if (now.q || picture) search(now, FIRST); else welcome();
  }
  if (now.item && info.indexes[now.item[0]]) showItem(...now.item); else if (detail.open) closeItem();
}

// Searching.

async function search({ q, lang, where, via }, k) {
  request?.abort();
  const { signal } = (request = new AbortController());
  const before = k > FIRST;
  message(null);
  find("columns").setAttribute("aria-busy", "true");
  chips.detected(null);
  const slow = setTimeout(() => { if (!before) columns().forEach((column) => wait(column.list, 12)); status("Searching…"); }, 120);
  const begun = performance.now();
  const asked = info.indexes.map(({ index }) =>
    (picture ? api.searchPicture(picture, { where, k, index, signal }) : api.searchText(q, { lang, where, via, k, index, signal })).catch((error) => error));
  const found = await Promise.all(asked);
  clearTimeout(slow);
  if (signal.aborted) return;
  find("columns").removeAttribute("aria-busy");
  answers = found;
  const failed = found.filter((answer) => answer instanceof Error);
  if (failed.some((error) => error.status === 401)) { askToken(); return; }
  if (failed.length === found.length) { failure(failed[0]); return; }
  const focused = document.activeElement?.closest(".tile")?.dataset.number;
  columns().forEach((column, at) => showAnswer(column, found[at], k));
  if (before && focused) document.querySelector(`#columns .tile[data-number="${focused}"]`)?.focus();
  if (detail.open) detail.place(around(...last));
  told(found.find((answer) => !(answer instanceof Error)), (performance.now() - begun) / 1000);
}

function told(answer, seconds) {
  if (answer.detected && answer.lang) chips.detected(answer.lang);
  const count = answer.hits.length;
  const words = [`${count === 1 ? "1 picture" : `${count} pictures`}`];
  if (answer.detected && answer.lang && (info.languages.length > 1 || info.anyLanguage))
    words.push(`${languageName(answer.lang, false)}, ${answer.sure ? "detected" : "not sure: choose the language if it is another one"}`);
  words.push(`${seconds.toFixed(2)} s`);
  status(words.join(" · "));
}

function showAnswer(column, answer, k) {
  column.notes.replaceChildren();
  column.more.hidden = true;
  if (answer instanceof Error) {
    fill(column.list, column.index, [], () => {});
    note(column, answer.message, true);
    return;
  }
  for (const text of answer.notes) note(column, text);
  fill(column.list, column.index, answer.hits, (hit) => open(column.index, hit.number));
  const most = Math.min(info.limits.hits, info.indexes[column.index].items);
  column.more.hidden = answer.hits.length < k || k >= most;
  column.more.firstChild.onclick = () => search(state(), Math.min(k * 2, most));
}

function note(column, text, wrong = false) {
  column.notes.append(Object.assign(document.createElement("p"), { className: wrong ? "note wrong" : "note", textContent: text }));
}

function status(text) { find("status").textContent = text; }

// One column an index, made once.
const columns = (() => {
  let made = null;
  return () => {
    if (made) return made;
    made = info.indexes.map((about) => {
      const section = document.createElement("section");
      const several = info.indexes.length > 1;
      section.setAttribute("aria-label", several ? `Results of ${about.model} in ${about.name}` : "Results");
      if (several) {
        section.append(Object.assign(document.createElement("h2"), { textContent: about.model }));
        section.append(Object.assign(document.createElement("p"), { className: "under", textContent: about.name }));
      }
      const notes = document.createElement("div");
      const list = Object.assign(document.createElement("ol"), { className: "grid" });
      const more = Object.assign(document.createElement("div"), { className: "more", hidden: true });
      more.append(Object.assign(document.createElement("button"), { className: "plain", type: "button", textContent: "Show more" }));
      section.append(notes, list, more);
      return { index: about.index, section, notes, list, more };
    });
    const grids = made.map((column) => column.list);
    for (const list of grids) {
      navigate(list, (own, step) => grids[grids.indexOf(own) + Math.sign(step)] ?? null);
      for (const [event, on] of [["mouseover", true], ["mouseout", false], ["focusin", true], ["focusout", false]])
        if (grids.length > 1) list.addEventListener(event, ({ target }) => twins(target.closest(".tile"), on));
    }
    find("columns").classList.toggle("two", made.length > 1);
    find("columns").append(...made.map((column) => column.section));
    return made;
  };
})();

// The same picture in the answers of the other models.
function twins(tile, on) {
  if (!tile) return;
  for (const other of document.querySelectorAll("#columns .tile"))
    if (other !== tile && other.dataset.key === tile.dataset.key) other.classList.toggle("twin", on);
}

// One picture.

const detail = new Detail({
  moved: (step) => {
    const { item } = state();
    const at = place(...item);
    const next = answers[item[0]]?.hits?.[at + step];
    if (at >= 0 && next) go({ ...state(), item: [item[0], next.number] }, { replace: true, depth: history.state?.depth ?? 0 });
  },
  chosen: (index, hit) => open(index, hit.number),
  back: () => history.back(),
  closed: () => {
    const depth = history.state?.depth ?? 0;
    if (depth) history.go(-depth); else go({ ...state(), item: null }, { replace: true });
  },
});

function open(index, number) {
  go({ ...state(), item: [index, number] }, { depth: (history.state?.depth ?? 0) + 1 });
}

const place = (index, number) => (answers[index]?.hits ?? []).findIndex((hit) => hit.number === number);
let last = null; // the picture that was open

function around(index, number) {
  const hits = answers[index]?.hits ?? [];
  const at = place(index, number);
  const text = at < 0 ? "" : `${at + 1} of ${hits.length} · score ${hits[at].score.toFixed(3)}`;
  return { text, before: at > 0, after: at >= 0 && at < hits.length - 1, deep: (history.state?.depth ?? 0) > 1 };
}

function showItem(index, number) {
  last = [index, number];
  detail.show(index, number, around(index, number));
}

function closeItem() {
  detail.close();
  const list = last && columns()[last[0]]?.list;
  (list?.querySelector(`[data-number="${last[1]}"]`) ?? list?.querySelector(".tile[tabindex='0']") ?? query).focus();
}

// Other states of the page.

function message(title, text = "", action = null) {
  const box = find("message");
  box.hidden = !title;
  find("columns").hidden = Boolean(title);
  find("token").hidden = true;
  box.replaceChildren();
  if (!title) return box;
  box.append(Object.assign(document.createElement("h1"), { textContent: title }), Object.assign(document.createElement("p"), { textContent: text }));
  if (action) {
    const button = Object.assign(document.createElement("button"), { className: "plain", type: "button", textContent: action[0] });
    button.addEventListener("click", action[1]);
    box.append(button);
  }
  return box;
}

function welcome() {
  request?.abort();
  answers = [];
  status("");
  chips.detected(null);
  const items = info.indexes.reduce((sum, about) => Math.max(sum, about.items), 0);
  if (!items) { message("This index is empty", "`ccr-dist index` puts pictures into it."); return; }
  const names = info.languages.map((tag) => languageName(tag, false));
  if (info.anyLanguage) names.push("any other language");
  const list = new Intl.ListFormat("en", { type: "disjunction" }).format(names);
  const box = message(`Search in ${items.toLocaleString("en")} pictures`, `Write what is to be seen in ${list}, or drop a picture.`);
  const keys = Object.assign(document.createElement("p"), { className: "keys" });
  const key = (name) => Object.assign(document.createElement("kbd"), { textContent: name });
  keys.append(key("/"), " to write, ", key("Enter"), " to search, arrows to move, ", key("Esc"), " to go back");
  box.append(keys);
}

function failure(error) {
  status("");
  if (error.status === 0) message("No answer", error.message, ["Try again", again]);
  else if (error.status === 503) message("Busy", error.message, ["Try again", again]);
  else message("This cannot be searched for", error.message);
}

function again() { shown = ""; if (info) render(); else start(); }

function askToken() {
  message(null);
  find("columns").hidden = true;
  find("search").inert = true;
  find("token").hidden = false;
  find("token-text").focus();
}

find("token").addEventListener("submit", async (event) => {
  event.preventDefault();
  find("token-wrong").textContent = "";
  try {
    await api.session(find("token-text").value.trim());
    find("token-text").value = "";
    find("token").hidden = true;
    find("search").inert = false;
    shown = "";
    if (info) render(); else await start();
  } catch (error) {
    find("token-wrong").textContent = error.status === 401 ? "This is not the token." : error.message;
  }
});

// What people do.

function submit(lang = chips.value) {
  const q = query.value.trim();
  if (picture && !q) { shown = ""; render(); return; }
  drop(null);
  shown = "";
  go({ q, lang, ...filters.value, item: null });
}

function drop(file) {
  const image = find("asked-with").firstElementChild;
  if (image.src) URL.revokeObjectURL(image.src);
  image.removeAttribute("src");
  picture = file;
  find("asked-with").hidden = !file;
  query.placeholder = file ? "" : "Describe a picture";
  if (!file) return;
  if (file.size > info.limits.bytes) {
    drop(null);
    message("This picture is too large", `${(file.size / 1e6).toFixed(0)} MB; at most ${(info.limits.bytes / 1e6).toFixed(0)} MB.`);
    return;
  }
  image.src = URL.createObjectURL(file);
  shown = "";
  go({ q: "", lang: chips.value, ...filters.value, item: null });
}

const filters = new Filters(find("filters"), () => {
  if (picture || query.value.trim()) go({ ...state(), q: picture ? "" : query.value.trim(), ...filters.value, item: null });
});
const chips = new Chips(find("languages"), (lang) => { if (query.value.trim() && !picture) submit(lang); });
find("search").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
find("clear").addEventListener("click", () => { query.value = ""; drop(null); go({ q: "", lang: chips.value, ...filters.value, item: null }); query.focus(); });
query.addEventListener("input", () => { find("clear").hidden = !(query.value || picture); });
query.addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown") { event.preventDefault(); document.querySelector("#columns .tile[tabindex='0']")?.focus(); }
});
find("file").addEventListener("change", ({ target }) => { if (target.files[0]) drop(target.files[0]); target.value = ""; });
document.addEventListener("paste", ({ clipboardData }) => {
  const file = [...(clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
  if (file && info) drop(file);
});
for (const name of ["dragenter", "dragover"])
  document.addEventListener(name, (event) => { if (event.dataTransfer?.types.includes("Files")) { event.preventDefault(); find("drop").hidden = false; } });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) find("drop").hidden = true; });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  find("drop").hidden = true;
  const file = event.dataTransfer?.files[0];
  if (file && info) drop(file);
});
document.addEventListener("keydown", (event) => {
  if (detail.open || event.altKey || event.ctrlKey || event.metaKey) return;
  const writing = event.target.matches("input[type=search], input[type=password]");
  if (event.key === "/" && !writing) { event.preventDefault(); query.focus(); query.select(); }
  if (event.key === "Escape" && document.activeElement?.closest(".tile")) query.focus();
});
addEventListener("popstate", () => { if (info) render(); });
addEventListener("scroll", () => find("search").closest("header").classList.toggle("scrolled", scrollY > 4), { passive: true });

// Labels of many pictures take a while to be read: the page does not wait for them.
async function chooseLabels() {
  const found = await Promise.all(info.indexes.map(({ index }) => api.labels(index).catch(() => [])));
  filters.show(found, [...new Set(info.indexes.flatMap((about) => about.english))]);
  filters.value = state();
}

async function start() {
  try {
    info = await api.info();
  } catch (error) {
    if (error.status === 401) askToken(); else message("No answer", error.message, ["Try again", again]);
    return;
  }
  api.startedAt(info.started);
  info.languages = [...new Set(info.indexes.flatMap((about) => about.languages))];
  info.anyLanguage = info.indexes.every((about) => about.any_language);
  chips.show(info.languages);
  filters.show([], [...new Set(info.indexes.flatMap((about) => about.english))]);
  chooseLabels();
  find("about").textContent = info.indexes.map((about) => `${about.name}: ${about.items.toLocaleString("en")} pictures, model ${about.model}`).join(" · ");
  columns();
  history.replaceState({ depth: 0 }, "");
  render();
  if (!state().q && matchMedia("(hover: hover)").matches) query.focus();
}

start();
