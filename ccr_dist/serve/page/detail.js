// One picture: its file name, captions in all languages, and pictures that look like it.

import * as api from "./api.js";
import { fill, navigate, wait } from "./grid.js";
import { languageCode, languageName } from "./languages.js";

const SIMILAR = 12;
const find = (id) => document.getElementById(id);

export class Detail {
  // moved(step): to the result before or after; chosen(index, hit): a similar picture; back(), closed().
  constructor({ moved, chosen, back, closed }) {
    this.dialog = find("detail");
    this.chosen = chosen;
    find("close").addEventListener("click", closed);
    find("back").addEventListener("click", back);
    find("previous").addEventListener("click", () => moved(-1));
    find("next").addEventListener("click", () => moved(1));
    this.dialog.addEventListener("cancel", (event) => { event.preventDefault(); closed(); });
    this.dialog.addEventListener("click", (event) => { if (event.target === this.dialog) closed(); });
    document.addEventListener("keydown", (event) => {
      if (!this.dialog.open || event.target.closest(".grid") || event.altKey || event.ctrlKey || event.metaKey) return;
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) { event.preventDefault(); moved(step); }
    });
    navigate(find("similar"));
    find("large").addEventListener("error", () => this.large("No picture can be shown of this file."));
  }

  large(alt) {
    return Object.assign(find("large"), { alt });
  }

  // item: a video that can be played, or null.
  film(item) {
    const film = find("film");
    find("large").hidden = Boolean(item);
    film.hidden = !item;
    if (!item) { film.pause(); film.removeAttribute("src"); return; }
    film.poster = api.picture(item.index, item.number, "large");
    film.src = api.original(item.index, item.number);
    film.setAttribute("aria-label", item.name);
  }

  get open() { return this.dialog.open; }

  close() {
    this.request?.abort();
    this.film(null);
    if (this.dialog.open) this.dialog.close();
  }

  // {text, before, after, deep}: where the picture is among the results.
  place({ text, before, after, deep }) {
    find("back").hidden = !deep;
    find("previous").disabled = !before;
    find("next").disabled = !after;
    find("detail-place").textContent = text;
  }

  async show(index, number, place) {
    this.request?.abort();
    const { signal } = (this.request = new AbortController());
    this.place(place);
    if (!this.dialog.open) {
      this.dialog.showModal();
      this.dialog.focus();
    }
    this.dialog.scrollTop = 0;
    find("detail-name").textContent = "…";
    find("detail-facts").textContent = "";
    find("captions").replaceChildren();
    find("original").href = api.original(index, number);
    this.large("").src = api.picture(index, number, "large");
    this.film(null);
    wait(find("similar"), SIMILAR);
    const focused = document.activeElement; // it may be gone, or have nothing to do any more
    if (!this.dialog.contains(focused) || focused.disabled) this.dialog.focus();
    await Promise.all([this.facts(index, number, signal), this.others(index, number, signal)]);
  }

  async facts(index, number, signal) {
    try {
      const item = await api.item(index, number, signal);
      find("detail-name").textContent = item.name.split("/").pop();
      const folder = item.name.includes("/") ? item.name.slice(0, item.name.lastIndexOf("/")) : "";
      find("detail-facts").textContent = [folder, item.kind === "video" ? "video" : ""].filter(Boolean).join(" · ");
      if (item.kind === "video") this.film(item);
      const first = Object.values(item.captions)[0]?.[0];
      this.large(first ? `${item.name}: ${first}` : item.name);
      const captions = Object.entries(item.captions).map(([tag, texts]) => [languageName(tag), texts, languageCode(tag)]);
      const labels = Object.entries(item.labels).filter(([, value]) => value !== "").map(([column, value]) => [column, [value], ""]);
      if (captions.length || labels.length) find("captions").replaceChildren(table([...captions, ...labels]));
    } catch (error) {
      if (error.name !== "AbortError") find("detail-name").textContent = error.message;
    }
  }

  async others(index, number, signal) {
    const list = find("similar");
    try {
      const answer = await api.similar(index, number, SIMILAR, signal);
      fill(list, index, answer.hits, (hit) => this.chosen(index, hit));
      find("similar").parentElement.hidden = answer.hits.length === 0;
    } catch (error) {
      if (error.name === "AbortError") return;
      fill(list, index, [], () => {});
      list.append(Object.assign(document.createElement("li"), { className: "quiet", textContent: error.message }));
    }
  }
}

// Texts are only ever text: nothing in a caption is markup.
function table(rows) {
  const list = document.createElement("dl");
  for (const [name, texts, lang] of rows) {
    list.append(Object.assign(document.createElement("dt"), { textContent: name, lang }));
    for (const [at, text] of texts.entries()) {
      if (at) list.append(document.createElement("dt"));
      list.append(Object.assign(document.createElement("dd"), { textContent: text, lang, dir: "auto" }));
    }
  }
  return list;
}
