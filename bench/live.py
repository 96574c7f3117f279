"""A program's training steps in the page against eager PyTorch: `make bench`.

How many steps a second does each program of the book train, with the settings that its
sliders start with? One thread each, on one machine, taking turns, in several rounds.
Contenders:

eager    The peer: the program's own losses over its own modules, moved by torch.optim
         as it comes, a loss read as a number in every step. Its batches and noise are
         drawn before the clock starts; the page draws its own while the clock runs.
fused    The same with torch.optim's fused kernels, the fastest that PyTorch has here.
native   The exported step in ONNX Runtime in this process, as many steps a call as
         the page makes; batches and noise drawn beforehand.
page     The exported step in a headless browser, as the training lab runs it at full
         speed: in the worker of the site's pages, in ONNX Runtime Web (WebAssembly),
         some 32 ms of steps a call, each step's metrics handed to the page.
watched  The same with the numbers of a new picture asked for every 33 ms, as the lab
         does while a reader looks on.

No figure includes drawing. Seconds are CPU seconds, of this process or of the browser's
renderers; seconds that passed are stored beside them. All contenders start from one
state and are fed the same; unless their first metrics agree, the bench stops.
"""

import argparse
import contextlib
import functools
import importlib
import inspect
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench.harness import gemm_lines, gemm_probe, machine, spread, store
from genlib.export import export_program
from genlib.gpt import Muon, MuonAdam
from genlib.live import Run
from genlib.training import SGD, Adam
from tools.browser import open_browser
from tools.serve import serving

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "live.json"
VENDOR = ROOT / "book" / "_static" / "vendor"
CONTENDERS = ("eager", "fused", "native", "page", "watched")
TURN = 1.5  # CPU seconds of the peer in one round, about
VIEW_MS, NEVER = 33, 1e12  # between two pictures: as the lab has it, and none
FIRST, ALIKE = 5, 1e-3  # steps whose metrics must agree, up to this share


# --- eager PyTorch --------------------------------------------------------------------


def torch_optimizer(optimizer, parameters, lr, **options):
    """torch.optim's counterpart of an optimiser of `genlib.training`."""
    if type(optimizer) is Adam:
        settings = {"betas": optimizer.betas, "eps": optimizer.eps}
        return torch.optim.Adam(parameters, lr, **settings, **options)
    if type(optimizer) is SGD:
        return torch.optim.SGD(parameters, lr, optimizer.momentum, **options)
    if type(optimizer) is MuonAdam:
        return Both(optimizer, parameters, lr, **options)
    raise ValueError(f"the bench knows nothing in torch.optim like {optimizer}")


class Both:
    """A GPT's optimisers in eager PyTorch: Muon for its matrices, Adam for the rest.

    Muon is the book's own: torch's computes in bfloat16, which is slow on most CPUs.
    """

    def __init__(self, optimizer, parameters, lr, **options):
        pairs = list(zip(parameters, optimizer.matrix, strict=True))
        settings = {"betas": optimizer.adam.betas, "eps": optimizer.adam.eps}
        others = [p for p, inside in pairs if not inside]
        matrices = [p for p, inside in pairs if inside]
        self.parts = (
            torch.optim.Adam(others, lr, **settings, **options),
            Muon(matrices, optimizer.ratio * lr, optimizer.momentum),
        )

    def zero_grad(self):
        for part in self.parts:
            part.zero_grad()

    def step(self):
        for part in self.parts:
            part.step()


def arguments(function, feeds):
    """Those of the feeds that a loss or an update names."""
    return {k: feeds[k] for k in inspect.signature(function).parameters if k in feeds}


