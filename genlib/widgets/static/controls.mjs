// Controls for the numbers that the reader sets while a program trains.
import { clamp, h } from "./dom.mjs";

const NOTCHES = 400; // of a slider that is no integer

// Position 0..1 on a slider -> value, at three significant digits, and back
export function fromNotch(t, { min, max, log, integer }) {
  const value = log ? min * (max / min) ** t : min + t * (max - min);
  if (integer) return Math.round(value);
  const digits = log ? value : max - min;
  const decimals = clamp(2 - Math.floor(Math.log10(Math.abs(digits) || 1)), 0, 12);
  return clamp(Number(value.toFixed(decimals)), min, max);
}

export function toNotch(value, { min, max, log }) {
  return log ? Math.log(value / min) / Math.log(max / min) : (value - min) / (max - min);
}

// "0.002", "1e-3", "−1,5" -> number, or null
export function readNumber(text) {
  const plain = text.trim().replace("−", "-").replace(",", ".");
  return plain !== "" && Number.isFinite(Number(plain)) ? Number(plain) : null;
}

// What a typed value becomes: {value, note}; it cannot leave the range
export function typed(text, { label, min, max, integer = false }, before) {
  const number = readNumber(text);
  if (number === null) return { value: before, note: `${label}: “${text.trim()}” is not a number; it stays ${plain(before)}.` };
  const value = clamp(integer ? Math.round(number) : number, min, max);
  if (value < number && value === max) return { value, note: `${label}: ${plain(max)} is the most.` };
  if (value > number && value === min) return { value, note: `${label}: ${plain(min)} is the least.` };
  if (value !== number) return { value, note: `${label} is a whole number: ${plain(value)}.` };
  return { value, note: "" };
}

export function plain(value) {
  if (Number.isInteger(value)) return String(value).replace("-", "−");
  return String(Number(value.toPrecision(6))).replace("-", "−");
}

// A slider with its number beside it; `changed()` after each move, `say(text)` in words
export function makeSlider(control, uid, changed, say) {
  const { name, label, min, max, integer } = control;
  let value = control.value;
  const notches = integer && !control.log ? max - min : NOTCHES;
  const range = h("input", {
    type: "range",
    id: `${uid}-${name}`,
    min: 0,
    max: notches,
    step: 1,
    oninput: () => set(fromNotch(Number(range.value) / notches, control)),
  });
  const field = h("input", {
    type: "text",
    class: "gl-typed",
    inputmode: "decimal",
    autocomplete: "off",
    "aria-label": `${label}, as a number`,
    onchange: () => {
      const read = typed(field.value, control, value);
      say(read.note);
      set(read.value);
    },
  });
  function show() {
    const notch = String(Math.round(notches * toNotch(value, control)));
    if (range.value !== notch) range.value = notch;
    range.setAttribute("aria-valuetext", plain(value));
    field.value = plain(value);
  }
  function set(next) {
    const moved = next !== value;
    value = next;
    show();
    if (moved) changed();
  }
  show();
  const element = h("div", { class: "gl-control" }, h("label", { for: `${uid}-${name}` }, label), range, field);
  return { name, element, value: () => value, restore: () => set(control.value) };
}

export function makeChoice({ name, label, options, value: first = 0 }, uid, changed) {
  const select = h("select", { id: `${uid}-${name}`, onchange: changed }, options.map((option, k) => h("option", { value: k }, option)));
  select.value = first;
  const element = h("div", { class: "gl-control" }, h("label", { for: `${uid}-${name}` }, label), select);
  function restore() {
    if (Number(select.value) === first) return;
    select.value = first;
    changed();
  }
  return { name, element, value: () => Number(select.value), restore };
}
