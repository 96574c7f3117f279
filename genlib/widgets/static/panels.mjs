// A panel of a training lab: layers over one plane (or a grid of images), drawn from what
// the engine's view returns. A layer's `value` names an output, `fixed` is constant data.
import { PALETTE, clamp, contrast, h, number, places, readable, rgb, sheet, ticks } from "./dom.mjs";

const HEAT = { light: ["#f0c48c", "#93c4ea"], dark: ["#6e4617", "#1f567f"] }; // low, high
const TRAIL = 1500; // points of a path before every second one is dropped
const ARROW = 4; // length of an arrow's head, in pixels

// A nested list -> {data, shape}
export function flatten(list) {
  const shape = [];
  for (let at = list; Array.isArray(at); [at] = at) shape.push(at.length);
  return { data: Float32Array.from(list.flat(shape.length)), shape };
}

// Width over height: true to scale in a plane; graphs take what `other` says
export function aspectOf({ extent, layers }, outputs, other) {
  const images = layers.find(({ mark }) => mark === "images");
  if (images) {
    const { shape } = layerData(images, outputs) ?? { shape: [1, 1, 1, 1] };
    const [n, , height, width] = shape;
    const cols = Math.min(n, images.cols ?? n);
    return (cols * (width + 1) - 1) / (Math.ceil(n / cols) * (height + 1) - 1);
  }
  const table = layers.find(({ mark }) => mark in HEIGHTS);
  if (table) return HEIGHTS[table.mark](table, outputs);
  if (!isPlane({ extent, layers })) return other;
  const [x0, x1, y0, y1] = extent;
  return (x1 - x0) / (y1 - y0);
}

export function isPlane({ extent, layers }) {
  if (!extent || layers.some(({ mark }) => mark === "graph")) return false;
  const ratio = (extent[1] - extent[0]) / (extent[3] - extent[2]);
  return ratio >= 0.5 && ratio <= 2;
}

function layerData(layer, outputs) {
  if (layer.fixed !== undefined) {
    fixed.has(layer) || fixed.set(layer, flatten(layer.fixed));
    return fixed.get(layer);
  }
  return outputs[layer.value];
}
const fixed = new WeakMap();

