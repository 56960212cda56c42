// Grids of pictures: one stop of the tabulator, arrows inside.

import * as api from "./api.js";

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

const baseName = (name) => name.split("/").pop();

// hit: {rank, score, number, name}. chosen(hit, tile) is called for a click or Enter.
export function tile(index, hit, chosen) {
  const place = element("li");
  const button = element("button", "tile");
  button.type = "button";
  button.title = hit.name;
  button.dataset.key = hit.key;
  button.dataset.number = hit.number;
  const frame = element("span", "frame");
  const image = Object.assign(element("img"), { alt: "", loading: "lazy", decoding: "async" });
  image.src = api.picture(index, hit.number);
  image.addEventListener("error", () => { image.remove(); frame.append(element("span", "gone", "No picture")); });
  frame.append(image);
  const words = element("span", "words");
  words.append(element("span", "name", baseName(hit.name)), element("span", "score", hit.score.toFixed(3)));
  words.firstChild.dir = "auto";
  button.setAttribute("aria-label", `${hit.rank}. ${baseName(hit.name)}, score ${hit.score.toFixed(3)}`);
  button.append(frame, words);
  button.addEventListener("click", () => chosen(hit, button));
  place.append(button);
  return place;
}

export function fill(list, index, hits, chosen) {
  list.classList.remove("waiting");
  list.removeAttribute("aria-hidden");
  list.replaceChildren(...hits.map((hit) => tile(index, hit, chosen)));
  list.querySelectorAll(".tile").forEach((button, at) => { button.tabIndex = at ? -1 : 0; });
}

// Places for pictures that are not known yet.
export function wait(list, count) {
  list.classList.add("waiting");
  list.setAttribute("aria-hidden", "true");
  list.replaceChildren(...Array.from({ length: count }, () => {
    const place = element("li");
    const empty = element("div", "tile");
    empty.append(element("span", "frame"), element("span", "words"));
    place.append(empty);
    return place;
  }));
}

// Arrow keys, Home and End in a grid; beside(list, step) is the grid to the left or right, if any.
export function navigate(list, beside = () => null) {
  list.addEventListener("focusin", (event) => only(list, event.target.closest(".tile")));
  list.addEventListener("keydown", (event) => {
    const tiles = [...list.querySelectorAll("button.tile")];
    const at = tiles.indexOf(document.activeElement);
    if (at < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const columns = tiles.filter((other) => other.offsetTop === tiles[0].offsetTop).length || 1;
    const rightward = getComputedStyle(list).direction === "rtl" ? -1 : 1;
    const steps = { ArrowRight: rightward, ArrowLeft: -rightward, ArrowDown: columns, ArrowUp: -columns, Home: -at, End: tiles.length - 1 - at };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const step = steps[event.key];
    const edge = Math.abs(step) === 1 && Math.floor(at / columns) !== Math.floor((at + step) / columns);
    const other = edge || (Math.abs(step) === 1 && !tiles[at + step]) ? beside(list, step) : null;
    if (other) {
      const there = [...other.querySelectorAll("button.tile")];
      const row = Math.floor(at / columns);
      const theirs = there.filter((each) => each.offsetTop === there[0].offsetTop).length || 1;
      there[Math.min(row * theirs + (step > 0 ? 0 : theirs - 1), there.length - 1)]?.focus();
    } else {
      tiles[at + step]?.focus();
    }
  });
}

function only(list, tile) {
  if (!tile) return;
  for (const other of list.querySelectorAll(".tile")) other.tabIndex = other === tile ? 0 : -1;
}
