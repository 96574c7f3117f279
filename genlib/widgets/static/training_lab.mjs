// The training lab: start, pause and steer a training, watch its panels and curves.
// It draws; an engine (the kernel, or the page's own) trains.
import { makeChart, short } from "./curves.mjs";
import { makeChoice, makeSlider, plain, typed } from "./controls.mjs";
import { LostKernel, kernelEngine } from "./engine.mjs";
import { PALETTE, h, onTheme, pageColours } from "./dom.mjs";
import { aspectOf, isPlane, makeLegend, makePanel } from "./panels.mjs";
import { makePaste } from "./paste.mjs";
import { makeSketch } from "./sketch.mjs";
import { makeTextPanel } from "./text_panel.mjs";

const SPEEDS = [1, 3, 10, 30, 100, Infinity]; // steps a second
const CALL_MS = 32; // of training in one request at full speed
const VIEW_MS = 33; // between two pictures, and with reduced motion:
const STILL_MS = 500;
const CHART_MS = 100; // between two drawings of the curves
const MOST_STEPS = 1024; // in one request
const TELL_MS = 5000; // between two reports to a screen reader
const MOST_SEED = 0xffffffff;
const AT_REST = 100; // tokens that a paused model writes on request

// Steps for the next request, given what one was seen to cost in milliseconds
export function stepsFor(cost, before) {
  return Math.max(1, Math.min(Math.round(CALL_MS / cost), 2 * before, MOST_STEPS));
}

// A request at `speed` steps a second: how many steps, and how often
export function rhythm(speed) {
  const n = Math.max(1, Math.round((speed * VIEW_MS) / 1000));
  return { n, every: (1000 * n) / speed };
}

// Walk through an answer's rows: seen(column, step, value) for each metric of a phase
// that ran; returns the first that is not finite, {column, step, value}, or null
export function readMetrics({ metrics, gates, step }, phases, seen) {
  const [n, count] = metrics.shape;
  const first = step.data[0] - n + 1;
  for (let k = 0; k < n; k += 1) {
    for (let column = 0; column < count; column += 1) {
      if (!gates.data[k * gates.shape[1] + phases[column]]) continue;
      const value = metrics.data[k * count + column];
      if (!Number.isFinite(value)) return { column, step: first + k, value };
      seen(column, first + k, value);
    }
  }
  return null;
}