// `hidden` is a set of layers, shared with the panel of the kept state
export function makePanel(spec, hidden, other) {
  const text = [spec.title, spec.description].filter(Boolean).join(". ");
  const canvas = h("canvas", { role: "img", "aria-label": text });
  const frame = h("div", { class: "gl-frame" }, canvas);
  const name = h("p", { class: "gl-name" }, spec.title);
  const element = h("div", { class: "gl-panel" }, name, frame);
  const trails = new Map(); // layer -> {points, every, count}
  let outputs = {};
  let names = {}; // the axes' numbers and names, ready to be laid over
  let box = [0, 0];

  function measure() {
    const ratio = aspectOf(spec, outputs, other);
    if (frame.style.aspectRatio !== String(ratio)) frame.style.aspectRatio = ratio;
    box = [frame.clientWidth, frame.clientHeight];
  }

  function place([x, y]) {
    const [x0, x1, y0, y1] = spec.extent;
    return [((x - x0) / (x1 - x0)) * box[0], (1 - (y - y0) / (y1 - y0)) * box[1]];
  }

  function draw(colours) {
    measure();
    const words = spec.layers.map((layer) => SAID[layer.mark]?.(layer, outputs)).filter(Boolean);
    if (words.length) canvas.setAttribute("aria-label", `${text.replace(/\.$/, "")}. ${words.join(" ")}`);
    const [width, height] = box;
    if (!width || !height) return;
    const dark = contrast(rgb(colours.surface), [0, 0, 0]) < 5;
    const context = sheet(canvas, width, height);
    context.fillStyle = colours.surface;
    context.fillRect(0, 0, width, height);
    const tools = { context, place, colours, dark, width, height, extent: spec.extent, order: spec.layers };
    const shown = spec.layers.filter((layer) => !hidden.has(layer));
    const under = ({ mark }) => mark === "heatmap" || mark === "images";
    for (const layer of shown.filter(under)) drawLayer(layer, tools);
    if (spec.extent) {
      drawGrid(tools);
      context.drawImage(namesOn(tools), 0, 0, width, height);
    }
    for (const layer of shown.filter((layer) => !under(layer))) drawLayer(layer, tools);
  }

  // Text is costly to draw: it is drawn when size or colours change
  function namesOn(tools) {
    const { width, height } = tools;
    const scale = globalThis.devicePixelRatio || 1;
    const now = [width, height, scale, tools.colours.ink].join();
    if (names.now !== now) {
      const own = new OffscreenCanvas(Math.round(width * scale), Math.round(height * scale));
      const context = own.getContext("2d");
      context.scale(scale, scale);
      drawNames({ ...tools, context }, spec.labels ?? []);
      names = { now, bitmap: own.transferToImageBitmap() };
    }
    return names.bitmap;
  }

  function drawLayer(layer, tools) {
    const data = layer.mark === "trail" ? trails.get(layer) : layerData(layer, outputs);
    if (data) MARKS[layer.mark](data, layer, tools, outputs);
  }

  function follow(layer, { data, shape: [n] }) {
    const path = trails.get(layer) ?? { rows: [], every: 1, seen: 0, n };
    if (path.seen % path.every === 0) path.rows.push(data.slice());
    path.newest = data;
    path.seen += 1;
    if (path.rows.length > TRAIL) {
      path.rows = path.rows.filter((_, i) => i % 2 === 0);
      path.every *= 2;
    }
    trails.set(layer, path);
  }

  return {
    element,
    canvas,
    frame,
    name,
    extent: spec.extent,
    place,
    draw,
    size: () => box,
    show(next, moved, colours) {
      outputs = next;
      for (const layer of spec.layers) {
        if (layer.mark === "trail" && moved && next[layer.value]) follow(layer, next[layer.value]);
      }
      draw(colours);
    },
    reset: () => trails.clear(),
    // What the panel shows, for a second one to hold
    copy: () => ({ outputs, trails: new Map([...trails].map(([k, v]) => [k, { ...v, rows: v.rows.slice() }])) }),
    paste(copy) {
      outputs = copy.outputs;
      trails.clear();
      copy.trails.forEach((path, layer) => trails.set(layer, path));
    },
  };
}

// --- Axes ---------------------------------------------------------------------------

function drawGrid({ context, place, colours, extent, width, height }) {
  const [x0, x1, y0, y1] = extent;
  context.lineWidth = 1;
  context.strokeStyle = colours.line;
  const line = (from, to) => {
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...to);
    context.stroke();
  };
  for (const value of ticks([x0, x1])) {
    const x = Math.round(place([value, 0])[0]) + 0.5;
    context.globalAlpha = value === 0 ? 0.9 : 0.35;
    line([x, 0], [x, height]);
  }
  for (const value of ticks([y0, y1])) {
    const y = Math.round(place([0, value])[1]) + 0.5;
    context.globalAlpha = value === 0 ? 0.9 : 0.35;
    line([0, y], [width, y]);
  }
  context.globalAlpha = 1;
}

// Numbers and names inside the frame, on a thin halo
function drawNames({ context, place, colours, extent, width, height }, [across = "", up = ""]) {
  const write = (text, x, y, align, colour) => {
    context.textAlign = align;
    context.lineWidth = 3;
    context.lineJoin = "round";
    context.strokeStyle = colours.surface;
    context.strokeText(text, x, y);
    context.fillStyle = colour;
    context.fillText(text, x, y);
  };
  const [x0, x1, y0, y1] = extent;
  context.font = "italic 12px system-ui, sans-serif";
  context.textBaseline = "alphabetic";
  const room = context.measureText(across).width + 24;
  write(across, width - 6, height - 6, "right", colours.ink);
  write(up, 6, 14, "left", colours.ink);
  context.font = "10.5px system-ui, sans-serif";
  const thin = (all) => all.filter((_, i) => all.length < (width < 260 ? 4 : 6) || i % 2 === 0);
  const columns = thin(ticks([x0, x1]));
  for (const value of columns) {
    const x = place([value, 0])[0];
    if (x > 24 && x < width - Math.max(16, room)) write(number(value, places(columns)), x, height - 5, "center", colours.quiet);
  }
  const rows = thin(ticks([y0, y1]));
  for (const value of rows) {
    const y = place([0, value])[1];
    if (y > 26 && y < height - 18) write(number(value, places(rows)), 5, y + 3.5, "left", colours.quiet);
  }
}

