// A field in which the reader pastes a text of their own, as a table of a training lab.
import { h } from "./dom.mjs";
import { charactersOf, listUnknown, windowsOf } from "./text.mjs";

const MOST_PASTED = 300_000; // characters; of a longer text the beginning is taken

// The text -> {rows, note} with what the reader should know, or {rows: null, note}
export function readText(text, chars, width) {
  const { tokens, unknown } = charactersOf(text.slice(0, MOST_PASTED), chars);
  const notes = [];
  if (text.length > MOST_PASTED) notes.push(`Only the first ${MOST_PASTED.toLocaleString("en-GB")} characters are taken.`);
  if (unknown.size) notes.push(`Left out, as the model has no number for them: ${listUnknown(unknown)}.`);
  const rows = windowsOf(tokens, width);
  if (!rows) {
    notes.unshift(`This text gives ${tokens.length} characters; the model needs at least ${width}.`);
    return { rows, count: tokens.length, note: notes.join(" ") };
  }
  return { rows, count: tokens.length, note: notes.join(" ") };
}

// `use(rows, count, note)` and `leave()` are called when the reader is done
export function makePaste({ label, chars, width }, uid, { say, use, leave }) {
  const area = h("textarea", { id: `${uid}-paste`, rows: 6, spellcheck: "false" });
  const button = (text, onclick, more = {}) => h("button", { type: "button", onclick, ...more }, text);
  const element = h(
    "div",
    { class: "gl-paste", role: "group", "aria-label": `Your own ${label}` },
    h("label", { for: `${uid}-paste` }, `Your ${label}: at least ${width} characters, better 10,000; it stays in this page`),
    area,
    h("div", { class: "gl-buttons" }, button("Use this text", take, { class: "gl-main" }), button("Cancel", leave)),
  );
  function take() {
    const { rows, count, note } = readText(area.value, chars, width);
    if (rows) use(rows, count, note);
    else {
      say(note);
      area.focus();
    }
  }
  element.addEventListener("keydown", (event) => {
    if (event.key === "Escape") leave();
  });
  return { element, focus: () => area.focus({ preventScroll: true }) };
}
