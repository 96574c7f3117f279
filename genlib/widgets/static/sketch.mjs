// The reader's own data, drawn on a panel: by pointer, or with arrow keys and space.
import { clamp, h, pageColours, sheet } from "./dom.mjs";

const DABS = 8; // points that one dab of the brush leaves
const BRUSH = 0.03; // radius of a dab, as part of the panel
const MOST = 4000;

// The points of dab number `count` about (x, y): a sunflower's spiral, each turned a bit
export function dab([x, y], [x0, x1, y0, y1], count) {
  return Array.from({ length: DABS }, (_, k) => {
    const radius = BRUSH * Math.sqrt((k + 0.5) / DABS);
    const angle = 2.399963 * (k + DABS * count);
    return [clamp(x + (x1 - x0) * radius * Math.cos(angle), x0, x1), clamp(y + (y1 - y0) * radius * Math.sin(angle), y0, y1)];
  });
}

// `panel` lends its frame; `use(points)` takes a finished drawing, `leave()` ends it,
// `say(text)` tells what happened, in words
export function makeSketch(panel, label, { use, leave, say }) {
  const [x0, x1, y0, y1] = panel.extent;
  let points = [];
  let cursor = [(x0 + x1) / 2, (y0 + y1) / 2];
  let dabs = 0;

  const canvas = h("canvas", { "aria-hidden": "true" });
  const pad = h(
    "div",
    {
      class: "gl-sketch",
      role: "application",
      tabindex: "0",
      "aria-roledescription": "drawing pad",
      "aria-label": `Draw the ${label}. Arrow keys move the cursor, with Shift in larger steps; the space bar places points.`,
      onpointerdown: grab,
      onpointermove: drag,
      onkeydown: press,
    },
    canvas,
  );
  const button = (text, onclick) => h("button", { type: "button", onclick }, text);
  const count = h("span", { class: "gl-quiet" });
  const bar = h(
    "div",
    { class: "gl-buttons gl-sketch-bar", role: "group", "aria-label": `Drawing of the ${label}` },
    button("Use this drawing", finish),
    button("Clear", clear),
    button("Cancel", leave),
    count,
  );

  function draw() {
    const [width, height] = panel.size();
    const context = sheet(canvas, width, height);
    const colours = pageColours(pad);
    context.fillStyle = colours.surface;
    context.globalAlpha = 0.78; // what was there shines through
    context.fillRect(0, 0, width, height);
    context.globalAlpha = 0.85;
    context.fillStyle = colours.ink;
    for (const point of points) {
      const [x, y] = panel.place(point);
      context.fillRect(x - 1.5, y - 1.5, 3, 3);
    }
    context.globalAlpha = 1;
    if (document.activeElement === pad) {
      const [x, y] = panel.place(cursor);
      for (const [lineWidth, style] of [[4, colours.surface], [1.5, colours.accent]]) {
        Object.assign(context, { lineWidth, strokeStyle: style });
        context.beginPath();
        context.arc(x, y, 9, 0, 2 * Math.PI);
        for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
          context.moveTo(x + 5 * dx, y + 5 * dy);
          context.lineTo(x + 14 * dx, y + 14 * dy);
        }
        context.stroke();
      }
    }
    if (!points.length) {
      context.fillStyle = colours.ink;
      context.font = "13px system-ui, sans-serif";
      context.textAlign = "center";
      context.fillText("Draw here", width / 2, height / 2 - 24);
    }
    count.textContent = points.length ? `${points.length.toLocaleString("en-GB")} points` : "no points yet";
  }

  function place() {
    if (points.length >= MOST) say(`The drawing is full: it holds ${MOST.toLocaleString("en-GB")} points.`);
    else {
      if (!points.length) say("");
      points.push(...dab(cursor, panel.extent, (dabs += 1)));
    }
    draw();
  }

  function fromPointer({ clientX, clientY }) {
    const box = canvas.getBoundingClientRect();
    return [
      clamp(x0 + ((clientX - box.left) / box.width) * (x1 - x0), x0, x1),
      clamp(y1 - ((clientY - box.top) / box.height) * (y1 - y0), y0, y1),
    ];
  }

  function grab(event) {
    if (event.button !== 0) return;
    event.preventDefault();
    pad.focus({ preventScroll: true });
    pad.setPointerCapture(event.pointerId);
    cursor = fromPointer(event);
    place();
  }

  // A dab wherever the brush has moved by its own radius
  function drag(event) {
    if (!pad.hasPointerCapture(event.pointerId)) return;
    for (const moved of event.getCoalescedEvents?.() ?? [event]) {
      const to = fromPointer(moved);
      const far = Math.hypot((to[0] - cursor[0]) / (x1 - x0), (to[1] - cursor[1]) / (y1 - y0));
      if (far < BRUSH) continue;
      cursor = to;
      place();
    }
  }

  function press(event) {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] }[event.key];
    if (event.altKey || event.ctrlKey || event.metaKey || !(way || event.key === " ")) return;
    event.preventDefault();
    event.stopPropagation();
    if (way) {
      const step = event.shiftKey ? 0.1 : 0.02;
      cursor = [clamp(cursor[0] + step * way[0] * (x1 - x0), x0, x1), clamp(cursor[1] + step * way[1] * (y1 - y0), y0, y1)];
      draw();
      say(`Cursor at ${cursor.map((v) => v.toFixed(2)).join(", ")}.`, true);
    } else {
      place();
      say(`${points.length} points.`, true);
    }
  }

  function clear() {
    points = [];
    draw();
    say("The drawing is empty.", true);
  }

  function finish() {
    if (points.length) use(points);
    else say("The drawing has no points yet. Draw on the panel, or press the space bar there; until then nothing changes.");
  }

  return {
    bar,
    open() {
      panel.frame.append(pad);
      draw();
      pad.focus({ preventScroll: true });
      pad.addEventListener("focus", draw);
      pad.addEventListener("blur", draw);
    },
    close() {
      pad.remove();
      bar.remove();
    },
    draw,
  };
}
