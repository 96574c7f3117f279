// A panel of a training lab in which the present model writes: with each picture one
// token more, drawn from the probabilities that the view gave for the text so far.
import { h } from "./dom.mjs";
import { key, uniform } from "./noise.mjs";

const KEPT = 420; // characters that stay in sight

// The token at which the running sum of `probs`, sharpened by a temperature, passes u
export function pick(probs, temperature, u) {
  const sharp = Array.from(probs, (p) => p ** (1 / temperature));
  let left = u * sharp.reduce((a, b) => a + b, 0);
  for (let i = 0; i < sharp.length; i += 1) {
    left -= sharp[i];
    if (left < 0) return i;
  }
  return sharp.length - 1;
}

// The same interface as `makePanel`. `take()` gives the rows that the model has to read
// before the next picture, or null; `read(outputs, step)` draws a token from it.
export function makeTextPanel(spec, more) {
  const [layer] = spec.layers;
  const chars = [...layer.chars];
  const text = h("span", { class: "gl-own" });
  const frame = h("div", { class: "gl-frame gl-written", tabindex: 0, role: "group", "aria-label": [spec.title, spec.description].filter(Boolean).join(". ") }, text);
  const name = h("p", { class: "gl-name" }, spec.title);
  const element = h("div", { class: "gl-panel" }, name, frame, more ?? null);
  let [tokens, written, count, fresh] = [[...layer.prompt], "", 0, true];

  return {
    element,
    frame,
    name,
    extent: null,
    table: layer.table,
    place: () => [0, 0],
    size: () => [frame.clientWidth, frame.clientHeight],
    draw: () => {},
    show() {
      if (text.textContent === written) return;
      text.textContent = written;
      frame.scrollTop = frame.scrollHeight;
    },
    take() {
      if (!fresh) return null;
      fresh = false;
      return { data: Float32Array.from(tokens), shape: [1, tokens.length] };
    },
    read(outputs, seed) {
      const { data, shape } = outputs[layer.value];
      const probs = data.subarray((shape[0] - 1) * shape[1], shape[0] * shape[1]);
      count += 1;
      const token = pick(probs, layer.temperature, uniform(key(seed, "written", count), 0));
      tokens = [...tokens.slice(1), token];
      written = (written + chars[token]).slice(-KEPT);
      fresh = true;
    },
    words: () => written.slice(-80),
    reset() {
      [tokens, written, count, fresh] = [[...layer.prompt], "", 0, true];
      text.textContent = "";
    },
    copy: () => ({ written }),
    paste(copy) {
      written = copy.written;
      text.textContent = written;
    },
  };
}
