"""The attention explorer in a real browser: what is drawn is what PyTorch computes."""

import json
import re

import numpy as np
import pytest
import torch
from test_export import LIVE, load_decoder

from conftest import axe, end_kernels, run_cell

HOLDS = 'data-widget="attention_explorer"'


@pytest.fixture(scope="module")
def place(site, pages):
    """The page that holds the explorer, its name in book/live, and its spec."""
    for page in pages:
        text = (site / page).read_text(encoding="utf-8")
        if HOLDS in text:
            name = re.search(HOLDS + r' data-live="([\w/-]+)"', text)[1]
            return page, name, json.loads((LIVE / f"{name}.json").read_text())["spec"]
    pytest.fail("no page of the site holds an attention explorer")


@pytest.fixture
def alive(visit, place):
    """Open the page and bring the explorer to life."""

    def open_page(**options):
        page = visit(place[0], **options)
        page.locator(f"[{HOLDS}] .gl-start").click()
        page.wait_for_function("window.looked.length > 0", timeout=30_000)
        return page

    return open_page


@pytest.fixture(scope="module")
def model(place):
    return load_decoder(place[1])


def act(page, do):
    """Do something and wait for what the model says to it."""
    count = page.evaluate("window.looked.length")
    do()
    page.wait_for_function(f"window.looked.length > {count}")
    return last(page)


def last(page):
    frame = page.evaluate("""(() => {
      const { weights, next, ...rest } = window.looked.at(-1);
      return { ...rest, weights: [...weights], next: [...next] };
    })()""")
    return frame


def expected(model, spec, text, on=(1, 1, 1), silent=()):
    """What PyTorch says of a text: weights (8, T, T) and probabilities (T, V)."""
    idx = torch.full((1, spec["block"]), float(len(spec["chars"])))
    idx[0, : len(text)] = torch.tensor([spec["chars"].index(c) for c in text])
    heads = torch.ones(1, spec["layers"] * spec["heads"])
    heads[0, list(silent)] = 0
    weights, probs = model(idx, torch.tensor([on]).float(), heads)
    return weights[0].numpy(), probs[0].numpy()


def check(frame, model, spec, **options):
    weights, probs = expected(model, spec, frame["text"], **options)
    got = np.reshape(frame["weights"], (2, *weights.shape))
    np.testing.assert_allclose(got[0], weights, atol=2e-5)
    np.testing.assert_allclose(
        np.reshape(frame["next"], (2, *probs.shape))[0], probs, atol=2e-5
    )
    trained, _ = expected(model, spec, frame["text"])
    np.testing.assert_allclose(got[1], trained, atol=2e-5)
    return weights


def tokens(page):
    """(text, weight drawn, tabindex, pressed) of each character's button."""
    return page.locator(".gl-tokens button").evaluate_all("""(all) => all.map((b) => [
      b.textContent, Number(b.style.getPropertyValue("--weight")), b.tabIndex,
      b.getAttribute("aria-pressed") === "true"])""")


def map_pixels(page):
    return page.locator(".gl-map canvas").evaluate("(c) => c.toDataURL()")


def small_map(page, head):
    """Red of each cell of a head's small map."""
    return (
        page.locator(".gl-layer canvas")
        .nth(head)
        .evaluate("""(c) => {
      const { data } = c.getContext("2d").getImageData(0, 0, c.width, c.height);
      return [...data].filter((_, i) => i % 4 === 0);
    }""")
    )


def test_a_character_under_the_pointer_shows_where_it_looks(alive, place, model):
    spec, page = place[2], alive()
    frame = last(page)
    text = spec["texts"][0]
    assert frame["text"] == text
    weights = check(frame, model, spec)
    n, shown = len(text), tokens(page)
    assert [t[0] for t in shown] == [c.replace(" ", "␣") for c in text]
    before = map_pixels(page)
    for token in (7, n - 3):
        page.locator(".gl-tokens button").nth(token).hover()
        drawn = [t[1] for t in tokens(page)]
        row = weights[spec["start"], token, :n]
        np.testing.assert_allclose(drawn, row, atol=1e-4)
        most = int(row.argmax())
        words = page.inner_text(".gl-words")
        assert f"at place {token + 1} looks" in words
        where = "itself" if most == token else f"at {most + 1} ("
        assert where in words and f"{round(100 * row[most])} %" in words
    assert map_pixels(page) != before, "the map marks the row"
    # Every small map is its head's: darker where the weight is larger
    for head in range(spec["layers"] * spec["heads"]):
        red = np.reshape(small_map(page, head), (n, n))
        own = weights[head, :n, :n]
        low, high = red[own < 1e-3], red[own > 0.6]
        assert not len(high) or high.max() < low.min()
        order = np.argsort(own.flatten())
        assert (np.diff(red.flatten()[order].astype(float)) <= 0).all()


