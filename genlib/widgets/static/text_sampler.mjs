// The text sampler: a prompt, the next token's probabilities as bars, a text written on.
// It holds the text and the cache of keys and values; an engine (the kernel, or ONNX
// Runtime) reads one token and answers with logits and the cache that is one token longer.
import { makeSlider, plain, typed } from "./controls.mjs";
import { LostKernel, kernelEngine, newestOnly } from "./engine.mjs";
import { h } from "./dom.mjs";
import { key, uniform } from "./noise.mjs";
import { charactersOf, listUnknown } from "./text.mjs";

const PAUSE_MS = 90; // between two tokens that are written by themselves
const TELL_MS = 4000; // between two reports to a screen reader
const MOST_SEED = 0xffffffff;
const MOST_TEXT = 2000; // characters: then writing stops
const SHOWN = { " ": "␣", "\n": "↵" };
const SAID = { " ": "space", "\n": "line break", ".": "full stop", ",": "comma", "'": "apostrophe", "-": "hyphen" };

// How many tokens at the start of a text of this length are no longer read: whole halves
export function forgotten(length, block) {
  const half = Math.max(1, Math.floor(block / 2));
  return Math.max(0, Math.ceil((length - block) / half)) * half;
}

export function softmax(logits) {
  const top = Math.max(...logits);
  const weights = Array.from(logits, (x) => Math.exp(x - top));
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((w) => w / sum);
}

// What a token is drawn from, as `next_token_probs` in genlib/gpt.py has it
export function nextProbs(logits, { temperature, top_k: k, top_p: p }) {
  if (temperature === 0) {
    const best = logits.indexOf(Math.max(...logits));
    return Array.from(logits, (_, i) => Number(i === best));
  }
  const scaled = Array.from(logits, (x) => x / temperature);
  const least = [...scaled].sort((a, b) => b - a)[Math.min(k, scaled.length) - 1];
  const probs = softmax(scaled.map((x) => (x < least ? -Infinity : x)));
  if (p >= 1) return probs;
  const order = probs.map((_, i) => i).sort((a, b) => probs[b] - probs[a] || a - b);
  let before = 0;
  const kept = new Array(probs.length).fill(0);
  for (const i of order) {
    if (before < p) kept[i] = probs[i];
    before += probs[i];
  }
  const sum = kept.reduce((a, b) => a + b, 0);
  return kept.map((x) => x / sum);
}

// The token in which the running sum first goes beyond u, in 0..1
export function drawToken(probs, u) {
  const sum = probs.reduce((a, b) => a + b, 0);
  let running = 0;
  for (let i = 0; i < probs.length; i += 1) {
    running += probs[i];
    if (running > u * sum) return i;
  }
  return probs.findLastIndex((q) => q > 0);
}

const percent = (q) => (q === 0 ? "0" : q < 0.001 ? "<0.1" : (100 * q).toFixed(q < 0.1 ? 1 : 0));
const nameOf = (char) => SHOWN[char] ?? char;
const sayName = (char) => SAID[char] ?? char;

