"""The widgets' Python side, their messages, their HTML form, and the ES modules."""

import base64
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from genlib.widgets import LatentExplorer
from genlib.widgets.base import STATIC, join_module

PAGE = Path(__file__).parents[1] / "book" / "_static" / "page"
CLASSES = ["a", "b", "c"]


def make(z=2, channels=1, n=30, **options):
    torch.manual_seed(0)
    layers = (
        nn.Linear(z, channels * 16),
        nn.Sigmoid(),
        nn.Unflatten(1, (channels, 4, 4)),
    )
    decoder = nn.Sequential(*layers)
    points, labels = torch.randn(n, z), torch.arange(n) % 3
    return LatentExplorer(decoder, points, labels, CLASSES, **options)


# --- Messages ---------------------------------------------------------------------


def ask(widget, content, *buffers):
    sent = []
    widget.send = lambda content, buffers=None: sent.append((content, buffers))
    widget._handle_custom_msg(content, list(buffers))
    return sent


@pytest.mark.parametrize("z, channels", [(2, 1), (5, 3)])
def test_a_request_is_answered_with_the_decoders_images(z, channels):
    widget = make(z, channels)
    points = torch.randn(7, z)
    content = {"run": "v:1", "inputs": {"z": [7, z]}}
    [(answer, [data])] = ask(widget, content, memoryview(points.numpy().tobytes()))
    assert answer == {"run": "v:1", "outputs": {"x": [7, channels, 4, 4]}}
    got = np.frombuffer(data, np.float32).reshape(7, channels, 4, 4)
    np.testing.assert_array_equal(got, widget._decoder(points).detach())


def test_a_failure_is_told_and_other_messages_are_left_alone():
    widget = make()
    data = torch.zeros(1, 3).numpy().tobytes()
    content = {"run": "v:2", "inputs": {"z": [1, 3]}}
    [(answer, buffers)] = ask(widget, content, data)
    assert answer["run"] == "v:2" and "RuntimeError" in answer["error"]
    assert not buffers
    assert ask(widget, {"kind": "anywidget-command"}) == []


def test_decoding_neither_trains_nor_keeps_a_graph():
    seen = []

    class Watch(nn.Module):
        def forward(self, z):
            seen.append((self.training, torch.is_grad_enabled()))
            return z.sigmoid().view(-1, 1, 1, 2)

    decoder = Watch().train()
    LatentExplorer(decoder, torch.randn(5, 2), torch.zeros(5, dtype=int), ["a"])
    assert decoder.training and set(seen) == {(False, False)}


# --- What the notebook stores -----------------------------------------------------


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.text = {}, ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found[tag] = dict(attributes)

    def handle_data(self, data):
        self.text += data


def test_the_stored_form_is_stable_and_complete():
    widget = make(live="vae/test", title="Five <b> six")
    bundle, _ = widget._repr_mimebundle_()
    assert repr(widget) == "LatentExplorer(vae/test: 2 latent dimensions, 30 points)"
    assert bundle["text/plain"] == repr(widget)
    assert "application/vnd.jupyter.widget-view+json" in bundle
    text = bundle["text/html"]
    assert text == widget._repr_mimebundle_()[0]["text/html"]
    tags = Tags(text)
    assert tags.found["div"]["data-widget"] == "latent_explorer"
    assert tags.found["div"]["data-live"] == "vae/test"
    kind, _, data = tags.found["img"]["src"].partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data).startswith(b"\x89PNG") and len(data) < 120_000
    assert "30 data points" in tags.found["img"]["alt"]
    assert "Five <b> six" in tags.text and "make serve" in tags.text
    rest = text.replace(data, "")
    assert not re.search(r"https?:|0x[0-9a-f]{6}|/home|/tmp|model_id|[A-Z]:\\", rest)
    assert not re.search(r"\d\.\d", rest), "trained numbers belong in book/live"


def test_without_live_the_page_gets_a_picture_only():
    widget = make(z=3)
    text = widget._repr_mimebundle_()[0]["text/html"]
    assert "data-live" not in text and "data:image/png" in text
    assert "running notebook" in text and "make serve" not in text
    assert repr(widget) == "LatentExplorer(3 latent dimensions, 30 points)"


