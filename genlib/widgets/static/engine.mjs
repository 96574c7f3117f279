// What a widget asks for numbers. An engine is {run, watch, close, lanes}:
//   run({z: {data, shape}}, call) -> Promise of {x: {data, shape}}, data being
//     Float32Array; `call` is plain JSON that says what is wanted, or null;
//   watch(f) calls f("ready" | "waiting" | "lost") when the state changes;
//   close() lets go of everything;
//   lanes is how many requests may be on their way at once, 1 unless given.

export class LostKernel extends Error {}

// The notebook's kernel as an engine: one message asks, one answers.
export function kernelEngine(model) {
  const key = Math.random().toString(36).slice(2); // views of one widget share a model
  const open = new Map();
  const watchers = [];
  let count = 0;
  let state = "ready";

  function report(next) {
    if (state === next) return;
    state = next;
    watchers.forEach((f) => f(state));
  }

  function floats(view) {
    // A message's buffers need not start where a Float32Array may
    const { buffer, byteOffset, byteLength } = view;
    return new Float32Array(buffer.slice(byteOffset, byteOffset + byteLength));
  }

  function onMessage(message, buffers) {
    const request = open.get(message.run);
    if (!request) return;
    open.delete(message.run);
    clearTimeout(request.timer);
    report("ready");
    if (message.error) {
      request.reject(new Error(message.error));
      return;
    }
    const outputs = {};
    Object.entries(message.outputs).forEach(([name, shape], i) => {
      const view = buffers[i] instanceof ArrayBuffer ? new DataView(buffers[i]) : buffers[i];
      outputs[name] = { data: floats(view), shape };
    });
    request.resolve(outputs);
  }

  function onLost() {
    report("lost");
    open.forEach(({ reject, timer }) => {
      clearTimeout(timer);
      reject(new LostKernel());
    });
    open.clear();
  }

  const lost = ["comm:close", "comm_live_update", "destroy"];
  model.on("msg:custom", onMessage);
  lost.forEach((event) => model.on(event, onLost));

  return {
    lanes: 2, // while an answer is on its way, the kernel can think about the next
    run(inputs, call = null) {
      const id = `${key}:${(count += 1)}`;
      const shapes = Object.fromEntries(
        Object.entries(inputs).map(([name, { shape }]) => [name, shape]),
      );
      const buffers = Object.values(inputs).map(({ data }) => data.slice().buffer);
      return new Promise((resolve, reject) => {
        const timer = setTimeout(() => report("waiting"), 2000);
        open.set(id, { resolve, reject, timer });
        try {
          model.send({ run: id, inputs: shapes, call }, undefined, buffers);
          // A server holds its answer back until the browser has acknowledged what it
          // sent before (Nagle's algorithm), up to 40 ms; a word more carries that
          // acknowledgement. The server of `make lab` does not wait, and there the
          // word would only be work.
          if (!model.get("at_once")) {
            setTimeout(() => open.has(id) && model.send({ nudge: id }), 6);
          }
        } catch {
          onLost(); // the channel to the kernel is closed
        }
      });
    },
    watch(f) {
      watchers.push(f);
    },
    close() {
      model.off("msg:custom", onMessage);
      lost.forEach((event) => model.off(event, onLost));
      open.forEach(({ timer }) => clearTimeout(timer));
      open.clear();
      watchers.length = 0;
    },
  };
}

// Pull, not push: while `work` runs (`lanes` times at most), any number of calls lead to
// one more run of it. `work` reads what is wanted when it starts, so only the newest
// wish is served. A call's promise is kept when all that was wished is done.
export function newestOnly(work, lanes = 1) {
  const busy = new Set();
  let again = false;
  async function serve() {
    while (again) {
      again = false;
      await work();
    }
  }
  return function ask() {
    again = true;
    if (busy.size < lanes) {
      const served = serve().finally(() => busy.delete(served));
      busy.add(served);
    }
    return Promise.all(busy);
  };
}
