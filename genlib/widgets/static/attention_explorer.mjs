// The attention explorer: a text, and where each of its characters looks, head by head.
// It draws; an engine (the kernel, or the page's own) runs the model.
import { LostKernel, kernelEngine, newestOnly } from "./engine.mjs";
import { clamp, contrast, h, onTheme, pageColours, rgb, sheet } from "./dom.mjs";

const QUIET_MS = 500; // stillness after which a screen reader is told
const SHADES = { light: ["#93c4ea", "#1f3f7a"], dark: ["#1f567f", "#bfe0fa"] }; // under text, in maps
const SWITCHES = [
  ["mask", "causal mask", "May a character look only at itself and what came before?"],
  ["scale", "scale 1/√d", "Are the scores divided by the root of the head's width?"],
  ["positions", "positions", "Are queries and keys turned by their place?"],
];

// What a typed text becomes: {text, tokens} or {note}
export function readText(typed, { chars, block, lower }) {
  const text = lower ? typed.toLowerCase() : typed;
  const letters = [...text];
  const strange = letters.find((c) => !chars.includes(c));
  if (strange !== undefined) {
    return { note: `${quoted(strange)} is not among the ${[...chars].length} characters that this model knows: ${[...chars].filter((c) => c !== " ").join(" ")} and the space. The picture below is still that of the text before.` };
  }
  if (letters.length > block) {
    return { note: `${letters.length} characters; this model sees ${block} at once: leave out ${letters.length - block}. The picture below is still that of the text before.` };
  }
  if (letters.length < 2) return { note: "Type at least two characters: with one there is nothing to look at." };
  return { text, tokens: letters.map((c) => [...chars].indexOf(c)) };
}

export const quoted = (c) => (c === " " ? "the space" : `“${c}”`);
export const percent = (w) => (w > 0 && w < 0.005 ? "under 1 %" : `${Math.round(100 * w)} %`);

// The n largest weights of a row, as [place, weight], the largest first
export function largest(row, n) {
  return [...row]
    .map((w, k) => [k, w])
    .sort((a, b) => b[1] - a[1])
    .slice(0, n)
    .filter(([, w], i) => i === 0 || w >= 0.05);
}

// Weights (heads, T, T) -> the row of token t in head `which`, cut to the n tokens there are
export function rowOf({ data, shape }, which, t, n, example = 0) {
  const [, heads, T] = shape;
  const at = ((example * heads + which) * T + t) * T;
  return data.subarray(at, at + n);
}

// Mean surprise, in bits, at each character after the first; next (B, T, V)
export function surprise({ data, shape: [, T, V] }, tokens, example = 0) {
  let sum = 0;
  for (let t = 0; t + 1 < tokens.length; t += 1) {
    sum -= Math.log2(Math.max(data[(example * T + t) * V + tokens[t + 1]], 1e-12));
  }
  return sum / (tokens.length - 1);
}

// The shade of a weight: its root, so that small ones show too
export function mix(low, high, weight) {
  const t = Math.sqrt(clamp(weight, 0, 1));
  return low.map((v, c) => Math.round(v + t * (high[c] - v)));
}