// --- Marks ---------------------------------------------------------------------------

// The colour of a layer, or of class k in it, moved until it stands out from the page
function tint(layer, { colours, dark, order }, k = null) {
  const at = (k ?? order.indexOf(layer)) % PALETTE.length;
  const colour = k === null ? (layer.colour ?? PALETTE[at]) : (layer.colours?.[k] ?? PALETTE[at]);
  const least = dark ? 3.6 : layer.mark === "points" ? 1.4 : 2.5;
  return readable(colour, colours.surface, least);
}

// The colours of a heat map: from low over the page's own ground to high
export function heatColours({ colours, dark }) {
  const [low, high] = HEAT[dark ? "dark" : "light"].map(rgb);
  const middle = rgb(colours.surface);
  return Array.from({ length: 256 }, (_, i) => {
    const t = i / 127.5 - 1;
    const end = t < 0 ? low : high;
    return middle.map((v, c) => Math.round(v + Math.abs(t) * (end[c] - v)));
  });
}

function heatmap({ data, shape: [rows, cols] }, { range }, tools) {
  const { context, width, height } = tools;
  const [low, high] = range;
  const table = heatColours(tools);
  const pixels = new ImageData(cols, rows);
  for (let r = 0; r < rows; r += 1) {
    for (let c = 0; c < cols; c += 1) {
      const value = data[(rows - 1 - r) * cols + c]; // row 0 is the lowest
      if (!Number.isFinite(value)) continue;
      const colour = table[Math.round(clamp((value - low) / (high - low), 0, 1) * 255)];
      const at = 4 * (r * cols + c);
      for (let k = 0; k < 3; k += 1) pixels.data[at + k] = colour[k];
      pixels.data[at + 3] = 255;
    }
  }
  const small = new OffscreenCanvas(cols, rows);
  small.getContext("2d").putImageData(pixels, 0, 0);
  context.imageSmoothingEnabled = true;
  context.drawImage(small, 0, 0, width, height);
}

function images({ data, shape: [n, channels, h, w] }, { cols = n }, { context, width, height, colours }) {
  const rows = Math.ceil(n / cols);
  const pixels = new ImageData(cols * (w + 1) - 1, rows * (h + 1) - 1);
  const gap = rgb(colours.line);
  for (let i = 0; i < pixels.data.length; i += 4) pixels.data.set([...gap, 255], i);
  for (let i = 0; i < n; i += 1) {
    const [top, left] = [Math.floor(i / cols) * (h + 1), (i % cols) * (w + 1)];
    for (let p = 0; p < h * w; p += 1) {
      const at = 4 * ((top + Math.floor(p / w)) * pixels.width + left + (p % w));
      for (let c = 0; c < 3; c += 1) {
        pixels.data[at + c] = 255 * data[(i * channels + (channels === 3 ? c : 0)) * h * w + p];
      }
    }
  }
  const small = new OffscreenCanvas(pixels.width, pixels.height);
  small.getContext("2d").putImageData(pixels, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, width, height);
}

// A dot with a thin halo, drawn once: stamping it is far cheaper than many circles
const stamps = new Map();