class Eager:
    """A program's steps as a chapter writes them: loss, backward, torch.optim.

    Changes the modules of `program` in place, from the state that a `Run` starts with.
    """

    def __init__(self, program, **options):
        self.program, self.run, self.steps = program, Run(program), 0
        self.parameters = {
            f"{name}.{key}": value
            for name, module in program.modules.items()
            for key, value in module.named_parameters()
        }
        with torch.no_grad():
            for key, value in program.parameters(self.run.state).items():
                self.parameters[key].copy_(value)
        self.own, self.optimizers = {}, {}
        for phase in program.phases:
            if phase.loss is None:
                continue
            names = (phase.moves,) if isinstance(phase.moves, str) else phase.moves
            own = [p for k in names for p in program.modules[k].parameters()]
            lr = program.scalars[phase.lr] if isinstance(phase.lr, str) else phase.lr
            self.own[phase.name] = {id(p) for p in own}
            self.optimizers[phase.name] = torch_optimizer(
                phase.optimizer, own, lr, **options
            )

    def draw(self, count):
        """The next `count` steps: for each the phases that are due, and their feeds."""
        steps = []
        for step in range(self.steps + 1, self.steps + 1 + count):
            feeds = self.run.draw(step)
            gates = self.run.gates(step, feeds)
            due = [phase for phase in self.program.phases if gates[phase.name]]
            steps.append([(p, arguments(p.loss or p.update, feeds)) for p in due])
        return steps

    def do(self, steps):
        """Do the steps drawn; their metrics, one dict of numbers a step."""
        self.steps += len(steps)
        rows = []
        for phases in steps:
            row = {}
            for phase, feeds in phases:
                names = self.program.metrics_of[phase.name]
                row |= zip(names, self.move(phase, feeds), strict=True)
            rows.append(row)
        return rows

    def move(self, phase, feeds):
        """One phase; its metrics as numbers."""
        if phase.loss is None:
            with torch.no_grad():
                new = phase.update(**feeds)
                new, metrics = new if isinstance(new, tuple) else (new, {})
                for key, value in new.items():
                    self.parameters[key].copy_(value)
            return [value.item() for value in metrics.values()]
        if len(self.own) > 1:  # no gradients for those who stand still
            for p in self.parameters.values():
                p.requires_grad_(id(p) in self.own[phase.name])
        metrics = phase.loss(**feeds)
        metrics = metrics if isinstance(metrics, dict) else {"loss": metrics}
        optimizer = self.optimizers[phase.name]
        optimizer.zero_grad()
        metrics["loss"].backward()
        optimizer.step()
        return [value.item() for value in metrics.values()]

    def first(self, count):
        """The metrics of the next `count` steps, (count, M)."""
        rows = self.do(self.draw(count))
        return [[row.get(k, 0.0) for k in self.program.metrics] for row in rows]

    def turn(self, count, per_call):
        steps = self.draw(count)
        with seconds() as spent:
            self.do(steps)
        return spent


@contextlib.contextmanager
def seconds():
    """CPU seconds of this process and seconds that pass, as a list, once it is left."""
    spent, cpu, wall = [], time.process_time(), time.perf_counter()
    yield spent
    spent += [time.process_time() - cpu, time.perf_counter() - wall]


# --- ONNX Runtime in this process -----------------------------------------------------


class Native:
    """The exported step, given as a file, in ONNX Runtime on this machine."""

    def __init__(self, program, file):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(file), options)
        self.program, self.run, self.steps = program, Run(program), 0
        self.state = self.run.state.numpy()

    def draw(self, count):
        """The inputs of the next `count` steps, (count, ...) each."""
        steps = range(self.steps + 1, self.steps + 1 + count)
        self.steps += count
        drawn = [self.run.draw(step) for step in steps]
        gates = [self.run.gates(k, f) for k, f in zip(steps, drawn, strict=True)]
        inputs = {k: torch.stack([f[k] for f in drawn]).numpy() for k in drawn[0]}
        for phase in self.program.phases:
            ran = [gate[phase.name] for gate in gates]
            inputs[f"run_{phase.name}"] = np.array(ran, np.float32)
        return inputs

    def do(self, inputs):
        self.state, metrics = self.session.run(None, {"state": self.state, **inputs})
        return metrics

    def first(self, count):
        return self.do(self.draw(count)).tolist()

    def turn(self, count, per_call):
        starts = range(0, count, per_call)
        calls = [self.draw(min(per_call, count - k)) for k in starts]
        with seconds() as spent:
            for inputs in calls:
                self.do(inputs)
        return spent


# --- the page -------------------------------------------------------------------------

