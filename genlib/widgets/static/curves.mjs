// Curves of metrics over steps, of any length: what is kept are bins of 1, 2, 4, ...
// steps with their least, greatest and mean value, so a spike never disappears.
import { PALETTE, h, number, places, readable, sheet, ticks } from "./dom.mjs";

const BINS = 2048;
const MARGIN = { left: 38, right: 8, top: 8, bottom: 18 };

// The history of one number: add(step, value), columns(count, end), last(), copy()
export function makeSeries(from = null) {
  let width = from?.width ?? 1;
  const bins = from?.bins.slice() ?? [];
  let last = from?.last ?? null;

  function join(a, b) {
    if (!a || !b) return a ?? b;
    return { low: Math.min(a.low, b.low), high: Math.max(a.high, b.high), sum: a.sum + b.sum, count: a.count + b.count };
  }

  return {
    add(step, value) {
      if (!Number.isFinite(value)) return;
      last = value;
      while (Math.floor(step / width) >= BINS) {
        for (let i = 0; i < BINS / 2; i += 1) bins[i] = join(bins[2 * i], bins[2 * i + 1]);
        bins.length = BINS / 2;
        width *= 2;
      }
      const bin = Math.floor(step / width);
      bins[bin] = join(bins[bin], { low: value, high: value, sum: value, count: 1 });
    },
    // At most `count` columns over the steps 0..end: {step, low, high, mean} where known
    columns(count, end) {
      const each = Math.max(1, Math.ceil((end + 1) / width / count));
      const out = [];
      for (let i = 0; i < bins.length; i += each) {
        let column;
        for (let k = i; k < Math.min(i + each, bins.length); k += 1) column = join(column, bins[k]);
        if (!column) continue;
        // a bin of one step stands at that step, a wider one at its middle
        const step = i * width + (each * width - 1) / 2;
        out.push({ step: Math.min(step, end), low: column.low, high: column.high, mean: column.sum / column.count });
      }
      return out;
    },
    last: () => last,
    copy: () => makeSeries({ width, bins, last }),
  };
}

// The range of y that shows the columns, single outliers aside
export function rangeOf(columns, lines, log) {
  const kept = columns.filter(({ low }) => !log || low > 0);
  if (!kept.length) return log ? [0.1, 1] : [0, 1];
  const rank = (values, q) => values.sort((a, b) => a - b)[Math.round(q * (values.length - 1))];
  let low = rank(kept.map((c) => c.low), 0.01);
  let high = rank(kept.map((c) => c.high), 0.99);
  for (const { value } of lines) {
    if (log && value <= 0) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (log) return low === high ? [low / 2, high * 2] : [low / 1.2, high * 1.2];
  const room = 0.06 * (high - low) || 0.5 * Math.abs(low) || 1;
  return [low - room, high + room];
}

// Ticks of one axis alike: as many decimals as they need, or powers of ten
function axisText(value, all) {
  const size = Math.max(...all.map(Math.abs));
  return size >= 1e5 || size < 1e-3 ? tickText(Number(value.toPrecision(3))) : number(value, places(all));
}

// 1,200 or 0.0012 or 3.4e−7: as short as it can be said
export function short(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) {
    const [digits, power] = value.toExponential(1).split("e");
    return `${number(Number(digits), 1)}e${power.replace("+", "").replace("-", "−")}`;
  }
  return number(value, size >= 100 ? 0 : size >= 10 ? 1 : size >= 0.1 || size === 0 ? 2 : 4);
}

// Ticks of a log axis: 1, 2, 5, or powers of ten where these would be many
export function powers([low, high]) {
  const first = Math.floor(Math.log10(low));
  const decades = Math.log10(high / low);
  const every = Math.max(1, Math.round(decades / 5));
  const out = [];
  for (let p = first; 10 ** p <= high; p += decades > 2 ? every : 1) {
    for (const m of decades > 2 ? [1] : [1, 2, 5]) out.push(m * 10 ** p);
  }
  const within = out.filter((v) => v >= low && v <= high);
  return within.length > 1 ? within : ticks([low, high]).filter((_, i) => i % 2 === 0);
}