function stamp(radius, colour, halo) {
  const scale = globalThis.devicePixelRatio || 1;
  const name = [radius, colour, halo, scale].join();
  if (!stamps.has(name)) {
    const half = radius + 1;
    const dot = new OffscreenCanvas(Math.ceil(2 * half * scale), Math.ceil(2 * half * scale));
    const context = dot.getContext("2d");
    context.scale(dot.width / (2 * half), dot.width / (2 * half));
    for (const [r, style, alpha] of [[half, halo, 0.5], [radius, colour, 0.85]]) {
      Object.assign(context, { fillStyle: style, globalAlpha: alpha });
      context.beginPath();
      context.arc(half, half, r, 0, 2 * Math.PI);
      context.fill();
    }
    stamps.set(name, dot.transferToImageBitmap());
  }
  return stamps.get(name);
}

function points({ data, shape: [n] }, layer, tools) {
  const { context, place, colours } = tools;
  const labels = layer.labels ?? null;
  const radius = (layer.size ?? 2.4) * clamp(tools.width / 340, 0.7, 1.2);
  const half = radius + 1;
  const groups = new Map();
  for (let i = 0; i < n; i += 1) {
    const label = labels ? labels[i] : 0;
    if (!groups.has(label)) groups.set(label, []);
    groups.get(label).push(place([data[2 * i], data[2 * i + 1]]));
  }
  for (const [label, group] of groups) {
    const dot = stamp(radius, tint(layer, tools, labels && label), colours.surface);
    for (const [x, y] of group) context.drawImage(dot, x - half, y - half, 2 * half, 2 * half);
  }
  if (layer.classes && groups.size <= 12) nameClasses(groups, layer, tools);
}

// Each class named at its median: colour is not the only sign
function nameClasses(groups, layer, tools) {
  const { context, colours } = tools;
  const middle = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
  context.font = "bold 11px system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  for (const [label, group] of groups) {
    const [x, y] = [0, 1].map((d) => middle(group.map((p) => p[d])));
    const text = layer.classes[label];
    const width = Math.max(16, context.measureText(text).width + 8);
    const shade = tint(layer, tools, label);
    context.fillStyle = shade;
    context.strokeStyle = colours.surface;
    context.lineWidth = 1.5;
    context.beginPath();
    context.roundRect(x - width / 2, y - 8, width, 16, 8);
    context.fill();
    context.stroke();
    context.fillStyle = contrast(rgb(shade), [255, 255, 255]) > contrast(rgb(shade), [0, 0, 0]) ? "#fff" : "#000";
    context.fillText(text, x, y + 0.5);
  }
}

function lines({ data, shape: [count, length] }, layer, tools) {
  const { context, place } = tools;
  context.strokeStyle = tint(layer, tools);
  context.lineWidth = layer.size ?? 1;
  context.globalAlpha = 0.75;
  context.beginPath();
  for (let i = 0; i < count; i += 1) {
    for (let k = 0; k < length; k += 1) {
      const at = 2 * (i * length + k);
      context[k ? "lineTo" : "moveTo"](...place([data[at], data[at + 1]]));
    }
  }
  context.stroke();
  context.globalAlpha = 1;
}

function arrows({ data, shape: [n] }, layer, tools) {
  const { context, place } = tools;
  const scale = layer.scale ?? 1;
  context.strokeStyle = tint(layer, tools);
  context.lineWidth = 1.2;
  context.beginPath();
  for (let i = 0; i < n; i += 1) {
    const [x, y, dx, dy] = data.subarray(4 * i, 4 * i + 4);
    const from = place([x, y]);
    const to = place([x + scale * dx, y + scale * dy]);
    const length = Math.hypot(to[0] - from[0], to[1] - from[1]);
    if (!(length > 0.5)) continue;
    const [ux, uy] = [(to[0] - from[0]) / length, (to[1] - from[1]) / length];
    const head = Math.min(ARROW, length / 2);
    context.moveTo(...from);
    context.lineTo(...to);
    context.moveTo(to[0] - head * (ux + 0.6 * uy), to[1] - head * (uy - 0.6 * ux));
    context.lineTo(...to);
    context.lineTo(to[0] - head * (ux - 0.6 * uy), to[1] - head * (uy + 0.6 * ux));
  }
  context.stroke();
}