def test_layers_and_heads_are_chosen(alive, place, model):
    spec, page = place[2], alive()
    weights = check(last(page), model, spec)
    seen = {map_pixels(page)}
    for head in (0, 5):
        name = f"Layer {head // spec['heads'] + 1}, head {head % spec['heads'] + 1}"
        page.get_by_role("button", name=name, exact=True).click()
        n = len(spec["texts"][0])
        np.testing.assert_allclose(
            [t[1] for t in tokens(page)], weights[head, n - 1, :n], atol=1e-4
        )
        assert name in page.inner_text(".gl-attention")
        seen.add(map_pixels(page))
    assert len(seen) == 3
    pressed = page.locator(".gl-layer button[aria-pressed=true]")
    assert pressed.count() == 1


def test_the_switches_move_the_map(alive, place, model):
    spec, page = place[2], alive()
    seen = {map_pixels(page)}
    trained = page.inner_text(".gl-side .gl-quiet >> nth=-1")
    on = [1, 1, 1]
    for k, name in enumerate(("causal mask", "scale 1/√d", "positions")):
        on[k] = 0
        frame = act(page, page.get_by_label(name).uncheck)
        assert frame["on"] == on
        check(frame, model, spec, on=on)
        seen.add(map_pixels(page))
    assert len(seen) == 4
    assert "; as trained" in page.inner_text(".gl-attention")
    frame = act(page, page.get_by_role("button", name="As trained").click)
    check(frame, model, spec)
    assert map_pixels(page) in seen
    assert page.inner_text(".gl-side .gl-quiet >> nth=-1") == trained


def test_a_head_is_silenced(alive, place, model):
    spec, page = place[2], alive()
    page.get_by_role("button", name="Layer 1, head 2", exact=True).click()
    box = page.get_by_label("silence layer 1, head 2")
    frame = act(page, box.check)
    assert frame["silent"] == [1]
    check(frame, model, spec, silent=[1])
    n = len(frame["text"])
    _, probs = expected(model, spec, frame["text"], silent=[1])
    targets = [spec["chars"].index(c) for c in frame["text"][1:]]
    bits = -np.log2(probs[np.arange(n - 1), targets]).mean()
    assert f"{bits:.2f} bits a character; as trained" in page.inner_text(
        ".gl-attention"
    )
    assert page.get_by_role("button", name="Layer 1, head 2, silenced").count() == 1
    page.get_by_role("button", name="Layer 1, head 3", exact=True).click()
    assert not page.get_by_label("silence layer 1, head 3").is_checked()


def test_typing_and_picking(alive, place, model):
    spec, page = place[2], alive()
    field = page.get_by_label("text", exact=True)
    frame = act(page, lambda: field.fill("Noise noise"))
    assert frame["text"] == "noise noise" and len(tokens(page)) == 11
    check(frame, model, spec)
    assert tokens(page)[-1][3], "who types on looks from the end"
    frame = act(page, lambda: page.get_by_label("or pick").select_option(index=1))
    assert frame["text"] == spec["texts"][1] == field.input_value()
    check(frame, model, spec)


@pytest.mark.parametrize(
    "typed, words",
    [
        ("noise 7", "“7” is not among the 36 characters"),
        ("ça", "“ç” is not"),
        ("a" * 43, "43 characters; this model sees 40 at once: leave out 3"),
        ("", "at least two characters"),
    ],
)
def test_what_the_model_cannot_read_is_said_and_nothing_is_lost(alive, typed, words):
    page = alive()
    field = page.get_by_label("text", exact=True)
    act(page, lambda: field.fill("a text, a text"))
    shown, picture = tokens(page), map_pixels(page)
    field.fill(typed)
    assert words in page.inner_text(".gl-status")
    assert field.input_value() == typed
    assert field.get_attribute("aria-invalid") == "true"
    assert tokens(page) == shown and map_pixels(page) == picture
    page.get_by_label("positions").uncheck()  # what is shown still answers
    for _ in range(100):
        if map_pixels(page) != picture:
            break
        page.wait_for_timeout(100)
    assert map_pixels(page) != picture and words in page.inner_text(".gl-status")
    act(page, lambda: field.fill("a text again"))
    assert page.locator(".gl-attention .gl-status").is_hidden()
    assert field.get_attribute("aria-invalid") == "false"


def test_the_keyboard_is_enough(alive, place, model):
    spec, page = place[2], alive()
    n = len(spec["texts"][0])
    weights = check(last(page), model, spec)
    page.locator(".gl-tokens button[tabindex='0']").focus()
    for key, token in (
        ("Home", 0),
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("End", n - 1),
        ("ArrowLeft", n - 2),
    ):
        page.keyboard.press(key)
        focused = page.evaluate(
            "[...document.querySelectorAll('.gl-tokens button')]"
            ".indexOf(document.activeElement)"
        )
        assert focused == token
        assert [k for k, t in enumerate(tokens(page)) if t[2] == 0] == [token]
    drawn = [t[1] for t in tokens(page)]
    np.testing.assert_allclose(drawn, weights[spec["start"], n - 2, :n], atol=1e-4)
    looks = re.compile(rf"at place {n - 1} looks at .* \(\d+ %\)")
    said = page.locator(".gl-attention > [aria-live]")
    said.filter(has_text=looks).wait_for(state="attached")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the first head
    assert (
        page.locator(".gl-layer button").first.get_attribute("aria-pressed") == "true"
    )
    label = page.locator(".gl-tokens button").nth(3).get_attribute("aria-label")
    assert re.fullmatch(r"(“.”|the space), place 4, (under )?\d+ %", label)