# The lab at full speed, without its drawing: request after request
SCRIPT = """
async ([live, scalars]) => {
  const module = (path) => import(new URL(`_static/${path}`, location));
  const { pageEngine } = await module("page/page_engine.mjs");
  const { stepsFor } = await module("widgets/training_lab.mjs");
  const url = new URL(live, location);
  const manifest = await (await fetch(url)).json();
  const engine = await pageEngine(manifest, url, () => {});
  const ask = (call) => engine.run({}, { key: "bench", ...call });
  const step = (n, view) => ask({ op: "step", n, scalars, gates: null, view });
  await ask({ op: "reset", seed: 0 });
  let [n, cost] = [1, null];
  window.first = async (count) => [...(await step(count, false)).metrics.data];
  window.turn = async (count, every) => {
    const begun = performance.now();
    let viewed = -Infinity;
    for (let left = count; left > 0; ) {
      const now = performance.now();
      const look = now - viewed >= every - 1;
      if (look) viewed = now;
      const some = Math.min(n, left);
      const each = (await step(some, look)).ms.data[0] / some;
      left -= some;
      cost = cost === null ? each : 0.6 * cost + 0.4 * each;
      n = stepsFor(cost, n);
    }
    return [(performance.now() - begun) / 1000, n];
  };
}
"""


class Page:
    """An exported program in a page of a browser, fed and run by the site's files."""

    def __init__(self, browser, address, live, program):
        self.session = browser.new_browser_cdp_session()
        self.tab = browser.new_page()
        self.tab.goto(address)
        self.tab.evaluate(SCRIPT, [live, program.scalars])
        self.width, self.per_call = len(program.metrics), 1

    def cpu(self):
        """CPU seconds of all renderers so far, their workers included."""
        found = self.session.send("SystemInfo.getProcessInfo")["processInfo"]
        return sum(p["cpuTime"] for p in found if p["type"] == "renderer")

    def first(self, count):
        metrics = self.tab.evaluate("count => window.first(count)", count)
        return np.reshape(metrics, (count, self.width)).tolist()

    def turn(self, count, every):
        """Train `count` steps, asking for a picture's numbers `every` so many ms."""
        cpu = self.cpu()
        call = "([count, every]) => window.turn(count, every)"
        wall, self.per_call = self.tab.evaluate(call, [count, every])
        return [self.cpu() - cpu, wall]

    def close(self):
        self.tab.close()


def lay_out(folder):
    """The files of the site on which a training lab runs, and an empty page."""
    static = folder / "_static"
    shutil.copytree(ROOT / "book" / "_static" / "page", static / "page")
    shutil.copytree(ROOT / "genlib" / "widgets" / "static", static / "widgets")
    shutil.copytree(VENDOR / "ort", static / "vendor" / "ort")
    (folder / "index.html").write_text("<!doctype html><title>bench</title>")


ADAPTER = """
async () => {
  const adapter = await navigator.gpu?.requestAdapter();
  if (!adapter) return "none";
  const { vendor, architecture, isFallbackAdapter: soft } = adapter.info;
  return `${vendor} ${architecture}${soft ? ", in software" : ""}`;
}
"""


def webgpu(address):
    """What this browser offers as a WebGPU adapter: by itself, and when made to."""
    found = {}
    for name, flags in {"default": (), "forced": ("--enable-unsafe-webgpu",)}.items():
        with open_browser(*flags, gpu=True) as browser:
            page = browser.new_page()
            page.goto(address)
            found[name] = page.evaluate(ADAPTER)
    return found


# --- all in turn ----------------------------------------------------------------------


def build(function):
    """The program that a function of the library builds: "vae.digits_program"."""
    module, name = function.split(".")
    return getattr(importlib.import_module(f"genlib.{module}"), name)()


def compare(first):
    """How far each contender's first metrics (K, M) are from the peer's.

    As a share of the larger of 1 and the peer's; ValueError for one that is too far.
    """
    gaps = {}
    for name, rows in first.items():
        expected = np.array(first["eager"])
        gap = np.abs(np.array(rows) - expected) / np.maximum(1, np.abs(expected))
        gaps[name] = float(gap.max(initial=0))
        if not gaps[name] <= ALIKE:
            raise ValueError(f"{name} trains otherwise than eager: {gaps[name]:g} away")
    return gaps


