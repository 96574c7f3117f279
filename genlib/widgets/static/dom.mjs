// Small helpers that every widget needs.

// The book's palette (Paul Tol's "muted" scheme), as in genlib/plot.py
export const PALETTE = [
  "#332288", "#cc6677", "#117733", "#ddcc77", "#88ccee",
  "#882255", "#44aa99", "#999933", "#aa4499", "#222222",
];

// h("button", {class: "a", onclick: f}, "text", child) -> element
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null));
  return element;
}

// "−1.20": two decimals, a true minus, never "−0.00"
export function number(value, digits = 2) {
  const text = value.toFixed(digits);
  return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "−");
}

export function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}

// Relative luminance and contrast, as WCAG 2.2 defines them; colours are [r, g, b]
export function contrast(a, b) {
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => {
      const c = v / 255;
      return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
}

// "#aabbcc", "#abc" or "rgb(…)" -> [r, g, b]
export function rgb(text) {
  const hex = text.trim().match(/^#([0-9a-f]{6}|[0-9a-f]{3})$/i);
  if (!hex) return (text.match(/[\d.]+/g) ?? [0, 0, 0]).slice(0, 3).map(Number);
  const digits = hex[1].length === 3 ? hex[1].replace(/./g, "$&$&") : hex[1];
  return [0, 2, 4].map((i) => parseInt(digits.slice(i, i + 2), 16));
}

// The colour, moved towards black or white until it stands out from the background
export function readable(colour, background, least) {
  const [from, back] = [rgb(colour), rgb(background)];
  const end = contrast([255, 255, 255], back) > contrast([0, 0, 0], back) ? 255 : 0;
  for (let t = 0; t <= 1; t += 0.05) {
    const mixed = from.map((v) => Math.round(v + t * (end - v)));
    if (contrast(mixed, back) >= least) return `rgb(${mixed.join(", ")})`;
  }
  return `rgb(${end}, ${end}, ${end})`;
}

// Round steps for an axis: at most eight ticks within the range
export function ticks([low, high]) {
  const raw = (high - low) / 7;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const out = [];
  for (let k = Math.ceil(low / step); k * step <= high; k += 1) out.push(k * step);
  return out;
}

// Decimals that ticks need to be written out
export function places(values) {
  const exact = (d) => values.every((v) => Math.abs(v * 10 ** d - Math.round(v * 10 ** d)) < 1e-6);
  return [0, 1, 2, 3, 4, 5].find(exact) ?? 6;
}

// The widget's colours as the page has them now: {ink, quiet, surface, ...} in "#rrggbb"
export function pageColours(element) {
  const context = document.createElement("canvas").getContext("2d");
  const style = getComputedStyle(element);
  const names = ["ink", "quiet", "surface", "raised", "line", "accent"];
  return Object.fromEntries(
    names.map((name) => {
      context.fillStyle = style.getPropertyValue(`--gl-${name}`);
      return [name, context.fillStyle];
    }),
  );
}

// A context that draws in CSS pixels, crisp on any screen; the canvas is emptied
export function sheet(canvas, width, height) {
  const scale = globalThis.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== w) canvas.width = w;
  if (canvas.height !== h) canvas.height = h;
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

// Call f when the page switches between light and dark; returns what stops it
export function onTheme(f) {
  const observer = new MutationObserver(f);
  const options = { attributes: true, attributeFilter: ["data-theme", "data-mode", "data-jp-theme-light", "data-jp-theme-name", "theme", "class"] };
  observer.observe(document.documentElement, options);
  observer.observe(document.body, options);
  return () => observer.disconnect();
}

// Draw a float image (C, H, W) in 0..1, one canvas pixel a pixel; CSS enlarges it
export function drawImage(canvas, data, [channels, height, width]) {
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const size = width * height;
  for (let i = 0; i < size; i += 1) {
    for (let c = 0; c < 3; c += 1) {
      pixels.data[4 * i + c] = Math.round(255 * data[(channels === 3 ? c * size : 0) + i]);
    }
    pixels.data[4 * i + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
}
