// Brings the widgets of a static page to life. Until the reader presses Start, a page
// holds a poster and nothing else is loaded; whatever fails, the poster stays.
const here = new URL(".", import.meta.url);
const at = (path) => new URL(path, here);

const FOCUSABLE = '[tabindex="0"], button, input';

function offer(place) {
  const { widget, live } = place.dataset;
  const poster = place.querySelector(".gl-poster");
  const note = poster.querySelector(".gl-note");
  const message = document.createElement("span");
  message.setAttribute("role", "status");
  const start = document.createElement("button");
  start.type = "button";
  start.className = "gl-start";
  start.textContent = "Start";
  message.textContent =
    " Start loads what runs the model, once for the whole site (14 MB, less when compressed).";
  note.replaceChildren(message);
  poster.querySelector("figcaption").before(start);
  let begun = false;

  async function begin() {
    if (begun) return;
    begun = true;
    start.setAttribute("aria-disabled", "true");
    start.textContent = "Loading…";
    const progress = (text) => {
      message.textContent = ` ${text}`;
    };
    try {
      const element = await bringToLife(widget, live, progress);
      const focused = poster.contains(document.activeElement);
      poster.hidden = true;
      place.append(element);
      if (focused) (element.querySelector("[data-first]") ?? element.querySelector(FOCUSABLE))?.focus({ preventScroll: true });
    } catch (error) {
      start.remove();
      poster.style.cursor = "";
      progress(
        `The live figure cannot run in this browser (${error.message}); ` +
          "this picture stands for it, and the notebook has it alive.",
      );
    }
  }

  start.addEventListener("click", begin);
  poster.querySelector("img").addEventListener("click", begin);
  poster.querySelector("img").style.cursor = "pointer";
}

async function bringToLife(widget, live, progress) {
  if (typeof WebAssembly !== "object") throw new Error("it has no WebAssembly");
  progress("Loading…");
  const manifestUrl = at(`../../live/${live}.json`);
  const [{ default: module }, { pageEngine }, manifest] = await Promise.all([
    import(at(`../widgets/${widget}.mjs`)),
    import(at("page_engine.mjs")),
    fetch(manifestUrl).then((answer) => {
      if (!answer.ok) throw new Error(`${live}.json: ${answer.status}`);
      return answer.json();
    }),
    styles(at(`../widgets/${widget}.css`)),
  ]);
  const engine = await pageEngine(manifest, manifestUrl, progress);
  const element = document.createElement("div");
  const model = { engine, get: (name) => (name === "spec" ? manifest.spec : undefined) };
  module.render({ model, el: element, started: true });
  return element;
}

function styles(url) {
  if (document.querySelector(`link[href="${url}"]`)) return undefined;
  return new Promise((resolve, reject) => {
    const link = document.createElement("link");
    link.rel = "stylesheet";
    link.href = url;
    link.onload = resolve;
    link.onerror = () => reject(new Error("a style sheet is missing"));
    document.head.append(link);
  });
}

document.querySelectorAll("[data-widget][data-live]").forEach(offer);