function render({ model, el }) {
  const spec = model.get("spec");
  const engine = model.engine ?? kernelEngine(model);
  const { layers, heads, block, chars, texts } = spec;
  const letters = [...chars];
  const count = layers * heads;
  const state = { ...readText(texts[0], spec), which: spec.start, token: 0, on: [1, 1, 1], silent: new Set() };
  state.token = state.tokens.length - 1;
  let answer = null; // {weights, next, tokens, text} of the last run
  let said = "";
  let timer = null;
  let closed = false;
  let colours = null;

  // --- Elements ---------------------------------------------------------------
  const uid = Math.random().toString(36).slice(2, 8);
  const field = h("input", {
    type: "text",
    id: `${uid}-text`,
    class: "gl-text",
    autocomplete: "off",
    autocapitalize: "off",
    spellcheck: "false",
    "aria-describedby": `${uid}-status`,
    oninput: () => take(field.value),
  });
  field.value = state.text;
  const pick = h("select", { id: `${uid}-pick`, onchange: () => choose(texts[Number(pick.value)]) });
  pick.append(...texts.map((text, k) => h("option", { value: k }, text)), h("option", { value: "", hidden: true }, "your own"));
  const tokenBox = h("div", { class: "gl-tokens", role: "group", "aria-label": "The text: point at a character, or move by the arrow keys", onkeydown: press });
  const looks = h("p");
  const expects = h("p");
  const surprised = h("p", { class: "gl-quiet" });
  const map = h("canvas", { role: "img" });
  const frame = h("div", { class: "gl-map", onpointermove: point, onpointerdown: point }, map);
  const thumbs = Array.from({ length: count }, (_, k) => {
    const canvas = h("canvas", { "aria-hidden": "true" });
    const name = headName(k);
    const button = h("button", { type: "button", "aria-pressed": "false", "aria-label": name, title: name, onclick: () => turnTo(k) }, canvas);
    return { canvas, button };
  });
  const silence = h("input", { type: "checkbox", id: `${uid}-silent`, onchange: hush });
  const silenceText = h("label", { for: `${uid}-silent` });
  const switches = SWITCHES.map(([name, label, title], k) => {
    const box = h("input", { type: "checkbox", id: `${uid}-${name}`, checked: true, onchange: () => flip(k) });
    return { box, element: h("span", { class: "gl-switch", title }, box, h("label", { for: box.id }, label)) };
  });
  const status = h("p", { class: "gl-status", role: "status", id: `${uid}-status` });
  const live = h("p", { class: "gl-hidden", "aria-live": "polite" });
  const ramp = h("span", { class: "gl-ramp", "aria-hidden": "true" });
  const mapName = h("p", { class: "gl-name" });

  const grid = h(
    "div",
    { class: "gl-heads", role: "group", "aria-label": "Heads: press one to see its map" },
    Array.from({ length: layers }, (_, l) =>
      h("div", { class: "gl-layer" }, h("span", { class: "gl-quiet", "aria-hidden": "true" }, `layer ${l + 1}`), ...thumbs.slice(l * heads, (l + 1) * heads).map(({ button }) => button)),
    ),
  );
  const root = h(
    "div",
    { class: "gl-widget gl-attention", role: "group", "aria-labelledby": `${uid}-title`, "data-lm-suppress-shortcuts": "true" },
    h("p", { class: "gl-title", id: `${uid}-title` }, spec.title),
    h(
      "div",
      { class: "gl-entry" },
      h("span", { class: "gl-pair gl-wide" }, h("label", { for: field.id }, "text"), field),
      h("span", { class: "gl-pair" }, h("label", { for: pick.id }, "or pick"), pick),
    ),
    status,
    tokenBox,
    h("div", { class: "gl-words" }, looks, expects),
    h(
      "div",
      { class: "gl-cols" },
      h("div", {}, mapName, frame, h("p", { class: "gl-key gl-quiet" }, "weight 0 ", ramp, " 1")),
      h(
        "div",
        { class: "gl-side" },
        h("p", { class: "gl-name" }, "All heads"),
        grid,
        h("p", { class: "gl-name" }, "What the model has"),
        h("div", { class: "gl-switches", role: "group", "aria-label": "What the model has" }, switches.map(({ element }) => element), h("span", { class: "gl-switch" }, silence, silenceText)),
        surprised,
        h("div", { class: "gl-buttons" }, h("button", { type: "button", onclick: restore, title: "Mask, scale and positions on, no head silenced" }, "As trained")),
      ),
    ),
    live,
  );
  el.append(root);

  function headName(k) {
    return `Layer ${Math.floor(k / heads) + 1}, head ${(k % heads) + 1}`;
  }

  // --- Asking: one request at a time, the newest wish ---------------------------
  const wanted = { asked: 0 };
  const ask = newestOnly(async () => {
    const { tokens, text, on, silent } = state;
    const now = { tokens, text, on: [...on], silent: new Set(silent), asked: wanted.asked };
    const idx = new Float32Array(2 * block).fill(letters.length); // filled up with padding
    idx.set(tokens);
    idx.set(tokens, block);
    const gates = Float32Array.from({ length: 2 * count }, (_, k) => (k < count && silent.has(k) ? 0 : 1));
    try {
      const { weights, next } = await engine.run({
        idx: { data: idx, shape: [2, block] },
        switches: { data: Float32Array.of(...on, 1, 1, 1), shape: [2, 3] }, // as set, and as trained
        heads: { data: gates, shape: [2, count] },
      });
      if (closed) return;
      answer = { weights, next, ...now };
      complain("");
      state.token = Math.min(state.token, tokens.length - 1);
      makeTokens();
      drawAll();
      const detail = { text: now.text, on: now.on, silent: [...now.silent], weights: weights.data, next: next.data, ms: performance.now() - now.asked };
      root.dispatchEvent(new CustomEvent("genlib:attention", { detail, bubbles: true }));
    } catch (error) {
      if (!closed && !(error instanceof LostKernel)) complain(`The model failed. ${error.message}`);
    }
  });

  function request() {
    wanted.asked = performance.now();
    ask();
  }

  function complain(text) {
    if (text === "" && field.getAttribute("aria-invalid") === "true") return; // the typed text is still wrong
    if (status.textContent !== text) status.textContent = text;
  }

  engine.watch?.((now) => {
    if (now === "ready") complain("");
    if (now === "waiting") complain("The kernel does not answer yet: it is busy, or gone. If it was restarted or shut down, run this cell again.");
    if (now === "lost") complain("The kernel is gone. Run this cell again to go on exploring.");
  });

  // --- What the reader does -----------------------------------------------------
  function take(typed) {
    const read = readText(typed, spec);
    const wrong = read.note !== undefined;
    field.setAttribute("aria-invalid", String(wrong));
    if (wrong) {
      status.textContent = read.note;
      return;
    }
    complain("");
    const known = texts.indexOf(read.text);
    pick.value = known < 0 ? "" : String(known);
    const last = state.token >= state.tokens.length - 1; // typing on, one looks from the end
    Object.assign(state, read);
    if (last) state.token = state.tokens.length - 1;
    request();
  }

  function choose(text) {
    field.value = text;
    state.token = state.tokens.length - 1;
    take(text);
  }

  function turnTo(which) {
    state.which = which;
    drawAll();
    tell(`${headName(which)}. ${looks.textContent}`);
  }

  function flip(k) {
    state.on[k] = switches[k].box.checked ? 1 : 0;
    request();
    later(() => `${SWITCHES[k][1]} ${state.on[k] ? "on" : "off"}. ${looks.textContent} ${surprised.textContent}`);
  }

  function hush() {
    state.silent[silence.checked ? "add" : "delete"](state.which);
    request();
    later(() => `${headName(state.which)} ${silence.checked ? "silenced" : "speaks again"}. ${surprised.textContent}`);
  }

  function restore() {
    state.on = [1, 1, 1];
    state.silent.clear();
    switches.forEach(({ box }) => {
      box.checked = true;
    });
    request();
    later(() => `As trained. ${surprised.textContent}`);
  }

  function look(token, focus = false) {
    if (!answer || token < 0 || token >= answer.tokens.length) return;
    state.token = token;
    drawAll();
    if (focus) tokenBox.children[token].focus({ preventScroll: true });
    later(() => looks.textContent);
  }

  function press(event) {
    const last = answer ? answer.tokens.length - 1 : 0;
    const to = { ArrowLeft: state.token - 1, ArrowRight: state.token + 1, Home: 0, End: last }[event.key];
    if (to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation(); // the notebook would move to another cell
    look(clamp(to, 0, last), true);
  }

  function point(event) {
    if (!answer) return;
    const box = frame.getBoundingClientRect();
    const n = answer.tokens.length;
    const { edge, cell } = measure(box.width, n);
    const row = Math.floor((event.clientY - box.top - edge) / cell);
    if (row >= 0 && row < n && row !== state.token) look(row);
  }

  // --- Drawing ------------------------------------------------------------------
  const measure = (width, n) => {
    const edge = clamp(width / (n + 1), 13, 22); // room for the characters
    return { edge, cell: (width - edge) / n };
  };
  const shown = () => answer.text.split("").map((c) => (c === " " ? "␣" : c));
  const dark = () => contrast(rgb(colours.surface), [0, 0, 0]) < 5;

  function makeTokens() {
    const characters = [...answer.text];
    while (tokenBox.children.length > characters.length) tokenBox.lastChild.remove();
    while (tokenBox.children.length < characters.length) {
      const k = tokenBox.children.length;
      const at = (event) => event.pointerType === "mouse" && look(k);
      tokenBox.append(h("button", { type: "button", onpointerenter: at, onfocus: () => state.token !== k && look(k), onclick: () => look(k) }));
    }
  }

  function drawAll() {
    if (closed || !answer) return;
    colours = pageColours(root);
    const { weights, next, tokens, text } = answer;
    const n = tokens.length;
    const t = state.token;
    const row = rowOf(weights, state.which, t, n);
    drawTokens(row);
    drawMap(n);
    thumbs.forEach(({ canvas, button }, k) => {
      button.setAttribute("aria-pressed", String(k === state.which));
      button.setAttribute("aria-label", `${headName(k)}${answer.silent.has(k) ? ", silenced" : ""}`);
      button.classList.toggle("gl-off", answer.silent.has(k));
      drawSmall(canvas, k, n);
    });
    const name = headName(state.which);
    mapName.textContent = `${name}: who looks (row) at whom (column)`;
    map.setAttribute("aria-label", `Attention map of ${name.toLowerCase()}: ${n} rows, one for each character of the text, shaded by how much weight it puts on each column's character.`);
    silence.checked = state.silent.has(state.which);
    silenceText.textContent = `silence ${name.toLowerCase()}`;
    looks.textContent = `${name}: ${quoted(text[t])} at place ${t + 1} looks at ${largest(row, 3).map(([k, w]) => `${k === t ? "itself" : `${quoted(text[k])} at ${k + 1}`} (${percent(w)})`).join(", ")}.`;
    const V = letters.length;
    const probs = next.data.subarray(t * V, (t + 1) * V);
    const truth = t + 1 < n ? ` The text goes on with ${quoted(text[t + 1])} (${percent(probs[tokens[t + 1]])}).` : "";
    expects.textContent = `After it the model expects ${largest(probs, 2).map(([k, w]) => `${quoted(letters[k])} (${percent(w)})`).join(" or ")}.${truth}`;
    const [now, trained] = [0, 1].map((example) => surprise(next, tokens, example).toFixed(2));
    const changed = answer.on.includes(0) || answer.silent.size > 0;
    surprised.textContent = `Surprise at this text: ${now} bits a character${changed ? `; as trained ${trained}` : ""}.`;
    const [low, high] = shades();
    const stops = [0, 0.25, 0.5, 0.75, 1].map((w) => `rgb(${mix(low, high, w).join(" ")}) ${100 * w}%`);
    ramp.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  }

  // From the page's ground to a strong colour; under text to a pale one
  function shades(under = false) {
    return [rgb(colours.surface), rgb(SHADES[dark() ? "dark" : "light"][under ? 0 : 1])];
  }

  function drawTokens(row) {
    const [low, high] = shades(true);
    const characters = shown();
    [...tokenBox.children].forEach((button, k) => {
      const mine = k === state.token;
      button.textContent = characters[k];
      button.tabIndex = mine ? 0 : -1;
      button.setAttribute("aria-pressed", String(mine));
      const label = mine ? `${quoted(answer.text[k])}, place ${k + 1}, looks from here` : `${quoted(answer.text[k])}, place ${k + 1}, ${percent(row[k])}`;
      button.setAttribute("aria-label", label);
      button.style.background = `rgb(${mix(low, high, row[k]).join(" ")})`;
      button.style.setProperty("--weight", row[k].toFixed(4));
    });
  }

  function paint(which, n) {
    const [low, high] = shades();
    const pixels = new ImageData(n, n);
    for (let t = 0; t < n; t += 1) {
      const row = rowOf(answer.weights, which, t, n);
      for (let k = 0; k < n; k += 1) pixels.data.set([...mix(low, high, row[k]), 255], 4 * (t * n + k));
    }
    return pixels;
  }

  function drawSmall(canvas, which, n) {
    if (canvas.width !== n || canvas.height !== n) canvas.width = canvas.height = n;
    canvas.getContext("2d").putImageData(paint(which, n), 0, 0);
  }

  function drawMap(n) {
    const width = frame.clientWidth;
    if (!width) return;
    const { edge, cell } = measure(width, n);
    const context = sheet(map, width, width);
    context.fillStyle = colours.surface;
    context.fillRect(0, 0, width, width);
    const small = new OffscreenCanvas(n, n);
    small.getContext("2d").putImageData(paint(state.which, n), 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, edge, edge, width - edge, width - edge);
    context.strokeStyle = colours.line;
    context.lineWidth = 1;
    context.strokeRect(edge + 0.5, edge + 0.5, width - edge - 1, width - edge - 1);
    // The characters along both edges: all of them where there is room
    const every = Math.ceil(7.5 / cell);
    context.textAlign = "center";
    context.textBaseline = "middle";
    const size = clamp(cell * every, 8, 13);
    shown().forEach((c, k) => {
      const own = k === state.token;
      const seen = answer.weights && rowOf(answer.weights, state.which, state.token, n)[k] >= 0.1;
      if (k % every && !own) return;
      const at = edge + (k + 0.5) * cell;
      context.font = `${own || seen ? "bold " : ""}${size}px ui-monospace, monospace`;
      context.fillStyle = seen ? colours.ink : colours.quiet;
      context.fillText(c, at, edge / 2);
      context.fillStyle = own ? colours.ink : colours.quiet;
      context.fillText(c, edge / 2, at);
    });
    context.strokeStyle = colours.ink;
    context.lineWidth = 1.5;
    context.strokeRect(edge, edge + state.token * cell, width - edge - 1, cell);
  }

  // --- What a screen reader hears, once things rest ---------------------------------
  function tell(text) {
    if (text !== said) live.textContent = text;
    said = text;
  }

  function later(words) {
    clearTimeout(timer);
    timer = setTimeout(() => tell(words()), QUIET_MS);
  }

  // --- Start, and leave nothing behind ------------------------------------------------
  const resized = new ResizeObserver(() => drawAll());
  resized.observe(frame);
  const untheme = onTheme(drawAll);
  request();

  return () => {
    closed = true;
    clearTimeout(timer);
    resized.disconnect();
    untheme();
    engine.close();
    root.remove();
  };
}

export default { render };
