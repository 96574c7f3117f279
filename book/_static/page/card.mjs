// The graphics card (WebGPU) as a second place to compute a training step. A step of
// this book is many small operations, and each is a message to the card: which place is
// faster depends on the program and the card, so the two are raced, and compared.

const ROUNDS = 5; // of each place, the first one not counted: a card compiles in it
const ALIKE = 1e-3; // most relative difference of a step's numbers
const FILES = { module: "ort.webgpu.min.mjs", glue: "ort-wasm-simd-threaded.asyncify.mjs", wasm: "ort-wasm-simd-threaded.asyncify.wasm" };

let runtime = null;

// ONNX Runtime Web with WebGPU; `read(url)` fetches a file
async function start(vendor, read) {
  const ort = await import(`${vendor}${FILES.module}`);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = { mjs: `${vendor}${FILES.glue}` };
  ort.env.wasm.wasmBinary = await read(`${vendor}${FILES.wasm}`);
  return ort;
}

export async function openOnCard(graph, vendor, read) {
  runtime ??= start(vendor, read).catch((error) => {
    runtime = null;
    throw error;
  });
  const ort = await runtime;
  // Level 3 is errors: it warns of what is left to the processor, which is as it should be
  return ort.InferenceSession.create(new Uint8Array(graph), { executionProviders: ["webgpu"], logSeverityLevel: 3 });
}

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

// The largest difference of two answers in the metrics of the first two steps, relative
// to the larger of 1 and the value; many steps on, rounding alone may part two trainings
function gap({ metrics: { data, dims } }, { metrics: { data: other } }) {
  const first = Array.from(data.subarray(0, 2 * dims[1]));
  return Math.max(...first.map((value, i) => Math.abs(value - other[i]) / Math.max(1, Math.abs(value))));
}

export const faster = (here, card) => card < here;

// Run the same request in both sessions by turns; {ms: [here, card], use}. Throws if the
// card cannot run it or gives other numbers.
export async function race(here, card, feeds) {
  const spent = [[], []];
  for (let round = 0; round < ROUNDS; round += 1) {
    const answers = [];
    for (const [k, session] of [here, card].entries()) {
      const begun = performance.now();
      answers.push(await session.run(feeds));
      if (round > 0) spent[k].push(performance.now() - begun);
    }
    const apart = gap(...answers);
    if (!(apart <= ALIKE)) throw new Error(`its numbers differ by ${apart.toPrecision(2)}`);
  }
  const ms = spent.map(median);
  return { ms, use: faster(...ms) };
}