def test_the_map_can_be_pointed_at(alive, place):
    page = alive()
    frame = page.locator(".gl-map")
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()
    frame.hover(position={"x": 0.5 * box["width"], "y": 0.5 * box["height"]})
    row = next(k for k, t in enumerate(tokens(page)) if t[3])
    n = len(place[2]["texts"][0])
    assert abs(row - 0.5 * n) <= 2


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_living_explorer_is_accessible(alive, theme):
    page = alive(color_scheme=theme)
    act(page, page.get_by_label("causal mask").uncheck)
    act(page, page.get_by_label(re.compile("^silence")).check)
    page.get_by_label("text", exact=True).fill("é")
    problems = axe(page, f"the explorer, {theme}")
    assert not problems, "\n".join(problems)


def test_on_a_phone_a_tap_looks_and_nothing_scrolls_sideways(alive):
    page = alive(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    act(page, lambda: page.get_by_label("text", exact=True).fill("a" * 20 + "b" * 20))
    page.locator(".gl-tokens button").nth(5).tap()
    assert tokens(page)[5][3]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    sizes = page.locator(".gl-tokens button").evaluate_all(
        "(all) => all.map((b) => Math.min(b.offsetWidth, b.offsetHeight))"
    )
    assert min(sizes) >= 24, "a finger hits it"


def test_a_change_is_answered_at_once(alive, record_property):
    page = alive()
    times = []
    for name in ("positions", "causal mask"):
        times.append(act(page, page.get_by_label(name).uncheck)["ms"])
    record_property("ms_from_switch_to_map", max(times))
    print(f"\nfrom switch to map: {max(times):.0f} ms")
    assert max(times) < 500


def test_closing_an_explorer_leaves_nothing_behind(visit, place, served):
    page = visit(place[0])
    script = """async ([module, manifest]) => {
      const { default: widget } = await import(module);
      const { spec } = await (await fetch(manifest)).json();
      let [asked, closed] = [0, 0];
      const T = spec.block, H = spec.layers * spec.heads, V = [...spec.chars].length;
      const run = async () => {
        asked += 1;
        const full = (n, shape) => ({ data: new Float32Array(n).fill(0.1), shape });
        const weights = full(2 * H * T * T, [2, H, T, T]);
        return { weights, next: full(2 * T * V, [2, T, V]) };
      };
      const engine = { run, close: () => (closed += 1) };
      const el = document.createElement("div");
      document.body.append(el);
      const stop = widget.render({ model: { engine, get: () => spec }, el });
      await new Promise((done) => setTimeout(done, 100));
      el.querySelectorAll("input[type=checkbox]")[0].click();
      const before = asked;
      stop();
      document.documentElement.dataset.theme = "dark";
      await new Promise((done) => setTimeout(done, 700));
      return { before, after: asked, closed, left: el.childElementCount };
    }"""
    files = [
        f"{served}_static/widgets/attention_explorer.mjs",
        f"{served}live/{place[1]}.json",
    ]
    found = page.evaluate(script, files)
    assert found.pop("before") == found.pop("after") == 2
    assert found == {"closed": 1, "left": 0}


CELL = """
import torch
from genlib.attention import AttentionOnly, Explorable
from genlib.widgets import AttentionExplorer

torch.manual_seed(3)
model = Explorable(AttentionOnly(5, block_size=12, n_layer=1, n_head=2, n_embd=8))
"""
SHOW = "AttentionExplorer(model, ' abcd', ['ab cd ab', 'abcd'])"


def test_the_explorer_in_jupyterlab(notebook, jupyterlab):
    page = notebook(CELL + SHOW)
    run_cell(page)
    page.wait_for_function("window.looked.length > 0", timeout=60_000)
    names = {}
    exec(CELL, names)
    spec = {"chars": " abcd", "block": 12, "layers": 1, "heads": 2}
    with torch.no_grad():
        check(last(page), names["model"], spec)
        frame = act(page, page.get_by_label("causal mask").uncheck)
        check(frame, names["model"], spec, on=(0, 1, 1))
    field = page.get_by_label("text", exact=True)
    act(page, lambda: field.fill("dab"))
    assert len(tokens(page)) == 3

    # Without its kernel the explorer says so
    end_kernels(jupyterlab[0])
    page.get_by_label("positions").uncheck()
    page.get_by_text("un this cell again").first.wait_for(timeout=15_000)
