// The latent explorer: a map of z to drag on, sliders, the decoded image, a walk A to B.
// It draws; an engine (the kernel, or the page's own) decodes.
import { LostKernel, kernelEngine, newestOnly } from "./engine.mjs";
import { clamp, contrast, drawImage, h, number, onTheme, places, readable, rgb, ticks } from "./dom.mjs";

const FRAMES = 9; // pictures on the line from A to B
const WALK_MS = 4000;
const QUIET_MS = 500; // stillness after which a screen reader is told
const SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉";

const subscript = (n) => [...String(n)].map((d) => SUBSCRIPTS[d]).join("");
const axisName = (dim) => `z${subscript(dim + 1)}`;

// Points on the straight line from a to b: (count, Z) in one Float32Array
export function lineBetween(a, b, count) {
  const out = new Float32Array(count * a.length);
  for (let k = 0; k < count; k += 1) {
    const t = count === 1 ? 0 : k / (count - 1);
    a.forEach((from, d) => {
      out[k * a.length + d] = (1 - t) * from + t * b[d];
    });
  }
  return out;
}

// Index and Euclidean distance of the data point nearest to z, in all dimensions
export function nearest(points, z) {
  let [index, least] = [-1, Infinity];
  points.forEach((point, i) => {
    let sum = 0;
    for (let d = 0; d < z.length; d += 1) sum += (point[d] - z[d]) ** 2;
    if (sum < least) [index, least] = [i, sum];
  });
  return { index, distance: Math.sqrt(least) };
}

// Latent coordinate -> position in 0..1 from the low end, and back
export const toUnit = (value, [low, high]) => (value - low) / (high - low);
export const fromUnit = (t, [low, high]) => low + t * (high - low);

// Mean absolute difference of two images, in per cent of the range 0..1
export function changed(before, after) {
  if (!before || before.length !== after.length) return null;
  let sum = 0;
  for (let i = 0; i < after.length; i += 1) sum += Math.abs(after[i] - before[i]);
  return Math.round((100 * sum) / after.length);
}

// A standard normal number, by Box and Muller
export function normal(random = Math.random) {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}

function median(values) {
  const sorted = [...values].sort((x, y) => x - y);
  return sorted[Math.floor(sorted.length / 2)];
}

