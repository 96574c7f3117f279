"""The page's race between WebAssembly and WebGPU, for every program: `make bench`.

What a reader gets by *Try the graphics card*: the same steps on both, in one browser,
by turns, their numbers compared. A training step of this book has 50 to 450 small
operations, and each is a message to the card, so what counts for the small programs is
the cost of a message (compare `stability/dirac`, whose arithmetic is next to nothing).

Where the machine has no adapter of its own, Chromium's software one stands in. Its
arithmetic is slow, and its figures say nothing about a card's; the messages are the
same. The result says which adapter it was.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from bench.harness import machine, store
from bench.live import ADAPTER, ROOT, VENDOR, lay_out, programs
from tools.browser import open_browser
from tools.serve import serving

RESULTS = Path(__file__).parent / "results" / "webgpu.json"
SOFTWARE = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
STEPS = 4  # in one request

SCRIPT = """
async ([live, n]) => {
  const module = new URL("_static/page/page_engine.mjs", location);
  const { pageEngine } = await import(module);
  const url = new URL(`live/${live}.json`, location);
  const manifest = await (await fetch(url)).json();
  const engine = await pageEngine(manifest, url, () => {});
  await engine.run({}, { op: "reset", key: "bench", seed: 0 });
  const sliders = manifest.spec.controls.map(({ name, value }) => [name, value]);
  const scalars = Object.fromEntries(sliders);
  return engine.tryCard({ key: "bench", n, scalars }, () => {});
}
"""


def measure(browser, address, live, steps=STEPS):
    """{"here": ms a step in WebAssembly, "there": on WebGPU} or {"error": why}."""
    page = browser.new_page()
    page.goto(address)
    try:
        found = page.evaluate(SCRIPT, [live, steps])
        return {"here": found["here"], "there": found["there"]}
    except Exception as error:
        return {"error": str(error).split("\n")[0]}
    finally:
        page.close()


def report(result):
    """The result as a table."""
    m = result["machine"]
    lines = [
        f"{m['cpu']}, {m['date']}, {result['browser']}; adapter: {result['adapter']}",
        f"milliseconds a step, median of the rounds, {STEPS} steps a request",
        f"{'':22}{'WebAssembly':>12}{'WebGPU':>10}   WebGPU is",
    ]
    for name, found in result["programs"].items():
        if "error" in found:
            lines.append(f"{name:22}does not run: {found['error']}")
            continue
        here, there = found["here"], found["there"]
        word = (
            f"{there / here:.1f} times slower"
            if there > here
            else f"{here / there:.1f} times faster"
        )
        lines.append(f"{name:22}{here:>12.2f}{there:>10.1f}   {word}")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("names", nargs="*", help="of the book's programs; else all")
    arguments = parser.parse_args()
    if not (VENDOR / "ort").is_dir():
        sys.exit("the bench needs ONNX Runtime Web; `make book` fetches it")
    result = {"machine": machine(), "programs": {}}
    with tempfile.TemporaryDirectory() as folder, serving(folder) as address:
        lay_out(Path(folder))
        shutil.copytree(ROOT / "book" / "live", Path(folder) / "live")
        for flags in ((), SOFTWARE):
            with open_browser(*flags, gpu=True) as browser:
                page = browser.new_page()
                page.goto(address)
                result["browser"] = f"Chromium {browser.version}"
                result["adapter"] = page.evaluate(ADAPTER)
                if result["adapter"] == "none":
                    continue
                for name in arguments.names or programs():
                    print(f"{name} ...", file=sys.stderr, flush=True)
                    result["programs"][name] = measure(browser, address, name)
                break
    store(result, report(result), arguments.output)


if __name__ == "__main__":
    main()