def measure(make, folder, browser, address, rounds, turn=TURN):
    """One program, built by `make()`: its contenders' seconds, round after round."""
    program = make()
    manifest = export_program(program, folder / "live" / "program.json")
    step = folder / "live" / manifest["program"]["step"]["onnx"]
    page = Page(browser, address, "live/program.json", program)
    eager, native = Eager(make()), Native(program, step)
    fused = Eager(make(), fused=True)
    parts = {"eager": eager, "fused": fused, "native": native, "page": page}
    gaps = compare({name: part.first(FIRST) for name, part in parts.items()})
    turns = {
        "eager": lambda n: eager.turn(n, page.per_call),
        "fused": lambda n: fused.turn(n, page.per_call),
        "native": lambda n: native.turn(n, page.per_call),
        "page": lambda n: page.turn(n, NEVER),
        "watched": lambda n: page.turn(n, VIEW_MS),
    }
    count = warm_up(turns, turn)
    found = [{name: turns[name](count) for name in CONTENDERS} for _ in range(rounds)]
    page.close()
    return {"steps": count, "per_call": page.per_call, "gap": gaps, "rounds": found}


def warm_up(turns, turn):
    """Let every contender run a while; the steps that the peer does in `turn` s."""
    count = 50
    while True:
        spent = {name: run(count)[0] for name, run in turns.items()}
        if min(spent.values()) >= turn / 4:
            return max(1, round(count * turn / spent["eager"]))
        count *= 2


# --- the table ------------------------------------------------------------------------


def ratios(found, name, peer="eager", clock=0):
    """A contender's steps a second over the peer's, round by round."""
    return [turns[peer][clock] / turns[name][clock] for turns in found["rounds"]]


def rate(found, name, clock=0):
    """Steps a second of a contender: the median of the rounds."""
    return found["steps"] / statistics.median(t[name][clock] for t in found["rounds"])


def report(result):
    """The result as tables, and what to doubt in it."""
    m = result["machine"]
    lines = [
        f"{m['cpu']}, {m['threads']} thread, torch {m['torch']}, {m['date']}, "
        f"{result['browser']}",
        "training steps a CPU second, without drawing; ratios: median (least to most)",
    ]
    for program, found in result["programs"].items():
        calls = f"{found['per_call']} steps a call, {found['steps']} a turn"
        lines += ["", f"{program} ({calls}, {len(found['rounds'])} rounds)"]
        lines.append(
            f"{'':9}{'steps/s':>8}  {'to eager':24}{'to fused':24}passing time"
        )
        for name in CONTENDERS:
            both = [spread(ratios(found, name, peer)) for peer in ("eager", "fused")]
            wall = spread(ratios(found, name, clock=1))
            lines.append(
                f"{name:9}{rate(found, name):8.0f}  {both[0]:24}{both[1]:24}{wall}"
            )
    lines += ["", "WebGPU adapter: {default}; when forced: {forced}"]
    lines[-1] = lines[-1].format(**result["webgpu"])
    return "\n".join(lines + gemm_lines(result))


def programs():
    """Name to building function of all programs of the book, as the tests list them."""
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        return importlib.import_module("test_export").PROGRAMS
    finally:
        sys.path.pop(0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--turn", type=float, default=TURN)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("names", nargs="*", help="of the book's programs; else all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not (VENDOR / "ort").is_dir():
        sys.exit("the bench needs ONNX Runtime Web; `make book` fetches it")
    listed = programs()
    names = arguments.names or list(listed)
    result = {"machine": machine(), "gemm": [gemm_probe()], "programs": {}}
    with tempfile.TemporaryDirectory() as folder, serving(folder) as address:
        folder = Path(folder)
        lay_out(folder)
        result["webgpu"] = webgpu(address)
        with open_browser(gpu=True) as browser:
            result["browser"] = f"Chromium {browser.version}"
            for name in names:
                print(f"{name} ...", file=sys.stderr, flush=True)
                make = functools.partial(build, listed[name])
                result["programs"][name] = measure(
                    make, folder, browser, address, arguments.rounds, arguments.turn
                )
    result["gemm"].append(gemm_probe())
    result["load"] = os.getloadavg()[0]
    store(result, report(result), arguments.output)


if __name__ == "__main__":
    main()