function render({ model, el }) {
  const spec = model.get("spec");
  const engine = model.engine ?? kernelEngine(model);
  const { classes, colours, points, labels, ranges, image } = spec;
  const size = ranges.length;
  const state = {
    z: Float32Array.from(spec.start),
    a: Float32Array.from(spec.a),
    b: Float32Array.from(spec.b),
    dims: [...spec.dims],
    only: null, // the one class that is shown, or null for all
    walk: null, // the animation's handle while walking
    step: 0, // the frame reached when motion is reduced
  };
  let shown = null; // the last decoded image
  let said = { z: null, label: null, data: null }; // what a screen reader heard last
  let timer = null;
  let closed = false;

  // --- Elements ---------------------------------------------------------------
  const uid = Math.random().toString(36).slice(2, 8);
  const canvas = h("canvas", { "aria-hidden": "true" });
  const pad = h(
    "div",
    {
      class: "gl-pad",
      role: "application",
      tabindex: "0",
      "aria-roledescription": "two-dimensional pad",
      "aria-label": "Latent plane. Arrow keys move z, with Shift in larger steps.",
      onpointerdown: grab,
      // The browser holds back "pointermove" until it next paints; "raw" comes at once
      ["onpointerrawupdate" in window ? "onpointerrawupdate" : "onpointermove"]: drag,
      onpointerup: release,
      onpointercancel: release,
      onkeydown: press,
    },
    canvas,
  );
  const legend = h("ul", { class: "gl-legend", "aria-label": "Classes: press one to see it alone" });
  const legendButtons = classes.map((name, k) =>
    h(
      "button",
      { type: "button", "aria-pressed": "false", title: `Show class ${name} alone`, onclick: () => choose(k) },
      name,
    ),
  );
  legend.append(...legendButtons.map((button) => h("li", {}, button)));

  const picture = h("canvas", { class: "gl-image", role: "img", "aria-label": "Decoded image" });
  const zText = h("span");
  const nearText = h("span", { class: "gl-quiet" });
  const live = h("p", { class: "gl-hidden", "aria-live": "polite" });
  const status = h("p", { class: "gl-status", role: "status" });

  const sliders = ranges.map(([low, high], d) => {
    const input = h("input", {
      type: "range",
      id: `${uid}-z${d}`,
      min: low,
      max: high,
      step: (high - low) / 400,
      "aria-label": `z ${d + 1}`,
      oninput: () => move(state.z.map((v, i) => (i === d ? Number(input.value) : v))),
    });
    return { input, output: h("output", { for: `${uid}-z${d}` }) };
  });
  const sliderBox = h(
    "div",
    { class: "gl-sliders", role: "group", "aria-label": "One slider a dimension" },
    sliders.map(({ input, output }, d) =>
      h("div", { class: "gl-slider" }, h("span", { "aria-hidden": "true" }, axisName(d)), input, output),
    ),
  );

  const button = (label, onclick, title) => h("button", { type: "button", onclick, title }, label);
  const walkButton = button("Walk from A to B", walk, "Move z along the straight line");
  const film = Array.from({ length: FRAMES }, (_, k) => {
    const frame = h("canvas", { "aria-hidden": "true" });
    const percent = Math.round((100 * k) / (FRAMES - 1));
    const go = h(
      "button",
      { type: "button", "aria-label": `Go to ${percent} per cent of the way from A to B`, onclick: () => goTo(k) },
      frame,
    );
    return { frame, go };
  });

  const axes =
    size > 2 &&
    h(
      "div",
      { class: "gl-axes" },
      ["across", "up"].map((way, side) => {
        const select = h("select", { onchange: () => turn(side, Number(select.value)) });
        select.append(...ranges.map((_, d) => h("option", { value: d }, axisName(d))));
        select.value = state.dims[side];
        return h("label", {}, `${way} `, select);
      }),
    );

  const root = h(
    "div",
    { class: "gl-widget gl-explorer", role: "group", "aria-labelledby": `${uid}-title` },
    h("p", { class: "gl-title", id: `${uid}-title` }, spec.title),
    h(
      "div",
      { class: "gl-cols" },
      h("div", {}, pad, axes || null, legend),
      h(
        "div",
        { class: "gl-side" },
        picture,
        h("p", { class: "gl-readout" }, zText, nearText),
        sliderBox,
        h(
          "div",
          { class: "gl-buttons" },
          button("Random z", random, "Draw z from the standard normal prior"),
          button("Reset", reset, "Back to the start"),
        ),
      ),
    ),
    h(
      "div",
      { class: "gl-walk" },
      h(
        "div",
        { class: "gl-buttons" },
        button("Set A here", () => mark("a"), "Let the walk start at z"),
        button("Set B here", () => mark("b"), "Let the walk end at z"),
        walkButton,
      ),
      h("ol", { class: "gl-film", "aria-label": "Images on the straight line from A to B" }, film.map(({ go }) => h("li", {}, go))),
    ),
    status,
    live,
  );
  el.append(root);

  // --- The map ----------------------------------------------------------------
  let backdrop = null; // points, axes and names, redrawn only when they change
  let pixels = 0;

  function place(z) {
    const [i, j] = state.dims;
    return [toUnit(z[i], ranges[i]) * pixels, (1 - toUnit(z[j], ranges[j])) * pixels];
  }

  const palette = document.createElement("canvas").getContext("2d");

  function colour(name) {
    // A canvas reads every way of writing a colour and answers "#rrggbb"
    palette.fillStyle = getComputedStyle(root).getPropertyValue(name);
    return palette.fillStyle;
  }

  function drawBackdrop() {
    const box = pad.clientWidth;
    if (!box) return;
    const scale = globalThis.devicePixelRatio || 1;
    pixels = box;
    canvas.width = canvas.height = Math.round(box * scale);
    backdrop = document.createElement("canvas");
    backdrop.width = backdrop.height = canvas.width;
    const context = backdrop.getContext("2d");
    context.scale(scale, scale);
    const [ink, quiet, surface, line] = ["ink", "quiet", "surface", "line"].map((name) => colour(`--gl-${name}`));
    context.fillStyle = surface;
    context.fillRect(0, 0, box, box);

    const [i, j] = state.dims;
    context.font = "11px system-ui, sans-serif";
    context.lineWidth = 1;
    context.strokeStyle = line;
    context.fillStyle = quiet;
    const across = ticks(ranges[i]);
    for (const value of across) {
      const x = Math.round(toUnit(value, ranges[i]) * box) + 0.5;
      context.globalAlpha = value === 0 ? 1 : 0.4;
      stroke(context, x, 0, x, box);
      context.globalAlpha = 1;
      context.textAlign = "center";
      if (x > 30 && x < box - 30) context.fillText(number(value, places(across)), x, box - 5);
    }
    const up = ticks(ranges[j]);
    for (const value of up) {
      const y = Math.round((1 - toUnit(value, ranges[j])) * box) + 0.5;
      context.globalAlpha = value === 0 ? 1 : 0.4;
      stroke(context, 0, y, box, y);
      context.globalAlpha = 1;
      context.textAlign = "left";
      if (y > 30 && y < box - 30) context.fillText(number(value, places(up)), 5, y - 3);
    }
    context.font = "italic 13px system-ui, sans-serif";
    context.fillStyle = ink;
    context.textAlign = "right";
    context.fillText(axisName(i), box - 6, box - 6);
    context.textAlign = "left";
    context.fillText(axisName(j), 6, 15);

    const dark = contrast(rgb(surface), [0, 0, 0]) < 5;
    const shade = colours.map((c) => (dark ? readable(c, surface, 3.2) : c));
    points.forEach((point, n) => {
      const other = state.only !== null && labels[n] !== state.only;
      const [x, y] = place(point);
      context.globalAlpha = other ? 0.12 : 0.75;
      context.fillStyle = other ? quiet : shade[labels[n]];
      context.beginPath();
      context.arc(x, y, 2.4, 0, 2 * Math.PI);
      context.fill();
    });
    context.globalAlpha = 1;

    // Each class named at its median: colour is not the only sign. Many names would
    // hide one another; then the legend shows one class at a time
    const few = classes.length <= 12;
    context.font = "bold 12px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    classes.forEach((name, k) => {
      const own = points.filter((_, n) => labels[n] === k);
      if (!own.length || (state.only === null ? !few : state.only !== k)) return;
      const middle = state.z.map((_, d) => median(own.map((point) => point[d])));
      const [x, y] = place(middle);
      const width = Math.max(18, context.measureText(name).width + 9);
      context.fillStyle = shade[k];
      context.strokeStyle = surface;
      context.lineWidth = 1.5;
      context.beginPath();
      context.roundRect(x - width / 2, y - 9, width, 18, 9);
      context.fill();
      context.stroke();
      context.fillStyle = inkOn(shade[k]);
      context.fillText(name, x, y + 0.5);
    });
    legendButtons.forEach((item, k) => {
      item.style.background = shade[k];
      item.style.color = inkOn(shade[k]);
    });
    drawPad();
  }

  function inkOn(background) {
    const back = rgb(background);
    return contrast(back, [255, 255, 255]) > contrast(back, [0, 0, 0]) ? "#ffffff" : "#000000";
  }

  function stroke(context, x0, y0, x1, y1) {
    context.beginPath();
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
    context.stroke();
  }

  function drawPad() {
    if (!backdrop) return;
    const context = canvas.getContext("2d");
    const scale = canvas.width / pixels;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.drawImage(backdrop, 0, 0);
    context.setTransform(scale, 0, 0, scale, 0, 0);
    const [ink, surface] = [colour("--gl-ink"), colour("--gl-surface")];
    const [ax, ay] = place(state.a);
    const [bx, by] = place(state.b);
    context.lineWidth = 1.5;
    context.strokeStyle = ink;
    context.setLineDash([4, 4]);
    stroke(context, ax, ay, bx, by);
    context.setLineDash([]);
    context.font = "bold 11px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (const [name, x, y] of [["A", ax, ay], ["B", bx, by]]) {
      context.fillStyle = surface;
      context.strokeStyle = ink;
      context.fillRect(x - 8, y - 8, 16, 16);
      context.strokeRect(x - 8, y - 8, 16, 16);
      context.fillStyle = ink;
      context.fillText(name, x, y + 0.5);
    }
    const [x, y] = place(state.z);
    for (const [radius, width, style] of [[9, 5, surface], [9, 2.5, ink], [1.5, 3, ink]]) {
      context.lineWidth = width;
      context.strokeStyle = style;
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  // --- z moves, the image follows ---------------------------------------------
  // The newest z first, then the film when A or B has moved
  const wanted = { asked: null, film: false };
  const decode = newestOnly(async () => {
    try {
      while (wanted.asked !== null || wanted.film) {
        if (wanted.asked !== null) await decodeImage();
        else await decodeFilm();
      }
    } catch (error) {
      if (!closed && !(error instanceof LostKernel)) {
        trouble(`The decoder failed. ${error.message}`);
      }
    }
  }, engine.lanes);

  async function decodeImage() {
    const { z } = state;
    const { asked } = wanted;
    wanted.asked = null;
    const { x } = await engine.run({ z: { data: z, shape: [1, size] } });
    if (closed) return;
    shown = x.data;
    drawImage(picture, x.data, image);
    trouble("");
    const detail = { z: [...z], image: x.data, ms: performance.now() - asked };
    root.dispatchEvent(new CustomEvent("genlib:frame", { detail, bubbles: true }));
  }

  async function decodeFilm() {
    wanted.film = false;
    const data = lineBetween(state.a, state.b, FRAMES);
    const { x } = await engine.run({ z: { data, shape: [FRAMES, size] } });
    if (closed) return;
    const length = x.data.length / FRAMES;
    film.forEach(({ frame }, k) => {
      drawImage(frame, x.data.subarray(k * length, (k + 1) * length), image);
    });
  }

  function trouble(text) {
    if (status.textContent !== text) status.textContent = text;
  }

  engine.watch?.((now) => {
    if (now === "ready") trouble("");
    if (now === "waiting") {
      trouble("The kernel does not answer yet: it is busy, or gone. If it was restarted or shut down, run this cell again.");
    }
    if (now === "lost") {
      stop();
      trouble("The kernel is gone. Run this cell again to go on exploring.");
    }
  });

  function move(z) {
    state.z = Float32Array.from(z, (v, d) => clamp(v, ...ranges[d]));
    wanted.asked = performance.now();
    decode(); // at once: what follows is drawn while the answer is on its way
    const near = nearest(points, state.z);
    zText.textContent = size > 4 ? `z has ${size} dimensions` : `z = (${[...state.z].map((v) => number(v)).join(", ")})`;
    nearText.textContent = `nearest data point: ${classes[labels[near.index]]}, ${number(near.distance)} away`;
    sliders.forEach(({ input, output }, d) => {
      input.value = state.z[d];
      output.textContent = number(state.z[d]);
    });
    drawPad();
    clearTimeout(timer);
    timer = setTimeout(() => tell(classes[labels[near.index]]), QUIET_MS);
  }

  // What a screen reader hears once z rests: where it is, and what has changed
  function tell(label) {
    const where = [...state.z].map((v, d) => `z ${d + 1} ${number(v)}`);
    const moved = where.filter((_, d) => !said.z || said.z[d] !== state.z[d]);
    const difference = shown && changed(said.data, shown);
    const parts = [`${(size > 4 ? moved : where).join(", ")}.`, `Nearest data point: ${label}${said.label && said.label !== label ? `, before: ${said.label}` : ""}.`];
    if (difference !== null && said.data) parts.push(`The image changed by ${difference} per cent.`);
    live.textContent = parts.join(" ");
    picture.setAttribute("aria-label", `Decoded image at ${where.slice(0, 4).join(", ")}; nearest data point: ${label}`);
    said = { z: state.z, label, data: shown };
  }

  function fromPointer(event) {
    const box = canvas.getBoundingClientRect();
    const [i, j] = state.dims;
    const z = [...state.z];
    z[i] = fromUnit((event.clientX - box.left) / box.width, ranges[i]);
    z[j] = fromUnit(1 - (event.clientY - box.top) / box.height, ranges[j]);
    return z;
  }

  function grab(event) {
    if (event.button !== 0) return;
    event.preventDefault();
    pad.focus({ preventScroll: true });
    pad.setPointerCapture(event.pointerId);
    stop();
    move(fromPointer(event));
  }

  function drag(event) {
    if (pad.hasPointerCapture(event.pointerId)) move(fromPointer(event));
  }

  function release(event) {
    if (pad.hasPointerCapture(event.pointerId)) pad.releasePointerCapture(event.pointerId);
  }

  function press(event) {
    const way = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowDown: [1, -1], ArrowUp: [1, 1] }[event.key];
    if (!way || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation(); // the notebook would move to another cell
    stop();
    const d = state.dims[way[0]];
    const [low, high] = ranges[d];
    const step = ((high - low) / 100) * (event.shiftKey ? 10 : 1);
    move(state.z.map((v, k) => (k === d ? v + way[1] * step : v)));
  }

  function choose(k) {
    state.only = state.only === k ? null : k;
    legendButtons.forEach((item, n) => item.setAttribute("aria-pressed", String(n === state.only)));
    drawBackdrop();
  }

  function turn(side, dim) {
    const other = state.dims[1 - side];
    state.dims[side] = dim;
    if (other === dim) state.dims[1 - side] = ranges.findIndex((_, d) => d !== dim);
    axes.querySelectorAll("select").forEach((select, n) => {
      select.value = state.dims[n];
    });
    drawBackdrop();
  }

  // --- A to B -------------------------------------------------------------------
  function mark(name) {
    stop();
    state[name] = state.z.slice();
    state.step = 0;
    drawPad();
    wanted.film = true;
    decode();
    live.textContent = `${name.toUpperCase()} is set.`;
  }

  function current(k) {
    film.forEach(({ go }, n) => (n === k ? go.setAttribute("aria-current", "true") : go.removeAttribute("aria-current")));
  }

  function along(t) {
    move(state.a.map((from, d) => (1 - t) * from + t * state.b[d]));
    current(Math.round(t * (FRAMES - 1)));
  }

  function goTo(k) {
    stop();
    along(k / (FRAMES - 1));
  }

  function walk() {
    if (state.walk !== null) {
      stop();
      return;
    }
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
      along(state.step / (FRAMES - 1)); // one frame a press, nothing moves by itself
      state.step = (state.step + 1) % FRAMES;
      return;
    }
    let start = null;
    walkButton.textContent = "Stop";
    const tick = (now) => {
      start ??= now;
      const t = Math.min(1, (now - start) / WALK_MS);
      along(t);
      if (t < 1) state.walk = requestAnimationFrame(tick);
      else stop();
    };
    state.walk = requestAnimationFrame(tick);
  }

  function stop() {
    if (state.walk !== null) cancelAnimationFrame(state.walk);
    state.walk = null;
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    walkButton.textContent = still ? "Step from A to B" : "Walk from A to B";
    current(-1);
  }

  function random() {
    stop();
    move(state.z.map(() => normal()));
  }

  function reset() {
    stop();
    state.a = Float32Array.from(spec.a);
    state.b = Float32Array.from(spec.b);
    state.step = 0;
    if (state.only !== null) choose(state.only);
    wanted.film = true;
    move(spec.start);
  }

  // --- Start, and leave nothing behind --------------------------------------------
  const resized = new ResizeObserver(() => {
    if (pad.clientWidth !== pixels) drawBackdrop();
  });
  resized.observe(pad);
  const untheme = onTheme(drawBackdrop);
  stop();
  wanted.film = true;
  move(state.z);

  return () => {
    closed = true;
    stop();
    clearTimeout(timer);
    resized.disconnect();
    untheme();
    engine.close();
    root.remove();
  };
}

export default { render };