def test_what_the_module_draws_is_plain_json():
    spec = make(z=4, n=50, dims=(2, 0)).spec
    assert json.loads(json.dumps(spec, allow_nan=False)) == spec
    points = np.array(spec["points"])
    assert points.shape == (50, 4) and len(spec["labels"]) == 50
    assert (points == points.round(3)).all()
    ranges = np.array(spec["ranges"])
    for name in ("start", "a", "b"):
        assert (ranges[:, 0] <= spec[name]).all() and (spec[name] <= ranges[:, 1]).all()
    assert (ranges[:, 0] <= points.min(0)).all() and (
        points.max(0) <= ranges[:, 1]
    ).all()
    widths = ranges[:, 1] - ranges[:, 0]
    assert np.allclose(widths, widths[0], atol=0.02), "one scale for all dimensions"
    assert spec["dims"] == [2, 0] and spec["image"] == [1, 4, 4]
    assert len(spec["colours"]) == len(CLASSES)
    assert len(make(n=5001).spec["points"]) <= 2000


# --- Export -----------------------------------------------------------------------


def test_files_are_written_where_genlib_live_says(tmp_path, monkeypatch):
    monkeypatch.delenv("GENLIB_LIVE", raising=False)
    monkeypatch.chdir(tmp_path)
    make(live="vae/test")
    assert not list(tmp_path.iterdir()), "nothing is written without being asked"
    monkeypatch.setenv("GENLIB_LIVE", str(tmp_path / "live"))
    make()
    assert not list(tmp_path.iterdir()), "a widget without a name writes nothing"
    widget = make(live="vae/test")
    written = sorted(p.name for p in (tmp_path / "live" / "vae").iterdir())
    assert written == ["test.json", "test.onnx", "test.safetensors"]
    manifest = json.loads((tmp_path / "live/vae/test.json").read_text())
    assert manifest["spec"] == widget.spec
    assert manifest["widget"] == "latent_explorer"


def test_a_heavy_export_is_refused(tmp_path):
    decoder = nn.Sequential(
        nn.Linear(2, 4000),
        nn.Linear(4000, 64),
        nn.Sigmoid(),
        nn.Unflatten(1, (1, 8, 8)),
    )
    widget = LatentExplorer(
        decoder, torch.randn(9, 2), torch.zeros(9), ["a"], live="vae/heavy"
    )
    with pytest.raises(ValueError, match=r"vae/heavy would cost the page 1,\d+,\d+"):
        widget.export(tmp_path)
    assert not list(tmp_path.rglob("heavy.*"))  # nothing of it stays


# --- Wrong arguments ---------------------------------------------------------------

GOOD = {
    "decoder": lambda z: z.sigmoid().reshape(-1, 1, 1, 2),
    "points": torch.randn(6, 2),
    "labels": [0, 1, 2, 0, 1, 2],
    "classes": CLASSES,
}


def test_good_arguments_are_accepted():
    LatentExplorer(**GOOD)
    flat = GOOD | {"decoder": lambda z: z.sigmoid()}
    for shape in (1, 2, 1), [1, 2, 1]:
        assert LatentExplorer(**flat, image_shape=shape).spec["image"] == [1, 2, 1]


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"points": torch.randn(6)}, ValueError, r"points have shape \(6,\)"),
        ({"points": torch.randn(6, 1)}, ValueError, r"points have shape \(6, 1\)"),
        ({"points": torch.randn(0, 2)}, ValueError, r"points have shape \(0, 2\)"),
        ({"points": torch.full((6, 2), torch.nan)}, ValueError, "6 of 6 points"),
        ({"labels": [0, 1]}, ValueError, r"labels have shape \(2,\); expected \(6,\)"),
        ({"labels": [0, 1, 2, 0, 1, 3]}, ValueError, r"0\.\.3, but there are 3"),
        ({"labels": [0, 1, 2, 0, 1, -1]}, ValueError, r"lie in -1\.\.2"),
        ({"dims": (0, 2)}, ValueError, r"dims=\(0, 2\); expected two of 0\.\.1"),
        ({"dims": (1, 1)}, ValueError, r"dims=\(1, 1\)"),
        (
            {"decoder": lambda z: z},
            ValueError,
            r"into \(2, 2\); expected \(2, C, H, W\)",
        ),
        (
            {"decoder": lambda z: z.view(-1, 2, 1, 1)},
            ValueError,
            r"into \(2, 2, 1, 1\)",
        ),
        ({"decoder": lambda z: 1}, ValueError, "returns a int"),
        ({"decoder": lambda z: 255 * GOOD["decoder"](z)}, ValueError, r"in 0\.\.1"),
        ({"decoder": lambda z: GOOD["decoder"](z) - 9}, ValueError, "sigmoid"),
        ({"decoder": lambda z: GOOD["decoder"](z) * torch.nan}, ValueError, "nan"),
        ({"image_shape": (1, 3, 3)}, ValueError, r"image_shape is \(1, 3, 3\)"),
        ({"live": "vae/x"}, TypeError, "torch.nn.Module"),
    ],
)
def test_one_error_names_what_is_wrong(change, error, words):
    with pytest.raises(error, match=words):
        LatentExplorer(**(GOOD | change))


