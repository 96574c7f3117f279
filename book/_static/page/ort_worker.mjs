// The worker in which ONNX Runtime Web computes, so that the page stays responsive.
let runtime = null;
const sessions = new Map();
let count = 0;

async function start(vendor, progress) {
  const ort = await import(`${vendor}ort.wasm.min.mjs`).catch(() => missing("ort.wasm.min.mjs"));
  ort.env.wasm.numThreads = 1; // more would need headers that plain hosting lacks
  ort.env.wasm.wasmPaths = { mjs: `${vendor}ort-wasm-simd-threaded.mjs` };
  ort.env.wasm.wasmBinary = await read(`${vendor}ort-wasm-simd-threaded.wasm`, progress);
  return ort;
}

function missing(name) {
  throw new Error(`${name} could not be loaded`);
}

async function read(url, progress) {
  const name = url.split("/").pop();
  const answer = await fetch(url).catch(() => missing(name));
  if (!answer.ok) missing(name);
  const parts = [];
  let bytes = 0;
  for (const reader = answer.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    bytes += value.length;
    progress(bytes);
  }
  const whole = new Uint8Array(bytes);
  let position = 0;
  for (const part of parts) {
    whole.set(part, position);
    position += part.length;
  }
  return whole.buffer;
}

async function load(url, vendor, progress) {
  runtime ??= start(vendor, progress).catch((error) => {
    runtime = null; // a later widget may try again
    throw error;
  });
  const [ort, graph] = await Promise.all([runtime, read(url, () => {})]);
  const session = await ort.InferenceSession.create(new Uint8Array(graph), {
    executionProviders: ["wasm"],
  });
  count += 1;
  sessions.set(count, { ort, session });
  return count;
}

async function run(key, inputs) {
  const entry = sessions.get(key);
  const feeds = Object.fromEntries(
    Object.entries(inputs).map(([name, { data, shape }]) => [name, new entry.ort.Tensor("float32", data, shape)]),
  );
  const outputs = await entry.session.run(feeds);
  return Object.fromEntries(
    Object.entries(outputs).map(([name, tensor]) => [name, { data: tensor.data.slice(), shape: [...tensor.dims] }]),
  );
}

async function answer({ id, load: url, vendor, run: key, inputs, release }) {
  if (url) return load(url, vendor, (progress) => postMessage({ id, progress }));
  if (release) {
    await sessions.get(release)?.session.release();
    sessions.delete(release);
    return true;
  }
  return run(key, inputs);
}

onmessage = async ({ data }) => {
  try {
    postMessage({ id: data.id, result: await answer(data) });
  } catch (error) {
    postMessage({ id: data.id, error: error.message ?? String(error) });
  }
};