function trail({ rows, newest, n }, layer, tools) {
  const { context, place, colours } = tools;
  for (let i = 0; i < n; i += 1) {
    const shade = tint(layer, tools, i);
    const at = (row) => place([row[2 * i], row[2 * i + 1]]);
    context.strokeStyle = shade;
    context.lineWidth = 1.4;
    context.lineJoin = "round";
    context.beginPath();
    rows.forEach((row, k) => context[k ? "lineTo" : "moveTo"](...at(row)));
    context.lineTo(...at(newest));
    context.stroke();
    context.fillStyle = shade;
    context.strokeStyle = colours.surface;
    context.beginPath();
    context.arc(...at(newest), layer.size ?? 4.5, 0, 2 * Math.PI);
    context.stroke();
    context.fill();
  }
}

function graph({ data }, layer, tools) {
  const { context, place } = tools;
  context.strokeStyle = tint(layer, tools);
  context.lineWidth = 1.8;
  context.lineJoin = "round";
  context.beginPath();
  layer.x.forEach((x, k) => context[k ? "lineTo" : "moveTo"](...place([x, data[k]])));
  context.stroke();
}

// --- Tokens ---------------------------------------------------------------------------

// Tokens up to the first that is no text -> the text of each
export function pieces(numbers, tokens) {
  const end = [...numbers].findIndex((k) => !tokens[Math.round(k)].length);
  const read = end < 0 ? [...numbers] : [...numbers].slice(0, end);
  return read.map((k) => tokens[Math.round(k)]);
}

const textOf = (parts) => new TextDecoder().decode(Uint8Array.from(parts.flat()));

function written({ data, shape: [n, length] }, { tokens }) {
  return Array.from({ length: n }, (_, i) => textOf(pieces(data.subarray(i * length, (i + 1) * length), tokens)));
}

// What was given, pale, and below it what the model writes
function sentences(data, layer, { context, colours, width, height }) {
  const texts = written(data, layer);
  const line = height / texts.length;
  const size = clamp(line * 0.36, 9, 15);
  context.textAlign = "left";
  context.textBaseline = "alphabetic";
  texts.forEach((text, i) => {
    const right = text === layer.truth[i];
    const write = (words, y, font, colour) => {
      context.font = font;
      context.fillStyle = colour;
      context.fillText(words, 8, y, width - 16);
    };
    const [upper, lower] = [line * (i + 0.42), line * (i + 0.86)];
    write(layer.given[i], upper, `${size * 0.85}px system-ui, sans-serif`, colours.quiet);
    write(`${right ? "✓" : "✗"} ${text || "(nothing)"}`, lower, `${right ? 600 : 400} ${size}px system-ui, sans-serif`, colours.ink);
    if (i === 0) return;
    context.fillStyle = colours.line;
    context.fillRect(8, Math.round(line * i) + 0.5, width - 16, 1);
  });
}

// The rows and columns that are text, with one more for the end
function sides({ rows, cols, tokens }, outputs) {
  return [rows, cols].map((name) => {
    const { data } = outputs[name];
    const parts = pieces(data, tokens).map((bytes) => textOf([bytes]).replace(/^ $/, "␣").trim());
    return parts.length < data.length ? [...parts, "end"] : parts;
  });
}

function alignment({ data, shape: [, S] }, layer, { context, colours, dark, width, height }, outputs) {
  const [down, across] = sides(layer, outputs);
  const size = clamp(width / 26, 10, 14);
  context.font = `${size}px system-ui, sans-serif`;
  const longest = (names) => Math.max(...names.map((name) => context.measureText(name).width));
  const [left, top] = [Math.min(longest(down) + 14, width / 2), Math.min(longest(across) + 14, height / 2)];
  const [w, h] = [(width - left - 6) / across.length, (height - top - 6) / down.length];
  const [ground, full] = [rgb(colours.surface), rgb(dark ? "#88ccee" : "#332288")];
  down.forEach((name, t) => {
    const row = data.subarray(t * S, t * S + across.length);
    across.forEach((_, s) => {
      const shade = ground.map((v, c) => Math.round(v + row[s] * (full[c] - v)));
      context.fillStyle = `rgb(${shade.join(", ")})`;
      context.fillRect(left + s * w, top + t * h, w - 1, h - 1);
      context.strokeStyle = colours.line;
      context.lineWidth = 1;
      context.strokeRect(left + s * w + 0.5, top + t * h + 0.5, w - 2, h - 2);
    });
    context.fillStyle = colours.ink;
    context.textAlign = "right";
    context.textBaseline = "middle";
    context.fillText(name, left - 7, top + (t + 0.5) * h, left - 10);
  });
  context.textAlign = "left";
  across.forEach((name, s) => {
    context.save();
    context.translate(left + (s + 0.5) * w, top - 7);
    context.rotate(-Math.PI / 2);
    context.fillStyle = colours.quiet;
    context.fillText(name, 0, 0, top - 10);
    context.restore();
  });
}