def test_importing_genlib_brings_no_widgets():
    code = "import sys, genlib, genlib.export; print('ipywidgets' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "False", out.stderr


# --- ES modules ---------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted([*STATIC.glob("*.mjs"), *PAGE.glob("*.mjs")]))
def test_each_module_parses(node, path):
    subprocess.run([node, "--check", path], check=True, timeout=60)


def test_a_joined_module_imports_no_name_under_another(tmp_path, monkeypatch):
    (tmp_path / "a.mjs").write_text('import { b as c } from "./b.mjs";\nc();\n')
    (tmp_path / "b.mjs").write_text("export const b = 1;\n")
    monkeypatch.setattr("genlib.widgets.base.STATIC", tmp_path)
    with pytest.raises(ValueError, match="a.mjs: a joined module keeps its names"):
        join_module("a")


def test_the_joined_module_stands_alone(node, tmp_path):
    joined = tmp_path / "joined.mjs"
    joined.write_text(join_module("latent_explorer"))
    assert joined.read_text() == LatentExplorer._esm
    assert not re.search(r"^import ", joined.read_text(), re.MULTILINE)
    assert joined.read_text().count("function kernelEngine(") == 1
    run_module(node, joined, "assert.equal(typeof m.default.render, 'function');")


def run_module(node, path, checks):
    code = (
        "import assert from 'node:assert/strict';\n"
        f"const m = await import({json.dumps(path.as_uri())});\n{checks}"
    )
    command = [node, "--input-type=module", "-e", code]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stderr


def test_the_explorers_arithmetic(node):
    checks = """
    assert.deepEqual([...m.lineBetween([0, 2], [4, 0], 3)], [0, 2, 2, 1, 4, 0]);
    const found = m.nearest([[0, 0], [3, 4], [9, 9]], [0, 4]);
    assert.deepEqual(found, {index: 1, distance: 3});
    assert.equal(m.toUnit(1, [-1, 3]), 0.5);
    assert.equal(m.fromUnit(m.toUnit(0.7, [-2, 5]), [-2, 5]).toFixed(9), "0.700000000");
    assert.equal(m.changed([0, 0], [1, 0]), 50);
    assert.equal(m.changed(null, [1]), null);
    let s = 1;
    const random = () => (s = (s * 16807) % 2147483647) / 2147483647;
    const x = Array.from({length: 20000}, () => m.normal(random));
    const mean = x.reduce((a, b) => a + b) / x.length;
    const square = x.reduce((a, b) => a + b * b, 0) / x.length;
    assert.ok(Math.abs(mean) < 0.03 && Math.abs(square - 1) < 0.04);
    """
    run_module(node, STATIC / "latent_explorer.mjs", checks)


def test_colours_numbers_and_ticks(node):
    checks = """
    assert.deepEqual(m.rgb("#fff"), [255, 255, 255]);
    assert.deepEqual(m.rgb("rgb(1, 2, 3)"), [1, 2, 3]);
    assert.equal(m.contrast([0, 0, 0], [255, 255, 255]).toFixed(3), "21.000");
    const shade = m.readable("#332288", "#111111", 3.2);
    assert.ok(m.contrast(m.rgb(shade), m.rgb("#111111")) >= 3.2);
    assert.equal(m.readable("#ddcc77", "#111111", 3.2), "rgb(221, 204, 119)");
    assert.equal(m.number(-1.234), "−1.23");
    assert.equal(m.number(-0.001), "0.00");
    assert.deepEqual(m.ticks([-3.2, 3.1]), [-3, -2, -1, 0, 1, 2, 3]);
    assert.ok(m.ticks([0, 0.5]).length <= 8);
    assert.equal(m.places(m.ticks([-3.2, 3.1])), 0);
    assert.equal(m.places(m.ticks([0, 0.5])), 1);
    assert.equal(m.places(m.ticks([0.01, 0.05])), 2);
    assert.equal(m.places([1]), 0);
    assert.equal(m.places([-3.5, -2.5]), 1);
    """
    run_module(node, STATIC / "dom.mjs", checks)