function render({ model, el, started = false }) {
  const spec = model.get("spec");
  const engine = model.engine ?? kernelEngine(model);
  const key = Math.random().toString(36).slice(2); // one run of the engine is this view's
  const uid = `gl${key.slice(0, 6)}`;
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const names = spec.metrics.map(({ name }) => name);
  const phaseOf = spec.metrics.map(({ phase }) => phase);
  let closed = false;
  let [running, broken, onscreen] = [false, false, true];
  let seed = spec.seed;
  let step = 0;
  let latest = {}; // metric -> newest value
  let colours = null; // the page's, now
  let charted = 0; // when the curves were last drawn
  let view = null; // what is to be drawn: {outputs, moved, ms}

  // --- Elements ---------------------------------------------------------------
  const status = h("p", { class: "gl-status", role: "status" });
  const live = h("p", { class: "gl-hidden", "aria-live": "polite" });
  const say = (text) => {
    if (status.textContent !== text) status.textContent = text;
  };
  const tell = (text) => {
    live.textContent = text;
  };
  const button = (text, onclick, title, more = {}) => h("button", { type: "button", onclick, title, ...more }, text);

  const hidden = new Set(); // layers
  const plane = spec.panels.find(isPlane);
  const ratio = plane ? aspectOf(plane) : 1.25;
  const writes = ({ layers }) => layers[0].mark === "text";
  const writeButtons = spec.panels.map((panel) => writes(panel) && button(`Write ${AT_REST} characters`, writeOn, "The model as it is now writes on"));
  const panels = spec.panels.map((panel, k) => (writes(panel) ? makeTextPanel(panel, writeButtons[k]) : makePanel(panel, hidden, ratio)));
  const kept = spec.panels.map((panel) => (writes(panel) ? makeTextPanel(panel) : makePanel(panel, hidden, ratio)));
  const texts = panels.filter(({ take }) => take);
  const legends = spec.panels.map((panel) => makeLegend(panel, hidden, redraw));
  panels.forEach(({ element }, k) => legends[k].element && element.append(legends[k].element));
  const trails = spec.panels.flatMap(({ layers }) => layers.filter(({ mark }) => mark === "trail"));
  const known = Object.fromEntries(
    trails.flatMap(({ labels, colours = PALETTE }) => labels.map((label, k) => [label, colours[k]])),
  );
  const charts = spec.curves.map((curve) => makeChart(curve, known));

  const main = button("Start", () => (running ? pause() : start()), "Train, or stop training", { class: "gl-main", "data-first": true });
  const stepButtons = [button("One step", () => single(null), "Train one step")].concat(
    spec.phases.map((name) => button(`One ${name} step`, () => single(name), `One step in which ${name} alone is trained`)),
  );
  const resetButton = button("Reset", reset, "Start again from the seed, with the present settings");
  const seedField = h("input", { type: "text", class: "gl-typed", inputmode: "numeric", autocomplete: "off", id: `${uid}-seed`, onchange: readSeed });
  seedField.value = seed;
  const speed = h("input", {
    type: "range",
    id: `${uid}-speed`,
    min: 0,
    max: SPEEDS.length - 1,
    step: 1,
    oninput: () => {
      showSpeed();
      due = 0;
      wake();
    },
  });
  // A path wants every step in the picture
  speed.value = trails.length ? SPEEDS.indexOf(30) : SPEEDS.length - 1;
  const speedText = h("span", { class: "gl-quiet", "aria-hidden": "true" });
  const stepText = h("span", { class: "gl-step" }, "step 0");
  const rateText = h("span", { class: "gl-quiet" });
  const cardButton = button("Try the graphics card", tryCard, "Measure whether the card trains faster (loads 27 MB once), and use it if so", { hidden: true });
  const keepButton = button("Keep this state", keep, "Hold the present pictures and curves beside what comes");
  const keptText = h("span");
  const keptBox = h(
    "section",
    { class: "gl-kept", hidden: true, "aria-label": "The kept state" },
    h("div", { class: "gl-buttons" }, keptText, button("Let go", letGo, "Show the kept state no longer")),
    h("div", { class: "gl-panels" }, kept.map(({ element }) => element)),
  );

  const controls = spec.controls.map((control) =>
    control.kind === "slider" ? makeSlider(control, uid, refresh, say) : makeChoice(control, uid, refresh),
  );
  const tables = spec.tables.filter(({ options, draw, chars }) => options.length > 1 || draw !== null || chars).map(makeTable);
  // Few settings beside many curves would leave a hole: then curves stand side by side
  const wide = charts.length > 1 && controls.length + tables.length <= 4;
  const settings =
    controls.length + tables.length > 0 &&
    h(
      "div",
      { class: "gl-settings", role: "group", "aria-label": "Settings" },
      tables.map(({ element }) => element),
      controls.map(({ element }) => element),
      controls.length ? h("div", { class: "gl-buttons" }, button("Default settings", () => controls.forEach(({ restore }) => restore()), "All sliders and choices as they were")) : null,
    );

  const root = h(
    "div",
    { class: "gl-widget gl-lab", role: "group", "aria-labelledby": `${uid}-title`, "data-lm-suppress-shortcuts": "true" },
    h("p", { class: "gl-title", id: `${uid}-title` }, spec.title),
    h(
      "div",
      { class: `gl-body gl-body-${Math.min(3, panels.length)}${wide && panels.length > 1 ? " gl-wide" : ""}` },
      h("div", { class: "gl-panels" }, panels.map(({ element }) => element)),
      h(
        "div",
        { class: "gl-bar" },
        h("div", { class: "gl-buttons" }, main, stepButtons, h("span", { class: "gl-readout" }, stepText, rateText)),
        h(
          "div",
          { class: "gl-buttons" },
          h("span", { class: "gl-pair" }, h("label", { for: `${uid}-speed` }, "speed"), speed, speedText),
          h("span", { class: "gl-pair" }, resetButton, h("label", { for: `${uid}-seed` }, "seed"), seedField),
          keepButton,
          cardButton,
        ),
        status,
      ),
      keptBox,
      settings || null,
      h("div", { class: "gl-charts" }, charts.map(({ element }) => element)),
    ),
    live,
  );
  root.genlib = { engine, key };
  el.append(root);

  // --- The data, chosen or drawn ------------------------------------------------
  function makeTable({ name, label, options, draw, chars, width }) {
    const select = h("select", { id: `${uid}-${name}`, onchange: () => choose(select.value) }, options.map((option) => h("option", { value: option }, option)));
    const own = h("option", { value: "" }, chars ? "your text" : "your drawing");
    const sketches = draw !== null && button("Draw…", openSketch, `Draw the ${label} yourself`);
    const more = chars ? button("Paste…", openPaste, `Bring a ${label} of your own`, { "aria-expanded": "false" }) : sketches || null;
    let rows = null;
    let sketch = null;
    let paste = null;

    function choose(option) {
      ask(async () => {
        if (option) await call({ op: "choose", table: name, name: option });
        else await call({ op: "table", table: name }, { rows });
      });
      refresh();
    }

    function openSketch() {
      if (sketch) return;
      sketch = makeSketch(panels[draw], label, {
        say: (text, quiet) => (quiet ? tell(text) : say(text)),
        leave: closeSketch,
        use(points) {
          rows = { data: Float32Array.from(points.flat()), shape: [points.length, 2] };
          select.append(own);
          select.value = "";
          closeSketch();
          say("");
          tell(`The ${label} is your drawing of ${points.length} points.`);
          choose("");
        },
      });
      panels[draw].element.append(sketch.bar);
      sketch.open();
    }

    function closeSketch() {
      sketch.close();
      sketch = null;
      more.focus({ preventScroll: true });
    }

    function openPaste() {
      if (paste) return;
      paste = makePaste({ label, chars, width }, uid, {
        say,
        leave: closePaste,
        use(pasted, count, note) {
          rows = pasted;
          select.append(own);
          select.value = "";
          closePaste();
          say([`The ${label} is now yours: ${count.toLocaleString("en-GB")} characters. The training goes on; Reset starts it anew.`, note].filter(Boolean).join(" "));
          choose("");
        },
      });
      more.setAttribute("aria-expanded", "true");
      element.after(paste.element);
      paste.focus();
    }

    function closePaste() {
      paste.element.remove();
      paste = null;
      more.setAttribute("aria-expanded", "false");
      more.focus({ preventScroll: true });
    }

    const element = h("div", { class: "gl-control" }, h("label", { for: select.id }, label), select, more);
    return {
      element,
      redraw: () => sketch?.draw(),
      // a run that was lost forgot what was chosen
      restore: () => (select.value === options[0] ? null : choose(select.value)),
    };
  }

  // --- Asking: one request at a time, the newest picture drawn -----------------------
  const jobs = [];
  let busy = false;
  let wake = () => {};
  let due = 0; // when the next training request may go
  let n = 1; // steps in it at full speed
  let cost = null; // milliseconds a step
  let viewed = 0; // when the last picture was asked for
  let stale = false; // whether steps were done since
  let told = 0;
  const pace = []; // [time, step] of the last second

  const call = (what, inputs = {}) => engine.run(inputs, { key, ...what });
  const scalars = () => Object.fromEntries(controls.map(({ name, value }) => [name, value()]));
  const going = () => running && onscreen && !document.hidden;

  function ask(job) {
    jobs.push(job);
    wake();
    pump();
  }

  async function pump() {
    if (busy || closed) return;
    busy = true;
    try {
      while (!closed && (jobs.length || going())) await (jobs.shift() ?? train)();
    } catch (error) {
      if (!closed) fail(error);
    }
    busy = false;
  }

  async function train() {
    const now = performance.now();
    if (due > now + 1) {
      await new Promise((done) => {
        wake = done;
        setTimeout(done, due - now);
      });
      return;
    }
    const rate = SPEEDS[speed.value];
    const full = rate === Infinity;
    const { n: few, every } = full ? { n, every: 0 } : rhythm(rate);
    due = Math.max(due, now - every) + every;
    await advance(full ? n : few, null, now - viewed >= (still.matches ? STILL_MS : VIEW_MS - 1));
    if (now - told > TELL_MS) {
      told = now;
      tell(summary());
    }
  }

  // What the panels of text have written is what their model reads next
  async function feedTexts() {
    for (const text of texts) {
      const rows = text.take();
      if (rows) await call({ op: "table", table: text.table }, { rows });
    }
  }

  async function advance(count, gates, look) {
    if (look) await feedTexts();
    const asked = performance.now();
    if (look) viewed = asked;
    const answer = await call({ op: "step", n: count, scalars: scalars(), gates, view: look });
    if (closed) return;
    const each = answer.ms.data[0] / count;
    cost = cost === null ? each : 0.6 * cost + 0.4 * each;
    n = stepsFor(cost, n);
    if (step === 0) show();
    [step] = answer.step.data;
    if (step === count) show();
    stale = !look;
    const bad = readMetrics(answer, phaseOf, note);
    if (look) present(answer, true, performance.now() - asked);
    if (bad) diverge(bad);
  }

  function note(column, at, value) {
    latest[names[column]] = value;
    for (const { chart, k } of sinks.metric[names[column]] ?? []) chart.add(k, at, value);
  }

  // Ask for the picture of the present state
  async function look(moved) {
    await feedTexts();
    const asked = performance.now();
    const answer = await call({ op: "view", scalars: scalars() });
    stale = false;
    if (!closed) present(answer, moved, performance.now() - asked);
  }

  // A setting has moved: at rest its picture is asked for, training it comes by itself
  let refreshing = false;
  function refresh() {
    if (going() || refreshing) return;
    refreshing = true;
    ask(() => {
      refreshing = false;
      return look(false);
    });
  }

  // --- Drawing ---------------------------------------------------------------------
  const sinks = { metric: {}, view: {} };
  spec.curves.forEach(({ series }, c) =>
    series.forEach(({ metric, view: output }, k) => {
      const group = metric === undefined ? sinks.view : sinks.metric;
      (group[metric ?? output] ??= []).push({ chart: charts[c], k });
    }),
  );

  function present(outputs, moved, ms) {
    for (const [name, group] of Object.entries(sinks.view)) {
      for (const { chart, k } of group) chart.add(k, step, outputs[name].data[0]);
    }
    if (moved && step > 0) texts.forEach((text) => text.read(outputs, seed));
    if (view === null) requestAnimationFrame(paint);
    view = { outputs, moved: moved || view?.moved, ms };
  }

  function paint(now) {
    if (closed || view === null) return;
    const { outputs, moved, ms } = view;
    view = null;
    panels.forEach((panel) => panel.show(outputs, moved, colours));
    if (!running || now - charted > CHART_MS) {
      charted = now;
      charts.forEach((chart) => chart.draw(step, colours));
    }
    const perSecond = running ? measurePace(now) : 0;
    stepText.textContent = `step ${step.toLocaleString("en-GB")}`;
    rateText.textContent = perSecond ? `${short(perSecond)} a second` : "";
    const detail = { step, metrics: { ...latest }, perSecond, ms };
    root.dispatchEvent(new CustomEvent("genlib:lab", { detail, bubbles: true }));
  }

  function measurePace(now) {
    pace.push([now, step]);
    while (pace.length > 2 && now - pace[0][0] > 1500) pace.shift();
    const [from, first] = pace[0];
    return now - from > 200 && step > first ? (1000 * (step - first)) / (now - from) : 0;
  }

  function redraw() {
    if (closed) return;
    colours = pageColours(root);
    [...panels, ...kept].forEach((panel) => panel.draw(colours));
    charts.forEach((chart) => chart.redraw(colours));
    legends.forEach((legend) => legend.paint(colours));
    tables.forEach((table) => table.redraw());
  }

  // --- What the reader does -------------------------------------------------------------
  function summary() {
    const curves = charts.map((chart) => chart.words()).filter(Boolean);
    const written = texts.map((text) => text.words()).filter(Boolean);
    return [`Step ${step}`, ...curves, ...written.map((words) => `It writes: ${words}`)].join(". ");
  }

  function writeOn() {
    if (running) stop();
    ask(async () => {
      for (let k = 0; k < AT_REST && !closed && !running; k += 1) await look(true);
      tell(summary());
    });
  }

  function show() {
    main.textContent = running ? "Pause" : "Start";
    root.classList.toggle("gl-running", running);
    [main, ...stepButtons].forEach((item) => {
      item.disabled = broken;
    });
    writeButtons.filter(Boolean).forEach((item) => {
      item.disabled = broken || step === 0;
    });
    if (!running) rateText.textContent = "";
  }

  function showSpeed() {
    const rate = SPEEDS[speed.value];
    const text = rate === Infinity ? "full" : `${rate} a second`;
    speedText.textContent = text;
    speed.setAttribute("aria-valuetext", rate === Infinity ? "full" : `${rate} steps a second`);
  }

  function start() {
    running = true;
    [due, told] = [0, performance.now()];
    pace.length = 0;
    say("");
    tell("Training.");
    show();
    pump();
  }

  function pause() {
    stop();
    ask(async () => {
      if (stale) await look(true);
      tell(`Paused. ${summary()}`);
    });
  }

  function stop() {
    running = false;
    pace.length = 0;
    wake();
    show();
  }

  function single(phase) {
    if (running) stop();
    const gates = phase && Object.fromEntries(spec.phases.map((name) => [name, Number(name === phase)]));
    ask(async () => {
      await advance(1, gates, true);
      tell(summary());
    });
  }

  function reset() {
    stop();
    broken = false;
    say("");
    show();
    jobs.length = 0;
    refreshing = false;
    ask(async () => {
      await call({ op: "reset", seed });
      [step, latest, stale] = [0, {}, false];
      [...panels, ...charts].forEach((part) => part.reset());
      tell(`Reset, from seed ${seed}.`);
    });
    tables.forEach((table) => table.restore());
    ask(() => look(true));
  }

  function readSeed() {
    const read = typed(seedField.value, { label: "Seed", min: 0, max: MOST_SEED, integer: true }, seed);
    say(read.note || (read.value === seed ? "" : `Reset starts again from seed ${read.value}.`));
    seed = read.value;
    seedField.value = seed;
  }

  function keep() {
    ask(async () => {
      if (stale) await look(true);
      paint(performance.now());
      keptText.textContent = `Kept: step ${step.toLocaleString("en-GB")}, seed ${seed}`;
      keptBox.hidden = false;
      panels.forEach((panel, k) => kept[k].paste(panel.copy()));
      charts.forEach((chart) => chart.keep(step));
      redraw();
      tell(`Kept at step ${step}.`);
    });
  }

  function letGo() {
    keptBox.hidden = true;
    charts.forEach((chart) => chart.forget());
    redraw();
    keepButton.focus({ preventScroll: true });
  }

  // A step of many small operations can be slower on a card than without it: measure
  function tryCard() {
    if (cardButton.ariaDisabled) return;
    cardButton.ariaDisabled = "true"; // not disabled, which would take the focus away
    const each = (ms) => `${short(ms)} ms`;
    const message = { n, key, scalars: scalars() };
    engine
      .tryCard(message, say)
      .then(({ here, there, use }) => `A step takes ${each(there)} on the graphics card and ${each(here)} without it. ${use ? "The card computes from now on." : "So it stays without."}`)
      .catch((error) => {
        cardButton.ariaDisabled = null;
        return `The graphics card is not used: ${error.message}`;
      })
      .then((words) => {
        if (closed) return;
        cost = null; // what a step costs is learned anew
        say(words);
      });
  }

  engine.findCard?.().then((found) => {
    cardButton.hidden = !found;
  }, () => {});

  // --- What goes wrong --------------------------------------------------------------------
  function halt(text, ...more) {
    stop();
    broken = true;
    const focused = [main, ...stepButtons].includes(document.activeElement);
    show();
    if (focused) resetButton.focus({ preventScroll: true });
    status.replaceChildren(text, ...more);
  }

  function diverge({ column, step: at, value }) {
    const what = Number.isNaN(value) ? "not a number (NaN)" : "infinite";
    halt(
      `The training has diverged: ${names[column]} is ${what} at step ${at.toLocaleString("en-GB")}. Change a setting, a smaller learning rate for example, then start again: `,
      button("Reset", reset),
    );
  }

  function fail(error) {
    jobs.length = 0;
    refreshing = false;
    if (error instanceof LostKernel) return;
    const lost = error.message.includes("RunLost");
    halt(
      lost
        ? "The kernel no longer holds this training: it was restarted, or this cell was run again. Settings and drawings are still here. "
        : `The training failed. ${error.message} `,
      button("Reset", reset),
    );
  }

  engine.watch?.((now) => {
    if (now === "ready") say("");
    if (now === "waiting") {
      say("The kernel does not answer yet: it is busy, or gone. If it was restarted or shut down, run this cell again.");
    }
    if (now === "lost") {
      halt("The kernel is gone. Run this cell again to go on training.");
      resetButton.disabled = true;
    }
  });

  // --- Start, and leave nothing behind ------------------------------------------------------
  const resized = new ResizeObserver(redraw);
  panels.forEach(({ frame }) => resized.observe(frame));
  charts.forEach(({ canvas }) => resized.observe(canvas));
  const seen = new IntersectionObserver(([entry]) => {
    onscreen = entry.isIntersecting;
    pace.length = 0;
    pump();
  });
  seen.observe(root);
  document.addEventListener("visibilitychange", pump);
  const untheme = onTheme(redraw);
  redraw();
  showSpeed();
  reset();
  if (started && !still.matches) start();

  return () => {
    closed = true;
    wake();
    resized.disconnect();
    seen.disconnect();
    document.removeEventListener("visibilitychange", pump);
    untheme();
    engine.run({}, { op: "close", key }).catch(() => {});
    engine.close();
    root.remove();
  };
}

export default { render };
