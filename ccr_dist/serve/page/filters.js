// Choices beside the language: labels of the pictures, and whether queries are asked by way of English.

const ways = [["", "As written"], ["only", "In English"], ["average", "Both, averaged"]];

function option(value, text) {
  return Object.assign(document.createElement("option"), { value, textContent: text });
}

export class Filters {
  constructor(element, chosen) {
    this.element = element;
    element.addEventListener("change", chosen);
  }

  // labels: of each index [{name, values: {value: items}}]; english: languages that can be translated.
  show(labels, english) {
    const values = new Map();
    for (const { name, values: known } of labels.flat()) {
      const all = values.get(name) ?? new Map();
      for (const [value, items] of Object.entries(known)) all.set(value, Math.max(items, all.get(value) ?? 0));
      values.set(name, all);
    }
    const made = [];
    for (const [name, known] of values)
      if (known.size > 1)
        made.push(this.#choice("label", name, name, [["", `Any ${name}`], ...[...known].map(([value, items]) =>
          [`=${value}`, `${value || "(top)"} (${items.toLocaleString("en")})`])]));
    if (english.length) made.push(this.#choice("english", "", "How the query is asked", ways));
    this.element.replaceChildren(...made);
    this.element.hidden = !made.length;
  }

  #choice(kind, name, title, choices) {
    const label = document.createElement("label");
    const select = document.createElement("select");
    select.dataset.kind = kind;
    select.dataset.name = name;
    select.setAttribute("aria-label", title);
    select.append(...choices.map(([value, text]) => option(value, text)));
    label.append(select);
    return label;
  }

  get #selects() { return [...this.element.querySelectorAll("select")]; }

  // {where: ["folder=below"], via: "average"}
  get value() {
    const chosen = this.#selects.filter((select) => select.value);
    return {
      where: chosen.filter((select) => select.dataset.kind === "label").map((select) => select.dataset.name + select.value),
      via: chosen.find((select) => select.dataset.kind === "english")?.value ?? "",
    };
  }

  set value({ where, via }) {
    for (const select of this.#selects) {
      const label = where.find((word) => word.startsWith(`${select.dataset.name}=`));
      const wanted = select.dataset.kind === "english" ? via : label?.slice(select.dataset.name.length) ?? "";
      select.value = [...select.options].some(({ value }) => value === wanted) ? wanted : "";
    }
  }
}