def test_the_kernel_engine_and_the_queue(node):
    checks = """
    const listeners = {};
    const sent = [];
    const model = {
      on: (event, f) => ((listeners[event] ??= new Set()).add(f)),
      off: (event, f) => listeners[event].delete(f),
      send: (content, callbacks, buffers) => sent.push([content, buffers]),
      get: (name) => name === "at_once",
    };
    const fire = (event, ...args) => listeners[event].forEach((f) => f(...args));
    const engine = m.kernelEngine(model);
    const states = [];
    engine.watch((s) => states.push(s));

    const first = engine.run({z: {data: Float32Array.of(1, 2), shape: [1, 2]}});
    const [{run, inputs}, [buffer]] = sent[0];
    assert.deepEqual(inputs, {z: [1, 2]});
    assert.deepEqual([...new Float32Array(buffer)], [1, 2]);
    const bytes = new Uint8Array(9);  // an answer that starts at an odd address
    bytes.set(new Uint8Array(Float32Array.of(5, 6).buffer), 1);
    const view = new DataView(bytes.buffer, 1);
    fire("msg:custom", {run: "another view", outputs: {x: [2]}}, [view]);
    fire("msg:custom", {run, outputs: {x: [2]}}, [view]);
    assert.deepEqual([...(await first).x.data], [5, 6]);

    const second = engine.run({z: {data: Float32Array.of(1), shape: [1, 1]}});
    fire("msg:custom", {run: sent[1][0].run, error: "ValueError: no"}, []);
    await assert.rejects(second, /ValueError: no/);

    const third = engine.run({z: {data: Float32Array.of(1), shape: [1, 1]}});
    fire("comm:close");
    await assert.rejects(third, m.LostKernel);
    assert.deepEqual(states, ["lost"]);
    engine.close();
    assert.ok(Object.values(listeners).every((set) => set.size === 0));

    let wish = 0;
    const served = [];
    const ask = m.newestOnly(async () => {
      served.push(wish);
      await new Promise((done) => setTimeout(done, 5));
    });
    for (wish = 1; wish < 50; wish += 1) ask();
    await new Promise((done) => setTimeout(done, 40));
    assert.deepEqual(served, [1, 50], "only the newest wish waits");

    let [running, most] = [0, 0];
    served.length = 0;
    const askTwo = m.newestOnly(async () => {
      served.push(wish);
      most = Math.max(most, (running += 1));
      await new Promise((done) => setTimeout(done, 5));
      running -= 1;
    }, engine.lanes);
    for (wish = 1; wish < 50; wish += 1) askTwo();
    await new Promise((done) => setTimeout(done, 40));
    assert.deepEqual([served, most], [[1, 2, 50], 2], "two on their way at most");
    """
    run_module(node, STATIC / "engine.mjs", checks)


def test_an_answer_is_asked_for_again_unless_the_server_sends_at_once(node):
    checks = """
    const words = async (atOnce) => {
      const sent = [];
      const model = {
        on() {},
        off() {},
        get: (name) => (name === "at_once" ? atOnce : undefined),
        send: (content) => sent.push("nudge" in content ? "nudge" : "run"),
      };
      const engine = m.kernelEngine(model);
      engine.run({z: {data: Float32Array.of(1), shape: [1, 1]}});
      await new Promise((done) => setTimeout(done, 60));
      engine.close();
      return sent;
    };
    assert.deepEqual(await words(false), ["run", "nudge"]);
    assert.deepEqual(await words(true), ["run"]);
    """
    run_module(node, STATIC / "engine.mjs", checks)


def test_widgets_learn_how_the_server_sends(monkeypatch):
    monkeypatch.delenv("GENLIB_AT_ONCE", raising=False)
    assert not make().at_once
    monkeypatch.setenv("GENLIB_AT_ONCE", "1")
    assert make().at_once
