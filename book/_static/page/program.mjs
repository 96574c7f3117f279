// A training program on the page: what genlib.live.Program does in Python, by the same
// rules and from the same noise. The arithmetic of a step is the exported ONNX graph's;
// here stand the state, the noise, the tables and the counting.
import { fillNormal, fillRows, fillUniform, key as streamKey } from "../widgets/noise.mjs";

const ARRAYS = { u1: Uint8Array, i2: Int16Array, f4: Float32Array };

const product = (shape) => shape.reduce((a, b) => a * b, 1);

// A table of the manifest -> {data, size, count, scale}; value = scale * data
export function readTable({ dtype, shape, scale = 1, base64 }) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  return { data: new ARRAYS[dtype](bytes.buffer), size: product(shape.slice(1)), count: shape[0], scale };
}

// The packed parameters and moments at step 0
export function initialState(program, seed) {
  const state = new Float32Array(program.state);
  for (const { at, size, name, kind, scale } of program.init) {
    const part = state.subarray(at, at + size);
    const draw = new Float64Array(size);
    const stream = streamKey(seed, `init:${name}`, 0);
    if (kind === "normal") {
      fillNormal(draw, stream);
      part.set(draw.map((n) => scale * n));
    } else {
      fillUniform(draw, stream);
      part.set(draw.map((u) => scale * (2 * u - 1)));
    }
  }
  for (const { at, value } of program.values) state.set(value, at);
  return state;
}

// The table's first rows, from the top again where it has fewer
function fillFirst(out, { data, size, count, scale }) {
  for (let i = 0; i < out.length; i += 1) out[i] = scale * data[i % (count * size)];
}

// `step` and `view` are ONNX Runtime sessions, `tensor(data, shape)` makes their inputs;
// gives {answer(call, inputs), inputs(call)}
export function makeProgram(program, step, view, tensor) {
  const runs = new Map();
  const tables = {};

  function find(key) {
    const run = runs.get(key);
    if (!run) throw new Error("RunLost: this training is no longer held");
    return run;
  }

  function choose(run, table, name) {
    tables[table] ??= {};
    tables[table][name] ??= readTable(program.tables[table][name]);
    run.tables[table] = tables[table][name];
    run.view = null;
  }

  function reset({ key, seed }) {
    if (!runs.has(key)) {
      runs.set(key, { tables: {} });
      for (const [table, options] of Object.entries(program.tables)) {
        choose(runs.get(key), table, Object.keys(options)[0]);
      }
    }
    Object.assign(runs.get(key), { seed, step: 0, state: initialState(program, seed), view: null });
    return {};
  }

  function fill(out, run, name, feed, stream) {
    if (feed.kind === "rows") fillRows(out, stream, run.tables[feed.table]);
    else if (feed.kind === "first") fillFirst(out, run.tables[feed.table]);
    else if (feed.kind === "normal") fillNormal(out, stream);
    else fillUniform(out, stream);
  }

  function scalar(scalars, name) {
    if (!(name in scalars)) throw new Error(`no value for ${name}`);
    return scalars[name];
  }

  // Feeds of the steps after run.step: (n, ...) each
  function stepFeeds(run, n, scalars) {
    const feeds = {};
    for (const name of program.step_inputs) {
      const feed = program.feeds[name];
      if (feed.kind === "scalar") {
        feeds[name] = tensor(new Float32Array(n).fill(scalar(scalars, name)), [n]);
        continue;
      }
      const size = product(feed.shape);
      const data = new Float32Array(n * size);
      for (let k = 0; k < n; k += 1) {
        const stream = streamKey(run.seed, name, run.step + k + 1);
        fill(data.subarray(k * size, (k + 1) * size), run, name, feed, stream);
      }
      feeds[name] = tensor(data, [n, ...feed.shape]);
    }
    return feeds;
  }

  // Which phases run in which of the n steps: (n, P), 1 or 0
  function gatesOf(run, n, scalars, forced) {
    const count = program.phases.length;
    const gates = new Float32Array(n * count);
    program.phases.forEach(({ name, every }, p) => {
      const period = every == null ? 1 : Math.max(1, Math.round(scalar(scalars, every)));
      for (let k = 0; k < n; k += 1) {
        const due = forced ? forced[name] : (run.step + k + 1) % period === 0;
        gates[k * count + p] = due ? 1 : 0;
      }
    });
    return gates;
  }

  // All that the step's graph reads for the n steps after run.step
  function stepInputs(run, n, scalars, gates) {
    const inputs = stepFeeds(run, n, scalars);
    const count = program.phases.length;
    program.phases.forEach(({ name }, p) => {
      const own = Float32Array.from({ length: n }, (_, k) => gates[k * count + p]);
      inputs[`run_${name}`] = tensor(own, [n]);
    });
    inputs.state = tensor(run.state, [program.state]);
    return inputs;
  }

  async function advance(call) {
    const begun = performance.now();
    const run = find(call.key);
    const { n, scalars } = call;
    const gates = gatesOf(run, n, scalars, call.gates);
    const { next_state: next, metrics } = await step.run(stepInputs(run, n, scalars, gates));
    run.state = next.data.slice();
    run.step += n;
    const answer = {
      ms: { data: Float32Array.of(performance.now() - begun), shape: [1] },
      metrics: { data: metrics.data.slice(), shape: [n, program.metrics.length] },
      gates: { data: gates, shape: [n, program.phases.length] },
    };
    return { ...answer, ...(call.view ? await look(run, scalars) : stepOf(run)) };
  }

  const stepOf = ({ step: at }) => ({ step: { data: Float32Array.of(at), shape: [1] } });

  // The view's own noise stands still: it is drawn once a seed and table
  function viewFeeds(run) {
    const feeds = {};
    for (const name of program.view_inputs) {
      const feed = program.feeds[name];
      if (feed.kind === "scalar") continue;
      const data = new Float32Array(product(feed.shape));
      fill(data, run, name, feed, streamKey(run.seed, `view:${name}`, 0));
      feeds[name] = { data, shape: feed.shape };
    }
    return feeds;
  }

  async function look(run, scalars) {
    run.view ??= viewFeeds(run);
    const feeds = { state: tensor(run.state, [program.state]) };
    for (const name of program.view_inputs) {
      const { data, shape } = run.view[name] ?? { data: Float32Array.of(scalar(scalars, name)), shape: [] };
      feeds[name] = tensor(data, shape);
    }
    const outputs = await view.run(feeds);
    const answer = stepOf(run);
    for (const [name, { data, dims }] of Object.entries(outputs)) {
      answer[name] = { data: data.slice(), shape: [...dims] };
    }
    return answer;
  }

  const OPERATIONS = {
    reset,
    step: advance,
    view: ({ key, scalars }) => look(find(key), scalars),
    choose({ key, table, name }) {
      choose(find(key), table, name);
      return {};
    },
    table({ key, table }, { rows: { data, shape } }) {
      const run = find(key);
      run.tables[table] = { data, size: product(shape.slice(1)), count: shape[0], scale: 1 };
      run.view = null;
      return {};
    },
    state({ key }) {
      const run = find(key);
      return { state: { data: run.state.slice(), shape: [program.state] }, ...stepOf(run) };
    },
    close({ key }) {
      runs.delete(key);
      return {};
    },
  };

  return {
    answer: async (call, inputs) => OPERATIONS[call.op](call, inputs),
    // What the next n steps would read, for whoever wants to try them elsewhere
    inputs({ key, n, scalars }) {
      const run = find(key);
      return stepInputs(run, n, scalars, gatesOf(run, n, scalars));
    },
  };
}