// One chart of the spec, with a legend that carries the newest values; `known` gives
// labels that have a colour elsewhere the same one here
export function makeChart(spec, known = {}) {
  const canvas = h("canvas", { "aria-hidden": "true" });
  const values = spec.series.map(() => h("span", { class: "gl-value" }));
  const keys = spec.series.map(() => h("span", { class: "gl-key" }));
  const legend = h(
    "ul",
    { class: "gl-values" },
    spec.series.map(({ label }, k) => h("li", {}, keys[k], ` ${label} `, values[k])),
  );
  const unit = spec.unit ? h("span", { class: "gl-quiet" }, ` (${spec.unit})`) : null;
  const element = h("div", { class: "gl-chart" }, h("p", { class: "gl-name" }, spec.title, unit), canvas, legend);
  let now = spec.series.map(() => makeSeries());
  let kept = null;
  let newest = 0;

  function draw(end, colours) {
    newest = end;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width) return;
    const context = sheet(canvas, width, height);
    const lines = spec.lines ?? [];
    const across = width - MARGIN.left - MARGIN.right;
    const reach = Math.max(end, kept?.end ?? 0, 20);
    const columns = now.map((s) => s.columns(across, reach));
    const before = kept?.series.map((s) => s.columns(across, reach)) ?? [];
    const [low, high] = rangeOf([...columns, ...before].flat(), lines, spec.log);
    const up = spec.log ? (v) => Math.log(v / low) / Math.log(high / low) : (v) => (v - low) / (high - low);
    const x = (step) => MARGIN.left + (step / reach) * across;
    const y = (v) => {
      const t = Math.min(1, Math.max(0, up(Math.max(v, spec.log ? low : -Infinity))));
      return MARGIN.top + (1 - t) * (height - MARGIN.top - MARGIN.bottom);
    };
    axes(context, { width, height, x, y, reach, range: [low, high], log: spec.log, colours });
    for (const { value } of lines) dotted(context, { width, y: y(value), colours });
    spec.series.forEach(({ label }, k) => {
      const shade = readable(known[label] ?? PALETTE[k % PALETTE.length], colours.surface, 3.2);
      keys[k].style.background = shade;
      if (before[k]) curve(context, before[k], { x, y, shade, dashed: true });
      curve(context, columns[k], { x, y, shade });
      const last = now[k].last();
      values[k].textContent = last === null ? "" : short(last);
    });
    for (const { value, label } of lines) write(context, { width, y: y(value), label, colours });
  }

  return {
    element,
    canvas,
    draw,
    redraw: (colours) => draw(newest, colours),
    add: (k, step, value) => now[k].add(step, value),
    reset() {
      now = spec.series.map(() => makeSeries());
    },
    // "loss: D 1.36, G 0.72"
    words() {
      const known = spec.series.flatMap(({ label }, k) => (now[k].last() === null ? [] : [`${label} ${short(now[k].last())}`]));
      return known.length ? `${spec.title}: ${known.join(", ")}` : "";
    },
    keep(end) {
      kept = { end, series: now.map((s) => s.copy()) };
    },
    forget() {
      kept = null;
    },
  };
}

// A tick's text, nothing behind its last digit: 0.05, 200, 1e−8
export function tickText(value) {
  const size = Math.abs(value);
  const plain = size === 0 || (size >= 0.01 && size < 1e5);
  return (plain ? String(Number(value.toPrecision(6))) : value.toExponential()).replace("e+", "e").replaceAll("-", "−");
}

function axes(context, { width, height, x, y, reach, range, log, colours }) {
  context.font = "11px system-ui, sans-serif";
  context.lineWidth = 1;
  context.strokeStyle = colours.line;
  context.fillStyle = colours.quiet;
  const bottom = height - MARGIN.bottom;
  const up = log ? powers(range) : ticks(range).filter((_, i, all) => all.length < 6 || i % 2 === 0);
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const value of up) {
    const at = Math.round(y(value)) + 0.5;
    line(context, MARGIN.left, at, width - MARGIN.right, at);
    context.fillText(log ? tickText(value) : axisText(value, up), MARGIN.left - 5, at);
  }
  context.textAlign = "center";
  context.textBaseline = "alphabetic";
  const steps = ticks([0, reach]).filter((_, i, all) => all.length < 6 || i % 2 === 0);
  for (const step of steps) {
    if (x(step) > width - 18) continue;
    context.fillText(step.toLocaleString("en-GB"), x(step), bottom + 14);
  }
  context.textAlign = "right";
  if (!steps.some((step) => x(step) > width - 62 && x(step) <= width - 18)) {
    context.fillText("step", width - MARGIN.right, bottom + 14);
  }
}

function dotted(context, { width, y, colours }) {
  context.strokeStyle = colours.quiet;
  context.setLineDash([2, 3]);
  line(context, MARGIN.left, y, width - MARGIN.right, y);
  context.setLineDash([]);
}

function write(context, { width, y, label, colours }) {
  context.textAlign = "right";
  context.textBaseline = "alphabetic";
  context.lineWidth = 3;
  context.strokeStyle = colours.surface;
  context.strokeText(label, width - MARGIN.right - 2, y - 3);
  context.lineWidth = 1;
  context.fillStyle = colours.quiet;
  context.fillText(label, width - MARGIN.right - 2, y - 3);
}

// A band from least to greatest and the mean as a line; kept curves are thin and dashed
function curve(context, columns, { x, y, shade, dashed = false }) {
  if (!columns.length) return;
  if (!dashed) {
    context.globalAlpha = 0.22;
    context.fillStyle = shade;
    context.beginPath();
    columns.forEach((c, i) => context[i ? "lineTo" : "moveTo"](x(c.step), y(c.high)));
    columns.toReversed().forEach((c) => context.lineTo(x(c.step), y(c.low)));
    context.fill();
  }
  context.globalAlpha = dashed ? 0.75 : 1;
  context.strokeStyle = shade;
  context.lineWidth = dashed ? 1 : 1.6;
  context.setLineDash(dashed ? [4, 3] : []);
  context.lineJoin = "round";
  context.beginPath();
  columns.forEach((c, i) => context[i ? "lineTo" : "moveTo"](x(c.step), y(c.mean)));
  if (columns.length === 1) context.arc(x(columns[0].step), y(columns[0].mean), 1.5, 0, 7);
  context.stroke();
  context.setLineDash([]);
  context.globalAlpha = 1;
}

function line(context, x0, y0, x1, y1) {
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  context.stroke();
}
