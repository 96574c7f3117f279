"""One training step on WebGPU against one in WebAssembly, in one browser: `make bench`.

Should a page compute on the graphics card? For each program of the book, the exported
step (the body of its Scan, one step a call, feeds given) runs in ONNX Runtime Web with
each provider in turn, in fresh tabs, and its metrics are read. A training step of this
book has 50 to 450 small operations, and each is a message to the card, so what counts
is the cost of a message: compare the programs whose arithmetic is next to nothing
(`stability/dirac`, `training/surface`).

Where the machine has no adapter of its own, Chromium's software one stands in. Its
arithmetic is slow, and its figures say nothing about a card's; the messages are the
same. The result says which adapter it was.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import onnx
from onnx import helper

from bench.harness import machine, store
from bench.live import (
    ADAPTER,
    ROOT,
    build,
    chromium,
    lay_out,
    programs,
    serve,
)
from genlib.export import export_program
from genlib.live import Run

RESULTS = Path(__file__).parent / "results" / "webgpu.json"
DIST = ROOT / "node_modules" / "onnxruntime-web" / "dist"
GPU_FILES = (
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
SOFTWARE = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
PROVIDERS = {"wasm": "vendor/ort/ort.wasm.min.mjs", "webgpu": "gpu/ort.webgpu.min.mjs"}
CALLS, ALIKE = 30, 1e-3

SCRIPT = """
async ([module, provider, inputs, calls]) => {
  const url = new URL(`_static/${module}`, location);
  const ort = await import(url);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = new URL(".", url).href;
  ort.env.logLevel = "fatal";
  const graph = await (await fetch(new URL("body.onnx", location))).arrayBuffer();
  const options = { executionProviders: [provider] };
  const session = await ort.InferenceSession.create(new Uint8Array(graph), options);
  const tensors = () => Object.fromEntries(Object.entries(inputs).map(
    ([name, [data, shape]]) =>
      [name, new ort.Tensor("float32", Float32Array.from(data), shape)],
  ));
  const spent = [];
  let metrics;
  for (let call = 0; call < calls; call += 1) {
    const feeds = tensors();
    const begun = performance.now();
    const outputs = await session.run(feeds);
    metrics = [...outputs[session.outputNames.at(-1)].data];
    spent.push(performance.now() - begun);
  }
  spent.sort((a, b) => a - b);
  return { best: spent[0], median: spent[calls >> 1], metrics };
}
"""


def one_step(graph_file, program):
    """The step alone: its graph, and inputs {name: (data, shape)} of a first step."""
    model = onnx.load(graph_file)
    scan = next(node for node in model.graph.node if node.op_type == "Scan")
    body = next(a.g for a in scan.attribute if a.name == "body")
    own = {x.name for x in body.initializer}
    body.initializer.extend(x for x in model.graph.initializer if x.name not in own)
    for node in reversed([n for n in model.graph.node if n.op_type == "Constant"]):
        body.node.insert(0, node)
    step = helper.make_model(
        body, opset_imports=model.opset_import, ir_version=model.ir_version
    )
    step.functions.extend(model.functions)
    run = Run(program)
    feeds = run.draw(1)
    gates, groups = run.gates(1, feeds), program.unpack(run.state)
    inputs = {}
    for inner, outer in zip(body.input, scan.input, strict=True):
        group, _, part = outer.rpartition(".")
        if group in groups:
            value = groups[group][int(part)].flatten().tolist()
            shape = [len(value)]
        elif outer.startswith("run_"):
            value, shape = [float(gates[outer.removeprefix("run_")])], []
        else:
            value, shape = feeds[outer].flatten().tolist(), list(feeds[outer].shape)
        inputs[inner.name] = (value, shape)
    return step, inputs


def operations(graph):
    """How many operations a graph has, those in its branches included."""
    inner = (a.g for n in graph.node for a in n.attribute if a.HasField("g"))
    return len(graph.node) + sum(map(operations, inner))


def measure(make, folder, address, flags, calls=CALLS):
    """Both providers on one program; milliseconds a step, or why it did not run."""
    program = make()
    manifest = export_program(program, folder / "live" / "program.json")
    file = folder / "live" / manifest["program"]["step"]["onnx"]
    step, inputs = one_step(file, program)
    onnx.save(step, folder / "body.onnx")
    found = {"operations": operations(step.graph)}
    for provider, module in PROVIDERS.items():
        with chromium(*flags) as browser:
            page = browser.new_page()
            page.goto(address)
            try:
                found[provider] = page.evaluate(
                    SCRIPT, [module, provider, inputs, calls]
                )
            except Exception as error:
                found[provider] = {"error": str(error).split("\n")[0]}
    first, second = (found[p].get("metrics") for p in PROVIDERS)
    if first and second:
        gap = max(
            abs(a - b) / max(1, abs(a)) for a, b in zip(first, second, strict=True)
        )
        if not gap <= ALIKE:
            raise ValueError(f"the providers' first metrics differ by {gap:g}")
    return found


def report(result):
    """The result as a table."""
    m = result["machine"]
    lines = [
        f"{m['cpu']}, {m['date']}, {result['browser']}; adapter: {result['adapter']}",
        "milliseconds a step, least of the calls (median); ratio of the least",
        f"{'':18}{'operations':>10}  {'WebAssembly':16}{'WebGPU':18}slower",
    ]
    for name, found in result["programs"].items():
        wasm, gpu = found["wasm"], found["webgpu"]
        line = f"{name:18}{found['operations']:>10}  "
        line += f"{wasm['best']:.2f} ({wasm['median']:.2f})".ljust(16)
        if "error" in gpu:
            line += f"does not run: {gpu['error'].partition(' was false. ')[2]}"
        else:
            line += f"{gpu['best']:.1f} ({gpu['median']:.1f})".ljust(18)
            line += f"{gpu['best'] / wasm['best']:.0f} times"
        lines.append(line)
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("names", nargs="*", help="of the book's programs; else all")
    arguments = parser.parse_args()
    if not DIST.is_dir():
        sys.exit("the bench needs ONNX Runtime Web; `make book` fetches it")
    listed = programs()
    result = {"machine": machine(), "programs": {}}
    with tempfile.TemporaryDirectory() as folder, serve(folder) as address:
        folder = Path(folder)
        lay_out(folder)
        (folder / "_static" / "gpu").mkdir()
        for file in GPU_FILES:
            shutil.copyfile(DIST / file, folder / "_static" / "gpu" / file)
        flags = ()
        with chromium() as browser:
            result["browser"] = f"Chromium {browser.version}"
            page = browser.new_page()
            page.goto(address)
            result["adapter"] = page.evaluate(ADAPTER)
        if result["adapter"] == "none":
            flags = SOFTWARE
            with chromium(*flags) as browser:
                page = browser.new_page()
                page.goto(address)
                result["adapter"] = page.evaluate(ADAPTER)
        for name in arguments.names or listed:
            print(f"{name} ...", file=sys.stderr, flush=True)
            result["programs"][name] = measure(
                lambda name=name: build(listed[name]),
                folder,
                address,
                flags,
                arguments.calls,
            )
    store(result, report(result), arguments.output)


if __name__ == "__main__":
    main()