// What a screen reader finds in place of the picture
const SAID = {
  sentences(layer, outputs) {
    const data = layerData(layer, outputs);
    if (!data) return "";
    const one = (text, i) => `${layer.given[i]}: ${text || "nothing"}, ${text === layer.truth[i] ? "right" : "wrong"}`;
    return `${written(data, layer).map(one).join("; ")}.`;
  },
  alignment(layer, outputs) {
    const data = layerData(layer, outputs);
    if (!data) return "";
    const [down, across] = sides(layer, outputs);
    const S = data.shape[1];
    const most = (t) => {
      const row = [...data.data.subarray(t * S, t * S + across.length)];
      const best = row.indexOf(Math.max(...row));
      const where = across[best] === "␣" ? "a space" : across[best];
      return `${down[t]} looks at ${where}, ${Math.round(100 * row[best])} %`;
    };
    return `${down.map((_, t) => most(t)).join("; ")}.`;
  },
};

// Width over height of what holds words
const HEIGHTS = {
  sentences: ({ given }) => Math.min(1.6, 8.6 / given.length),
  alignment: () => 1,
};

const MARKS = { heatmap, images, points, lines, arrows, trail, graph, sentences, alignment };

// --- The legend: each layer with a label can be hidden --------------------------------

export function makeLegend(spec, hidden, redraw) {
  const items = spec.layers
    .filter(({ label }) => label)
    .map((layer) => {
      const sign = h("span", { class: `gl-sign gl-sign-${layer.mark}`, "aria-hidden": "true" });
      const [low, high] = layer.range ?? [];
      const words = layer.mark === "heatmap" ? [`${low} `, sign, ` ${high}  ${layer.label}`] : [sign, ` ${layer.label}`];
      const button = h("button", { type: "button", "aria-pressed": "true", title: `Show or hide: ${layer.label}`, onclick: toggle }, words);
      function toggle() {
        const off = !hidden.has(layer);
        hidden[off ? "add" : "delete"](layer);
        button.setAttribute("aria-pressed", String(!off));
        redraw();
      }
      return { layer, sign, button };
    });
  // Moving points have a name each
  const movers = spec.layers
    .filter(({ mark }) => mark === "trail")
    .flatMap((layer) => layer.labels.map((name, k) => ({ layer, k, name, sign: h("span", { class: "gl-sign" }) })));
  const entries = [...items.map(({ button }) => button), ...movers.map(({ sign, name }) => h("span", { class: "gl-mover" }, sign, ` ${name}`))];
  const element = entries.length ? h("ul", { class: "gl-layers", "aria-label": `Layers of ${spec.title}` }, entries.map((entry) => h("li", {}, entry))) : null;
  function paint(colours) {
    const tools = { colours, dark: contrast(rgb(colours.surface), [0, 0, 0]) < 5, order: spec.layers };
    for (const { layer, k, sign } of movers) sign.style.background = tint(layer, tools, k);
    for (const { layer, sign } of items) {
      if (layer.mark !== "heatmap") sign.style.background = tint(layer, tools);
      else {
        const table = heatColours(tools);
        const stops = [0, 128, 255].map((i) => `rgb(${table[i].join(", ")})`);
        sign.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
      }
    }
  }
  return { element, paint };
}
