// ONNX Runtime Web as an engine: one worker a page, one session a widget.
const vendor = new URL("../vendor/ort/", import.meta.url);

let worker = null; // shared by the widgets of a page
const open = new Map();
let count = 0;

function ask(message, transfer, progress) {
  if (!worker) {
    worker = new Worker(new URL("ort_worker.mjs", import.meta.url), { type: "module" });
    worker.onmessage = ({ data }) => {
      const request = open.get(data.id);
      if (data.progress !== undefined) {
        request?.progress?.(data.progress);
        return;
      }
      open.delete(data.id);
      if (data.error) request?.reject(new Error(data.error));
      else request?.resolve(data.result);
    };
    worker.onerror = (event) => {
      event.preventDefault();
      open.forEach(({ reject }) => reject(new Error("its worker does not start")));
      open.clear();
      worker = null;
    };
  }
  return new Promise((resolve, reject) => {
    count += 1;
    open.set(count, { resolve, reject, progress });
    worker.postMessage({ ...message, id: count }, transfer);
  });
}

const told = (progress, what, most) => (bytes) => progress(`Loading ${what}: ${(bytes / 1e6).toFixed(1)} of ${most} MB`);

// Whether the browser reaches a graphics card; one drawn in software is none
async function findCard() {
  const adapter = await navigator.gpu?.requestAdapter();
  return Boolean(adapter) && !(adapter.info ?? adapter).isFallbackAdapter;
}

// Load one graph, or a training program with its two; `progress` is told, in words,
// how far it is
export async function pageEngine(manifest, url, progress) {
  const { program } = manifest;
  const what = program ? { program, base: url.href } : { load: new URL(manifest.onnx, url).href };
  const entry = await ask({ ...what, vendor: vendor.href }, [], told(progress, "what runs the model", 14));
  return {
    run(inputs, call = null) {
      const copies = Object.fromEntries(
        Object.entries(inputs).map(([name, { data, shape }]) => [name, { data: data.slice(), shape }]),
      );
      const transfer = Object.values(copies).map(({ data }) => data.buffer);
      return ask({ run: entry, inputs: copies, call }, transfer);
    },
    close() {
      ask({ release: entry }, []);
    },
    findCard: () => (program ? findCard() : Promise.resolve(false)),
    // Race the card for the n steps of `call`; {here, there, use}: milliseconds a step
    // in WebAssembly and on the card, and whether the card computes from now on
    tryCard: (call, progress) => ask({ card: entry, call }, [], told(progress, "what runs on the card", 27)),
  };
}
