// Names of languages in themselves, and the chips to choose one.

// Captions may be named by language and by what made them: "es.apertium".
export function languageName(tag, own = true) {
  const [code, ...made] = tag.split(".");
  let name = code;
  try {
    name = new Intl.DisplayNames([own ? code : "en"], { type: "language" }).of(code) ?? code;
  } catch { /* not a tag that browsers know: it is shown as it is */ }
  name = name.charAt(0).toLocaleUpperCase(code.length < 4 ? code : undefined) + name.slice(1);
  return made.length ? `${name} (${made.join(".")})` : name;
}

export const languageCode = (tag) => tag.split(".")[0];

export class Chips {
  constructor(element, chosen) {
    this.element = element;
    element.addEventListener("change", () => chosen(this.value));
  }

  show(languages) {
    const choices = [["", "Any language"], ...languages.map((tag) => [tag, languageName(tag)])];
    this.element.append(...choices.map(([tag, name]) => {
      const label = document.createElement("label");
      const input = Object.assign(document.createElement("input"), { type: "radio", name: "lang", value: tag, checked: tag === "" });
      const span = Object.assign(document.createElement("span"), { textContent: name });
      if (tag) span.lang = tag;
      label.append(input, span);
      label.dataset.lang = tag;
      return label;
    }));
    this.element.hidden = languages.length < 2;
  }

  get value() { return this.element.querySelector("input:checked")?.value ?? ""; }

  set value(tag) {
    const inputs = [...this.element.querySelectorAll("input")];
    (inputs.find((input) => input.value === tag) ?? inputs[0]).checked = true;
  }

  // Marks the language in which a query was understood.
  detected(tag) {
    for (const label of this.element.querySelectorAll("label")) {
      const found = Boolean(tag) && label.dataset.lang === tag;
      label.classList.toggle("detected", found);
      label.querySelector("small")?.remove();
      if (found) label.querySelector("span").append(Object.assign(document.createElement("small"), { textContent: "detected", lang: "en" }));
    }
  }
}
