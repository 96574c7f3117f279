// The worker in which ONNX Runtime Web computes, so that the page stays responsive.
let runtime = null;
const entries = new Map(); // key -> {run(call, inputs), sessions, tryCard?}
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

function runtimeFrom(vendor, progress) {
  runtime ??= start(vendor, progress).catch((error) => {
    runtime = null; // a later widget may try again
    throw error;
  });
  return runtime;
}

async function open(ort, graph) {
  return ort.InferenceSession.create(new Uint8Array(graph), { executionProviders: ["wasm"] });
}

function keep(entry) {
  count += 1;
  entries.set(count, entry);
  return count;
}

// One graph, which answers name to tensor with name to tensor
async function loadGraph(url, vendor, progress) {
  const [ort, graph] = await Promise.all([runtimeFrom(vendor, progress), read(url, () => {})]);
  const session = await open(ort, graph);
  const run = async (_, inputs) => {
    const feeds = Object.entries(inputs).map(([name, { data, shape }]) => [name, new ort.Tensor("float32", data, shape)]);
    const outputs = await session.run(Object.fromEntries(feeds));
    return Object.fromEntries(
      Object.entries(outputs).map(([name, tensor]) => [name, { data: tensor.data.slice(), shape: [...tensor.dims] }]),
    );
  };
  return keep({ run, sessions: [session] });
}

// A training program: its two graphs, and what feeds them
async function loadProgram(program, base, vendor, progress) {
  const graph = ({ onnx }) => read(new URL(onnx, base).href, () => {});
  const [{ makeProgram }, ort, ...graphs] = await Promise.all([
    import("./program.mjs").catch(() => missing("program.mjs")),
    runtimeFrom(vendor, progress),
    graph(program.step),
    graph(program.view),
  ]);
  const sessions = [await open(ort, graphs[0]), await open(ort, graphs[1])];
  const tensor = (data, shape) => new ort.Tensor("float32", data, shape);
  let card = null; // the step's session on the graphics card, while it is used
  const step = {
    async run(feeds) {
      if (card) {
        try {
          return await card.run(feeds);
        } catch {
          card = null; // a card may be lost at any time; nothing of the training is there
        }
      }
      return sessions[0].run(feeds);
    },
  };
  const { answer, inputs } = makeProgram(program, step, sessions[1], tensor);

  async function tryCard(call, progress) {
    const { openOnCard, race } = await import("./card.mjs").catch(() => missing("card.mjs"));
    const session = await openOnCard(graphs[0], vendor, (url) => read(url, progress));
    return inTurn(async () => {
      const { ms, use } = await race(sessions[0], session, inputs(call));
      if (use) {
        card = session;
        sessions.push(session);
      } else await session.release();
      const [here, there] = ms.map((each) => each / call.n);
      return { here, there, use };
    });
  }

  return keep({ run: answer, sessions, tryCard });
}

async function release(key) {
  const { sessions } = entries.get(key);
  entries.delete(key);
  await Promise.all(sessions.map((session) => session.release()));
}

// The runtime computes one thing at a time; requests take turns
let turn = Promise.resolve();

function inTurn(work) {
  const result = turn.then(work);
  turn = result.catch(() => {});
  return result;
}

async function answer({ id, vendor, ...asked }) {
  const progress = (bytes) => postMessage({ id, progress: bytes });
  if (asked.load) return loadGraph(asked.load, vendor, progress);
  if (asked.program) return loadProgram(asked.program, asked.base, vendor, progress);
  if (asked.card) return entries.get(asked.card).tryCard(asked.call, progress);
  if (asked.release) return inTurn(() => release(asked.release));
  return inTurn(() => entries.get(asked.run).run(asked.call, asked.inputs));
}

onmessage = async ({ data }) => {
  try {
    const result = await answer(data);
    const buffers = Object.values(result ?? {}).flatMap((x) => (x?.data ? [x.data.buffer] : []));
    postMessage({ id: data.id, result }, buffers);
  } catch (error) {
    postMessage({ id: data.id, error: error.message ?? String(error) });
  }
};
