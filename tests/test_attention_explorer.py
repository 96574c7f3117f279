"""The attention explorer: its Python side, its export, and its ES module in Node."""

import json
import re

import numpy as np
import pytest
import torch
from test_lab_front import evaluate
from test_widgets import Tags, ask, run_module
from torch import nn

from genlib.attention import AttentionOnly, Explorable
from genlib.widgets import AttentionExplorer
from genlib.widgets.base import STATIC, join_module

CHARS = " abcdé"
MODULE = STATIC / "attention_explorer.mjs"


def model(**sizes):
    torch.manual_seed(0)
    sizes = {"block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 8} | sizes
    return Explorable(AttentionOnly(len(CHARS), **sizes))


def make(texts=("ab ab", "abcd"), **options):
    return AttentionExplorer(model(), CHARS, texts, **options)


def buffers(feeds):
    return [memoryview(x.numpy().tobytes()) for x in feeds.values()]


# --- Python ---------------------------------------------------------------------------


def test_a_request_is_answered_with_the_models_weights():
    widget = make()
    feeds = widget._feeds("ab ab")
    feeds["switches"][0] = torch.tensor([0.0, 1.0, 1.0])
    feeds["heads"][0, 1] = 0
    content = {"run": "v:1", "inputs": {k: list(x.shape) for k, x in feeds.items()}}
    [(answer, data)] = ask(widget, content, *buffers(feeds))
    assert answer["outputs"] == {"weights": [2, 4, 8, 8], "next": [2, 8, 6]}
    expected = widget._model(*feeds.values())
    for got, value in zip(data, expected, strict=True):
        got = np.frombuffer(got, np.float32).reshape(value.shape)
        np.testing.assert_allclose(got, value.detach(), atol=1e-6)
    assert feeds["idx"][0].tolist() == [1, 2, 0, 1, 2, 6, 6, 6]
    weights = expected[0].detach()
    assert weights[0, :, 0, 1].min() > 0 and weights[1, :, 0, 1].max() == 0
    gap = (weights[0, 2:, 4, :5] - weights[1, 2:, 4, :5]).abs().max()
    assert gap > 1e-4, "layer 2 feels that a head of layer 1 is silent"


def test_it_neither_trains_nor_keeps_a_graph():
    seen = []

    class Watch(nn.Module):
        n_layer, n_head, block_size = 1, 1, 4

        def forward(self, idx, switches, heads):
            seen.append((self.training, torch.is_grad_enabled()))
            return torch.zeros(len(idx), 1, 4, 4), torch.zeros(len(idx), 4, 6)

    watch = Watch().train()
    AttentionExplorer(watch, CHARS, ["ab"])
    assert watch.training and set(seen) == {(False, False)}


def test_the_stored_form_is_stable_and_complete():
    widget = make(live="attention/test", title="Where <b> does it look?", start=(1, 0))
    assert repr(widget) == "AttentionExplorer(attention/test: 2 layers of 2 heads)"
    text = widget._html()
    assert text == widget._html()
    tags = Tags(text)
    assert tags.found["div"]["data-widget"] == "attention_explorer"
    assert "for the text “ab ab”" in tags.found["img"]["alt"]
    assert "Where <b> does it look?" in tags.text and "make serve" in tags.text
    rest = re.sub('base64,[^"]*', "", text)
    assert not re.search(r"https?:|0x[0-9a-f]{6}|/home|/tmp|\d\.\d", rest)
    assert len(text) < 120_000
    spec = widget.spec
    assert json.loads(json.dumps(spec, allow_nan=False)) == spec
    assert spec["start"] == 2 and spec["lower"] and spec["block"] == 8
    assert not AttentionExplorer(model(), "aB éxy", ["aB"]).spec["lower"]


def test_files_are_written_where_genlib_live_says(tmp_path, monkeypatch):
    monkeypatch.delenv("GENLIB_LIVE", raising=False)
    monkeypatch.chdir(tmp_path)
    make(live="attention/test")
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("GENLIB_LIVE", str(tmp_path / "live"))
    widget = make(live="attention/test")
    files = tmp_path / "live" / "attention"
    names = ["test.json", "test.onnx", "test.safetensors"]
    assert sorted(p.name for p in files.iterdir()) == names
    manifest = json.loads((files / "test.json").read_text())
    assert manifest["spec"] == widget.spec
    assert manifest["widget"] == "attention_explorer"


def test_a_heavy_export_is_refused(tmp_path):
    heavy = AttentionExplorer(
        model(n_embd=256, n_layer=2), CHARS, ["ab"], live="attention/heavy"
    )
    with pytest.raises(ValueError, match=r"attention/heavy would cost the page 2,\d+,"):
        heavy.export(tmp_path)
    assert not list(tmp_path.rglob("heavy.*"))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"chars": "aab"}, "expected each character once"),
        ({"chars": ""}, "expected each character once"),
        ({"texts": []}, "give at least one"),
        ({"texts": ["ab", "abx"]}, "text 'abx' has 'x'"),
        ({"texts": ["a"]}, "has 1 characters; expected 2 to 8"),
        ({"texts": ["abcdabcda"]}, "has 9 characters; expected 2 to 8"),
        ({"start": (2, 0)}, r"start=\(2, 0\); there are 2 layers of 2 heads"),
        ({"start": (0, -1)}, r"start=\(0, -1\)"),
        (
            {"chars": " abcd"},
            r"returns next of shape \(2, 8, 6\); expected \(2, 8, 5\)",
        ),
    ],
)
def test_one_error_names_what_is_wrong(change, words):
    good = {"chars": CHARS, "texts": ["ab"], "start": (0, 0)}
    AttentionExplorer(model(), **good)
    with pytest.raises(ValueError, match=words):
        AttentionExplorer(model(), **(good | change))


