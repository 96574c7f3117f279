"""The text sampler: its Python side, its arithmetic in Node, the page that writes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_lab_front import evaluate
from test_widgets import ask, run_module

from conftest import axe, run_cell
from genlib.data import book_text
from genlib.export import export_onnx, run_onnx
from genlib.gpt import (
    GPT,
    Characters,
    GPTConfig,
    generate,
    make_cache,
    modern,
    next_token_probs,
)
from genlib.widgets import TextSampler
from genlib.widgets.base import STATIC, join_module
from genlib.widgets.text_sampler import forgotten

LIVE = Path(__file__).parents[1] / "book" / "live"
CHARS = Characters("abcdefgh \n")
SIZES = {"vocab_size": 10, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 8}


def build(**options):
    torch.manual_seed(0)
    gpt = GPT(modern(**SIZES, fused=False))
    with torch.no_grad():
        for p in gpt.parameters():
            p.copy_(0.6 * torch.randn_like(p))
    return TextSampler(gpt, CHARS, "bad", **options)


def writer():
    """The committed model, built from present code, and its vocabulary."""
    chars = Characters(book_text())
    sizes = {"block_size": 64, "n_layer": 2, "n_head": 4, "n_embd": 64}
    gpt = GPT(modern(vocab_size=len(chars), fused=False, **sizes)).eval()
    gpt.load_state_dict(load_file(LIVE / "gpt" / "writer.safetensors"))
    return gpt, chars


# --- Python ---------------------------------------------------------------------------


def test_tokens_are_read_one_by_one_as_the_model_reads_them_at_once():
    widget = build()
    text, cache = "bad head", torch.zeros(1, *widget.spec["cache"])
    for n, token in enumerate(CHARS.encode(text)):
        inputs = {"token": [float(token)], "at": [float(n)]}
        data = [np.float32(v).tobytes() for v in inputs.values()]
        shapes = {"token": [1], "at": [1], "cache": list(cache.shape)}
        content = {"run": "a:1", "inputs": shapes}
        [(answer, buffers)] = ask(widget, content, *data, cache.numpy().tobytes())
        got = dict(zip(answer["outputs"], buffers, strict=True))
        cache = torch.from_numpy(np.frombuffer(got["new_cache"], "<f4").copy())
        cache = cache.view(1, *widget.spec["cache"])
    logits = np.frombuffer(got["logits"], "<f4")
    np.testing.assert_allclose(logits, widget.logits(text), atol=1e-5)
    assert answer["outputs"]["logits"] == [1, 10]


def test_whole_halves_of_a_full_context_are_forgotten():
    assert [forgotten(n, 8) for n in (1, 8, 9, 12, 13, 16, 17)] == [
        0,
        0,
        4,
        4,
        8,
        8,
        12,
    ]
    assert [forgotten(n, 5) for n in (5, 6, 7, 8)] == [0, 2, 2, 4]
    widget = build()
    torch.testing.assert_close(widget.logits("abcdefgha"), widget.logits("efgha"))


def test_greedy_text_is_generates():
    widget = build()
    start = torch.tensor([CHARS.encode("bad")])
    expected = generate(widget.gpt, start, 5, temperature=0)[0].tolist()
    assert widget.write(5, temperature=0) == CHARS.decode(expected)
    drawn = {seed: build(seed=seed).write(30) for seed in (0, 1)}
    assert drawn[0] != drawn[1] and drawn[0] == build().write(30)


def test_dropout_rests_while_it_is_asked():
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(**SIZES, dropout=0.5, fused=False)).train()
    widget = TextSampler(gpt, CHARS, "bad")
    assert torch.equal(widget.logits("bad"), widget.logits("bad")) and gpt.training


@pytest.mark.parametrize(
    "change, words",
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "bäd"}, "character 'ä' at place 1"),
        ({"chars": Characters("ab")}, "2 characters; this model was built for 10"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0}, "top_p is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"gpt": GPT(GPTConfig(**SIZES))}, "fused=False"),
    ],
)
def test_one_error_names_what_is_wrong(change, words):
    good = {"gpt": build().gpt, "chars": CHARS, "prompt": "bad"}
    with pytest.raises(ValueError, match=re.escape(words)):
        TextSampler(**good | change)


def test_a_top_k_above_the_vocabulary_is_all_of_it():
    assert build(top_k=99).spec["top_k"] == 10 == build().spec["top_k"]


def test_the_stored_form_is_stable_and_described(tmp_path, monkeypatch):
    monkeypatch.setenv("GENLIB_LIVE", str(tmp_path))
    widget = build(live="toy/writer", title="Ten <letters>")
    names = sorted(p.name for p in (tmp_path / "toy").iterdir())
    assert names == ["writer.json", "writer.onnx", "writer.safetensors"]
    manifest = json.loads((tmp_path / "toy" / "writer.json").read_text())
    assert manifest["widget"] == "text_sampler" and manifest["spec"] == widget.spec
    text = widget._repr_mimebundle_()[0]["text/html"]
    assert text == widget._html() and "Ten &lt;letters&gt;" in text
    assert 'data-live="toy/writer"' in text and "bars of the 10 likeliest" in text
    assert repr(widget) == "TextSampler(toy/writer: 1,656 parameters, 10 characters)"


def test_a_heavy_export_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("genlib.widgets.base.MAX_WEIGHT", 1000)
    with pytest.raises(ValueError, match="at most 1,000: use a smaller model"):
        build(live="toy/writer").export(tmp_path)
    assert not list((tmp_path / "toy").iterdir())


def test_what_is_committed_is_what_the_code_exports(tmp_path):
    import onnx

    gpt, chars = writer()
    committed = LIVE / "gpt" / "writer.onnx"
    manifest = json.loads(committed.with_suffix(".json").read_text())
    assert manifest["spec"]["chars"] == chars.chars
    widget = TextSampler(gpt, chars, manifest["spec"]["prompt"], live="again")
    widget.export(tmp_path)
    old, new = onnx.load(committed), onnx.load(tmp_path / "again.onnx")
    if old.producer_version == new.producer_version:
        assert old == new, "another graph or other weights; run `make notebooks`"
    cache = torch.randn(1, *manifest["spec"]["cache"])
    feeds = {"token": torch.tensor([3.0]), "at": torch.tensor([5.0]), "cache": cache}
    expected = widget.run(feeds)
    for name, value in run_onnx(committed, feeds).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-4)


def test_the_committed_model_writes_words():
    gpt, chars = writer()
    words = set(book_text().split())
    told = TextSampler(gpt, chars, "The model ").write(200, temperature=0.5).split()
    assert sum(word in words for word in told) > 0.6 * len(told)


def test_a_batch_of_texts_keeps_its_caches_apart(tmp_path):
    widget = build()
    cache = torch.randn(2, *widget.spec["cache"])
    feeds = {"token": torch.tensor([1.0, 2]), "at": torch.tensor([0.0, 3])}
    feeds["cache"] = cache
    export_onnx(widget._next, feeds, tmp_path / "n.onnx", ["logits", "new_cache"])
    for k in range(2):
        alone = widget.run({name: x[k : k + 1] for name, x in feeds.items()})
        together = run_onnx(tmp_path / "n.onnx", feeds)
        np.testing.assert_allclose(together["logits"][k], alone["logits"][0], atol=1e-4)


# --- Node -----------------------------------------------------------------------------


def test_the_page_draws_from_pytorchs_probabilities(node):
    torch.manual_seed(0)
    logits = 3 * torch.randn(40)
    logits[7] = logits[3]  # a tie
    settings = [
        {"temperature": 1, "top_k": 40, "top_p": 1},
        {"temperature": 0.5, "top_k": 40, "top_p": 1},
        {"temperature": 1.7, "top_k": 5, "top_p": 1},
        {"temperature": 1, "top_k": 40, "top_p": 0.6},
        {"temperature": 0.8, "top_k": 12, "top_p": 0.9},
        {"temperature": 1, "top_k": 1, "top_p": 0.05},
        {"temperature": 0, "top_k": 3, "top_p": 0.5},
        {"temperature": 1, "top_k": 99, "top_p": 1},
    ]
    script = f"""
    const logits = Float32Array.from({logits.tolist()});
    out.probs = {json.dumps(settings)}.map((s) => m.nextProbs(logits, s));
    out.half = {[[n, b] for n in range(1, 40) for b in (1, 5, 8)]}
      .map(([n, b]) => m.forgotten(n, b));
    """
    out = evaluate(node, STATIC / "text_sampler.mjs", script)
    for probs, setting in zip(out["probs"], settings, strict=True):
        expected = next_token_probs(logits[None], **setting)[0]
        np.testing.assert_allclose(probs, expected, atol=1e-6, err_msg=str(setting))
    assert out["half"] == [forgotten(n, b) for n in range(1, 40) for b in (1, 5, 8)]


def test_a_draw_is_the_token_that_the_noise_means(node):
    checks = """
    assert.deepEqual([0, 0.24, 0.26, 0.999].map((u) => m.drawToken([0.25, 0, 0.75], u)),
      [0, 0, 2, 2]);
    assert.equal(m.drawToken([0.5, 0.5, 0], 1), 1, "never one that cannot be");
    """
    run_module(node, STATIC / "text_sampler.mjs", checks)


def test_the_sampler_stands_alone_in_a_notebook(node, tmp_path):
    text = join_module("text_sampler")
    joined = tmp_path / "joined.mjs"
    joined.write_text(text)
    assert not re.search(r"^import ", text, re.MULTILINE)
    run_module(node, joined, "assert.equal(typeof m.default.render, 'function');")


# --- The page -------------------------------------------------------------------------

HOLDS = 'data-widget="text_sampler"'
RECORD = """window.texts = [];
document.addEventListener("genlib:text", ({detail}) => window.texts.push(detail));"""
STATE = "document.querySelector('.gl-sampler').genlib.state()"


@pytest.fixture
def open_sampler(visit, site, pages):
    """Open the page that holds the sampler and bring it to life; settings off."""
    found = [p for p in pages if HOLDS in (site / p).read_text(encoding="utf-8")]
    if not found:
        pytest.skip("no chapter has a text sampler")

    def open_page(plain=True, theme="light", **options):
        page = visit(found[0], color_scheme=theme, **options)
        page.evaluate(RECORD)
        page.locator(f"[{HOLDS}] .gl-start").click()
        page.wait_for_function("window.texts.length > 0", timeout=30_000)
        if plain:
            setting(page, "temperature", 1)
            setting(page, "top-p", 1)
        return page

    return open_page


def setting(page, name, value):
    field = page.get_by_label(f"{name}, as a number")
    field.fill(str(value))
    field.press("Enter")


def prompt(page, text):
    page.evaluate("window.texts.length = 0")
    page.get_by_label("prompt", exact=True).fill(text)
    if text:  # until it is read
        read = f"window.texts.some(({{ text }}) => text === {STATE}.text)"
        page.wait_for_function(read)
    return page.evaluate(STATE)


def press(page, name):
    button = page.locator(".gl-sampler").get_by_role("button", name=name, exact=True)
    button.click()


def grow(page, act):
    """Do something that adds one token; return what it added."""
    before = page.evaluate(STATE)["text"]
    act()
    page.wait_for_function(
        f"(() => {{ const s = {STATE}; return s.text.length === {len(before) + 1}"
        " && s.reads > 0; })()"
    )
    page.wait_for_timeout(60)
    return page.evaluate(STATE)["text"][len(before) :]


def test_the_page_gives_pytorchs_probabilities(open_sampler):
    gpt, chars = writer()
    widget, page = TextSampler(gpt, chars, "The model "), open_sampler()
    long = book_text()[:90]
    for text in ("The model ", "T", "\n\nA digit", long[:64], long[:65], long):
        state = prompt(page, text)
        assert state["text"] == text and state["from"] == forgotten(len(text), 64)
        expected = widget.logits(text)
        np.testing.assert_allclose(state["logits"], expected, atol=2e-4, err_msg=text)
        np.testing.assert_allclose(state["probs"], expected.softmax(0), atol=1e-4)


def test_greedy_text_in_the_page_is_pytorchs(open_sampler):
    gpt, chars = writer()
    page = open_sampler()
    setting(page, "temperature", 0)
    told = "".join(grow(page, lambda: press(page, "Next token")) for _ in range(40))
    start = torch.tensor([chars.encode("The model ")])
    out = generate(gpt, start, 40, temperature=0)[0, start.shape[1] :]
    assert told == chars.decode(out.tolist())
    # one token was read for each, none twice
    assert page.evaluate(STATE)["reads"] == 1
    with torch.no_grad():
        cache = make_cache(gpt)
        whole = gpt(torch.tensor([chars.encode("The model " + told)]), cache, last=True)
    logits = page.evaluate(STATE)["logits"]
    np.testing.assert_allclose(logits, whole[0, 0], atol=2e-4)


def test_drawn_text_follows_the_seed_as_in_python(open_sampler):
    gpt, chars = writer()
    page = open_sampler(plain=False)
    spec = json.loads((LIVE / "gpt" / "writer.json").read_text())["spec"]
    options = {k: spec[k] for k in ("temperature", "top_k", "top_p")}
    for seed in (0, 7):
        field = page.get_by_label("seed", exact=True).first
        field.fill(str(seed))
        field.press("Enter")
        told = "".join(grow(page, lambda: press(page, "Next token")) for _ in range(12))
        widget = TextSampler(gpt, chars, "The model ", seed=seed, **options)
        assert "The model " + told == widget.write(12)
        press(page, "Back to the prompt")
        assert page.evaluate(STATE)["text"] == "The model "
    field.fill("-3")
    field.press("Enter")
    assert field.input_value() == "0"
    assert "Seed: 0 is the least" in page.inner_text(".gl-sampler .gl-status")


def test_settings_act_on_the_bars_at_once(open_sampler):
    page = open_sampler()
    logits = torch.tensor(page.evaluate(STATE)["logits"])[None]
    for name, key, value in (
        ("temperature", "temperature", 0.4),
        ("top-k", "top_k", 3),
        ("top-p", "top_p", 0.5),
    ):
        setting(page, name, value)
        expected = next_token_probs(logits, **{key: value})[0]
        got = page.evaluate("window.texts.at(-1)")
        np.testing.assert_allclose(got["after"], expected, atol=1e-5)
        np.testing.assert_allclose(got["before"], logits[0].softmax(0), atol=1e-5)
        best = int(expected.argmax())
        label = page.locator(".gl-token .gl-hidden").first.text_content()
        shown = float(re.search(r"with the settings ([\d.]+)", label)[1])
        assert shown == pytest.approx(100 * expected[best].item(), abs=0.51)
        press(page, "Default settings")
        setting(page, "temperature", 1)
        setting(page, "top-p", 1)


def test_no_press_is_lost(open_sampler):
    """Pressed while it still reads, and faster than it reads."""
    gpt, chars = writer()
    page = open_sampler()
    setting(page, "temperature", 0)
    page.get_by_label("prompt", exact=True).fill("The longer the prompt is, ")
    button = page.locator(".gl-sampler").get_by_role("button", name="Next token")
    button.evaluate("(b) => { for (let k = 0; k < 5; k += 1) b.click(); }")
    page.wait_for_function(f"{STATE}.text.length === 31")
    page.wait_for_timeout(300)
    widget = TextSampler(gpt, chars, "The longer the prompt is, ")
    assert page.evaluate(STATE)["text"] == widget.write(5, temperature=0)


def test_a_bar_can_be_taken(open_sampler):
    page = open_sampler()
    bar = page.locator(".gl-token").nth(3)
    name = bar.locator(".gl-char").inner_text()
    got = grow(page, bar.click)
    assert got == {"␣": " ", "↵": "\n"}.get(name, name)
    assert page.inner_text(".gl-sampler [aria-live]").startswith("Taken: ")


def test_it_writes_by_itself_forgets_and_stops(open_sampler):
    page = open_sampler()
    press(page, "Write")
    page.wait_for_function(f"{STATE}.from >= 32", timeout=30_000)
    press(page, "Stop")
    page.wait_for_timeout(300)
    state = page.evaluate(STATE)
    page.wait_for_timeout(500)
    assert page.evaluate(STATE)["text"] == state["text"]
    assert page.inner_text(".gl-sampler .gl-old") == state["text"][: state["from"]]
    assert "forgotten" in page.inner_text(".gl-sampler .gl-buttons >> nth=0")
    gpt, chars = writer()
    expected = TextSampler(gpt, chars, "T").logits(state["text"])
    np.testing.assert_allclose(state["logits"], expected, atol=2e-4)


def test_what_it_cannot_read_is_said(open_sampler):
    page = open_sampler()

    def said():
        return page.inner_text(".gl-sampler .gl-status")

    assert prompt(page, "Ω meter 字")["text"] == " meter "
    assert said().startswith("This model has never seen “Ω” and “字”.")
    assert prompt(page, "“Dash” – é")["text"] == '"Dash" - e' and said() == ""
    prompt(page, "")
    assert "The prompt is empty" in said()
    assert page.get_by_role("button", name="Next token").is_disabled()
    long = book_text()[:70]
    assert prompt(page, long)["from"] == 32
    assert "70 characters; the model sees 64 at once. It reads the last 38" in said()
    assert prompt(page, "The")["text"] == "The" and said() == ""
    assert not page.get_by_role("button", name="Next token").is_disabled()


def test_the_keyboard_does_all(open_sampler):
    page = open_sampler()
    page.get_by_role("button", name="Next token").focus()
    first = grow(page, lambda: page.keyboard.press("Enter"))
    assert first
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('gl-token')"):
            break
    name = page.evaluate("document.activeElement.querySelector('.gl-char').textContent")
    got = grow(page, lambda: page.keyboard.press("Enter"))
    assert got == {"␣": " ", "↵": "\n"}.get(name, name)
    slider = page.get_by_label("temperature", exact=True)
    slider.press("Home")
    assert page.get_by_label("temperature, as a number").input_value() == "0"


def test_with_reduced_motion_ten_are_written_a_press(open_sampler):
    page = open_sampler(reduced_motion="reduce")
    press(page, "Write ten")
    page.wait_for_function(f"{STATE}.text.length === 20")
    page.wait_for_timeout(400)
    assert len(page.evaluate(STATE)["text"]) == 20


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_living_sampler_is_accessible(open_sampler, theme):
    page = open_sampler(plain=False, theme=theme)
    prompt(page, book_text()[:80] + "Ω")
    setting(page, "top-k", 4)
    grow(page, lambda: press(page, "Next token"))
    problems = axe(page, f"the sampler, {theme}")
    assert not problems, "\n".join(problems)


def test_on_a_phone_nothing_scrolls_sideways(open_sampler):
    page = open_sampler(viewport={"width": 390, "height": 844}, is_mobile=True)
    press(page, "Write")
    page.wait_for_timeout(1500)
    press(page, "Stop")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_closing_the_sampler_leaves_nothing_behind(open_sampler, site):
    page = open_sampler()
    script = """async ([module, spec]) => {
      const { default: widget } = await import(module);
      let [calls, closed] = [0, 0];
      const run = async (inputs) => {
        calls += 1;
        await new Promise((done) => setTimeout(done, 2));
        const logits = { data: new Float32Array(spec.chars.length), shape: [1] };
        return { logits, new_cache: inputs.cache };
      };
      const el = document.createElement("div");
      document.body.append(el);
      const engine = { run, close: () => (closed += 1) };
      const stop = widget.render({ model: { engine, get: () => spec }, el });
      await new Promise((done) => setTimeout(done, 200));
      [...el.querySelectorAll("button")].find((b) => b.textContent === "Write").click();
      await new Promise((done) => setTimeout(done, 400));
      const before = calls;
      stop();
      await new Promise((done) => setTimeout(done, 500));
      return { wrote: before > 12, after: calls - before <= 1, closed,
        left: el.childElementCount };
    }"""
    spec = json.loads((site / "live" / "gpt" / "writer.json").read_text())["spec"]
    module = re.sub(r"notebooks/.*", "_static/widgets/text_sampler.mjs", page.url)
    found = page.evaluate(script, [module, spec])
    assert found == {"wrote": True, "after": True, "closed": 1, "left": 0}


CELL = """
import torch
from genlib.gpt import GPT, Characters, modern
from genlib.widgets import TextSampler

torch.manual_seed(0)
chars = Characters("abcdefgh \\n")
sizes = {"vocab_size": 10, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 8}
gpt = GPT(modern(**sizes, fused=False))
with torch.no_grad():
    for p in gpt.parameters():
        p.copy_(0.6 * torch.randn_like(p))
TextSampler(gpt, chars, "bad")
"""


def test_the_sampler_in_jupyterlab(notebook):
    page = notebook(CELL)
    page.evaluate(RECORD)
    run_cell(page)
    page.locator(".gl-sampler").wait_for(timeout=60_000)
    read = f"window.texts.some(({{ text }}) => text === {STATE}.text)"
    page.wait_for_function(read, timeout=90_000)
    setting(page, "temperature", 0)
    told = "".join(grow(page, lambda: press(page, "Next token")) for _ in range(7))
    assert "bad" + told == build().write(7, temperature=0)