function render({ model, el }) {
  const spec = model.get("spec");
  const engine = model.engine ?? kernelEngine(model);
  const uid = `gl${Math.random().toString(36).slice(2, 8)}`;
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const place = new Map([...spec.chars].map((char, i) => [char, i]));
  const chars = [...spec.chars];
  const size = spec.cache.reduce((a, b) => a * b, 1);
  let prompt = charactersOf(spec.prompt, spec.chars).tokens;
  let written = []; // tokens after the prompt
  let read = { tokens: [], from: 0, cache: null, logits: null }; // what the cache holds
  let settings = { temperature: spec.temperature, top_k: spec.top_k, top_p: spec.top_p };
  let seed = spec.seed;
  let [closed, writing, broken] = [false, false, false];
  let timer = null;
  let told = 0;
  let reads = 0; // tokens that were read for the newest picture

  // --- Elements ---------------------------------------------------------------
  const status = h("p", { class: "gl-status", role: "status" });
  const live = h("p", { class: "gl-hidden", "aria-live": "polite" });
  const say = (text) => {
    if (status.textContent !== text) status.textContent = text;
  };
  const button = (text, onclick, title, more = {}) => h("button", { type: "button", onclick, title, ...more }, text);
  const area = h("textarea", { id: `${uid}-prompt`, rows: 2, spellcheck: "false", autocomplete: "off", oninput: readPrompt });
  area.value = spec.prompt;
  const old = h("span", { class: "gl-old" });
  const given = h("span", { class: "gl-given" });
  const own = h("span", { class: "gl-own" });
  const page = h("p", { class: "gl-page", tabindex: 0, role: "group", "aria-label": "The text" }, old, given, own, h("span", { class: "gl-caret", "aria-hidden": "true" }));
  const next = button("Next token", one, "Draw one token from the bars", { class: "gl-main", "data-first": true });
  const write = button("Write", toggle, "Draw token after token");
  const back = button("Back to the prompt", restart, "Take away what was written");
  const seedField = h("input", { type: "text", class: "gl-typed", inputmode: "numeric", autocomplete: "off", id: `${uid}-seed`, onchange: readSeed });
  seedField.value = seed;
  const countText = h("span", { class: "gl-quiet" });
  const control = (name, label, min, max, integer = false) => makeSlider({ name, label, value: spec[name], min, max, integer, log: false }, uid, set, say);
  const controls = [control("temperature", "temperature", 0, 2), control("top_k", "top-k", 1, chars.length, true), control("top_p", "top-p", 0.05, 1)];
  const bars = Array.from({ length: spec.bars }, makeBar);
  const rest = makeBar();
  rest.element.disabled = true;
  rest.element.classList.add("gl-rest");
  const list = h("ol", { class: "gl-bars", "aria-label": "Likeliest next characters" }, [...bars, rest].map(({ element }) => h("li", {}, element)));

  const root = h(
    "div",
    { class: "gl-widget gl-sampler", role: "group", "aria-labelledby": `${uid}-title`, "data-lm-suppress-shortcuts": "true" },
    h("p", { class: "gl-title", id: `${uid}-title` }, spec.title),
    h("div", { class: "gl-field" }, h("label", { for: `${uid}-prompt` }, "prompt"), area),
    page,
    h(
      "div",
      { class: "gl-buttons" },
      next,
      write,
      back,
      h("span", { class: "gl-pair" }, h("label", { for: `${uid}-seed` }, "seed"), seedField),
      countText,
    ),
    status,
    h(
      "div",
      { class: "gl-cols" },
      h("div", {}, h("p", { class: "gl-name" }, "Next character"), list, h("p", { class: "gl-key" }, h("span", { class: "gl-sign gl-before" }), " the model ", h("span", { class: "gl-sign gl-after" }), " what the settings leave, in per cent. Press a bar to take its character.")),
      h(
        "div",
        { class: "gl-settings", role: "group", "aria-label": "Settings of the draw" },
        controls.map(({ element }) => element),
        h("div", { class: "gl-buttons" }, button("Default settings", () => controls.forEach(({ restore }) => restore()), "All sliders as they were")),
        h("p", { class: "gl-key" }, `The model sees ${spec.block} characters at once. When they are full, the oldest ${Math.max(1, Math.floor(spec.block / 2))} are forgotten (pale, slanted), and the others are read anew.`),
      ),
    ),
    live,
  );
  root.genlib = { state: () => ({ text: textOf(), logits: read.logits && [...read.logits], probs: read.logits && nextProbs(read.logits, settings), from: read.from, reads, seed }) };
  el.append(root);

  function makeBar() {
    const words = h("span", { class: "gl-hidden" }, "not known yet");
    const name = h("span", { class: "gl-char", "aria-hidden": "true" });
    const [before, after] = [h("span", { class: "gl-before" }), h("span", { class: "gl-after" })];
    const numbers = h("span", { class: "gl-numbers", "aria-hidden": "true" });
    const element = h("button", { type: "button", class: "gl-token" }, words, name, h("span", { class: "gl-track", "aria-hidden": "true" }, before, after), numbers);
    const bar = { element, token: null };
    element.addEventListener("click", () => bar.token !== null && choose(bar.token));
    bar.show = (label, said, p, q, token) => {
      bar.token = token;
      name.textContent = label;
      before.style.width = `${100 * p}%`;
      after.style.width = `${100 * q}%`;
      after.hidden = q === 0;
      numbers.textContent = `${percent(p)} → ${percent(q)}`;
      element.classList.toggle("gl-out", q === 0);
      words.textContent = `${said}: ${percent(p)} per cent, with the settings ${percent(q)}`;
    };
    return bar;
  }

  // --- The text ------------------------------------------------------------------
  const tokens = () => [...prompt, ...written];
  const textOf = () => tokens().map((token) => chars[token]).join("");

  function show() {
    const all = tokens();
    const from = forgotten(all.length, spec.block);
    const words = (list) => list.map((token) => chars[token]).join("");
    old.textContent = words(all.slice(0, from));
    given.textContent = words(prompt.slice(from));
    own.textContent = words(all.slice(Math.max(from, prompt.length)));
    countText.textContent = `${all.length - from} of ${spec.block} places${from ? `, ${from} forgotten` : ""}`;
    page.scrollTop = page.scrollHeight;
    const off = broken || prompt.length === 0;
    for (const item of [next, write]) item.disabled = off;
    write.textContent = writing ? "Stop" : still.matches ? "Write ten" : "Write";
    back.disabled = written.length === 0;
  }

  function drawBars() {
    if (!read.logits) return;
    const before = softmax(read.logits);
    const after = nextProbs(read.logits, settings);
    const order = before.map((_, i) => i).sort((a, b) => before[b] - before[a] || a - b);
    bars.forEach((bar, n) => {
      const token = order[n];
      bar.show(nameOf(chars[token]), sayName(chars[token]), before[token], after[token], token);
    });
    const others = order.slice(bars.length);
    const sum = (values) => others.reduce((total, i) => total + values[i], 0);
    rest.element.parentElement.hidden = others.length === 0;
    rest.show(`${others.length} others`, `${others.length} others`, sum(before), sum(after), null);
    const detail = { text: textOf(), before, after, reads, from: read.from };
    root.dispatchEvent(new CustomEvent("genlib:text", { detail, bubbles: true }));
  }

  // --- Asking: the newest text is read; what the cache holds of it is kept ----------
  const ask = newestOnly(async () => {
    if (closed || broken || prompt.length === 0) return;
    try {
      while (!closed && !(await readOn()));
    } catch (error) {
      if (!closed) fail(error);
    }
  });

  // Read one token; true when the whole text is read
  async function readOn() {
    const all = tokens();
    if (all.length === 0) return true;
    const from = forgotten(all.length, spec.block);
    const kept = read.from === from && read.tokens.every((token, i) => token === all[i]) && read.tokens.length <= all.length;
    if (!kept) read = { tokens: all.slice(0, from), from, cache: new Float32Array(size), logits: null };
    if (!kept) reads = 0;
    read.cache ??= new Float32Array(size);
    if (read.tokens.length < from) read.tokens = all.slice(0, from);
    const n = read.tokens.length;
    if (n === all.length) {
      drawBars();
      return true;
    }
    const now = read;
    const { logits, new_cache: cache } = await engine.run({
      token: { data: Float32Array.of(all[n]), shape: [1] },
      at: { data: Float32Array.of(n - from), shape: [1] },
      cache: { data: now.cache, shape: [1, ...spec.cache] },
    });
    reads += 1;
    read = { tokens: [...now.tokens, all[n]], from: now.from, cache: cache.data, logits: logits.data };
    return false;
  }

  async function append(token) {
    written.push(token);
    reads = 0;
    show();
    say("");
    await ask();
  }

  async function one() {
    do {
      if (closed || broken || prompt.length === 0) return null;
      await ask();
    } while (read.tokens.length !== tokens().length); // another press was first
    if (!read.logits) return null;
    const u = uniform(key(seed, "token", written.length + 1), 0);
    const token = drawToken(nextProbs(read.logits, settings), u);
    await append(token);
    if (!writing) live.textContent = `Drawn: ${sayName(chars[token])}.`;
    return token;
  }

  async function choose(token) {
    stop();
    await ask();
    await append(token);
    live.textContent = `Taken: ${sayName(chars[token])}.`;
  }

  // --- Writing by itself --------------------------------------------------------------
  async function toggle() {
    if (writing) {
      stop();
      live.textContent = `Stopped. ${textOf().slice(-60)}`;
      return;
    }
    if (still.matches) {
      for (let k = 0; k < 10; k += 1) await one(); // ten a press, nothing moves by itself
      live.textContent = textOf().slice(-60);
      return;
    }
    writing = true;
    told = performance.now();
    show();
    tick();
  }

  async function tick() {
    timer = null;
    if (!writing || closed) return;
    if (tokens().length >= MOST_TEXT) {
      stop();
      say(`${MOST_TEXT.toLocaleString("en-GB")} characters are written; back to the prompt.`);
      return;
    }
    const begun = performance.now();
    await one();
    if (!writing || closed) return;
    if (begun - told > TELL_MS) {
      told = begun;
      live.textContent = textOf().slice(-60);
    }
    timer = setTimeout(tick, Math.max(0, PAUSE_MS - (performance.now() - begun)));
  }

  function stop() {
    writing = false;
    clearTimeout(timer);
    timer = null;
    show();
  }

  // --- What the reader sets ------------------------------------------------------------
  function set() {
    settings = Object.fromEntries(controls.map(({ name, value }) => [name, value()]));
    drawBars();
  }

  function readPrompt() {
    stop();
    const found = charactersOf(area.value, spec.chars);
    written = [];
    prompt = found.tokens;
    show();
    if (found.unknown.size) say(`This model has never seen ${listUnknown(found.unknown)}. It reads the prompt without.`);
    else if (prompt.length === 0) say("The prompt is empty: give it at least one character.");
    else if (prompt.length > spec.block) {
      say(`The prompt has ${prompt.length} characters; the model sees ${spec.block} at once. It reads the last ${prompt.length - forgotten(prompt.length, spec.block)} (the others are pale).`);
    } else say("");
    ask();
  }

  function restart() {
    stop();
    written = [];
    show();
    say("");
    live.textContent = "Back to the prompt.";
    if (document.activeElement === back || back.disabled) next.focus({ preventScroll: true });
    ask();
  }

  function readSeed() {
    const found = typed(seedField.value, { label: "Seed", min: 0, max: MOST_SEED, integer: true }, seed);
    say(found.note);
    seed = found.value;
    seedField.value = plain(seed);
  }

  function fail(error) {
    if (error instanceof LostKernel) return;
    broken = true;
    stop();
    say(`The model does not answer. ${error.message}`);
  }

  engine.watch?.((now) => {
    if (now === "ready") say("");
    if (now === "waiting") say("The kernel does not answer yet: it is busy, or gone. If it was restarted or shut down, run this cell again.");
    if (now === "lost") {
      broken = true;
      stop();
      say("The kernel is gone. Run this cell again to go on writing.");
    }
  });

  // --- Start, and leave nothing behind -----------------------------------------------
  show();
  ask();

  return () => {
    closed = true;
    clearTimeout(timer);
    writing = false;
    engine.close();
    root.remove();
  };
}

export default { render };