# --- The ES module --------------------------------------------------------------------


def test_what_is_typed_is_read_or_refused_in_words(node):
    checks = """
    const spec = {chars: " abcdé", block: 8, lower: true};
    assert.deepEqual(m.readText("AB é", spec), {text: "ab é", tokens: [1, 2, 0, 5]});
    assert.deepEqual(m.readText("abcdabcd", spec).tokens.length, 8);
    assert.match(m.readText("abx", spec).note, /“x” is not among the 6 characters/);
    assert.match(m.readText("a😀", spec).note, /“😀” is not/);
    const long = m.readText("abcdabcdab", spec).note;
    assert.match(long, /10 characters; this model sees 8 at once: leave out 2/);
    assert.match(m.readText("a", spec).note, /at least two/);
    assert.match(m.readText("", spec).note, /at least two/);
    const exact = {...spec, chars: "aB", lower: false};
    assert.deepEqual(m.readText("aB", exact).tokens, [0, 1]);
    assert.match(m.readText("ab", exact).note, /“b” is not/);
    """
    run_module(node, MODULE, checks)


def test_rows_and_surprise_are_pytorchs(node):
    widget = make()
    feeds = widget._feeds("ab ab")
    feeds["switches"][0, 0] = 0
    answer = widget.run(feeds)
    data = {
        name: {"data": x.flatten().tolist(), "shape": list(x.shape)}
        for name, x in answer.items()
    }
    script = """
    const answer = ANSWER;
    for (const x of Object.values(answer)) x.data = Float32Array.from(x.data);
    const { weights, next } = answer;
    out.row = [...m.rowOf(weights, 3, 4, 5)];
    out.trained = [...m.rowOf(weights, 2, 1, 5, 1)];
    out.surprise = [0, 1].map((k) => m.surprise(next, [1, 2, 0, 1, 2], k));
    """.replace("ANSWER", json.dumps(data))
    out = evaluate(node, MODULE, script)
    np.testing.assert_allclose(out["row"], answer["weights"][0, 3, 4, :5], rtol=1e-6)
    np.testing.assert_allclose(
        out["trained"], answer["weights"][1, 2, 1, :5], rtol=1e-6
    )
    targets = torch.tensor([2, 0, 1, 2])
    for k, got in enumerate(out["surprise"]):
        picked = answer["next"][k, torch.arange(4), targets]
        assert got == pytest.approx(-picked.log2().mean().item(), rel=1e-5)


def test_words_and_shades(node):
    checks = """
    const row = Float32Array.of(0.04, 0.6, 0.3, 0.06);
    assert.deepEqual(m.largest(row, 3).map(([k]) => k), [1, 2, 3]);
    assert.deepEqual(m.largest(Float32Array.of(0.97, 0.03), 3).map(([k]) => k), [0]);
    assert.equal(m.percent(0.634), "63 %");
    assert.equal(m.percent(0.001), "under 1 %");
    assert.equal(m.percent(0), "0 %");
    assert.equal(m.quoted(" "), "the space");
    assert.deepEqual(m.mix([0, 100, 200], [100, 0, 200], 0.25), [50, 50, 200]);
    assert.deepEqual(m.mix([0, 0, 0], [9, 9, 9], 2), [9, 9, 9]);
    """
    run_module(node, MODULE, checks)


@pytest.mark.parametrize(
    "surface, ink, high",
    [("#fcfcfa", "#1c2225", "#93c4ea"), ("#15191b", "#dde2e1", "#1f567f")],
)
def test_text_stays_readable_on_every_shade(node, surface, ink, high):
    assert high in MODULE.read_text(encoding="utf-8")
    script = """
    const d = await import(DOM);
    const [low, high, ink] = COLOURS.map(d.rgb);
    const all = [0, 0.1, 0.3, 0.6, 1].map((w) => d.contrast(m.mix(low, high, w), ink));
    out.least = Math.min(...all);
    """
    script = script.replace("DOM", json.dumps((STATIC / "dom.mjs").as_uri()))
    script = script.replace("COLOURS", json.dumps([surface, high, ink]))
    assert evaluate(node, MODULE, script)["least"] > 4.5


def test_the_explorer_stands_alone_in_a_notebook(node, tmp_path):
    text = join_module("attention_explorer")
    joined = tmp_path / "joined.mjs"
    joined.write_text(text)
    assert text == AttentionExplorer._esm
    assert not re.search(r"^import ", text, re.MULTILINE)
    run_module(node, joined, "assert.equal(typeof m.default.render, 'function');")
