"""The training lab and the graphics card: offered, raced, used, lost.

The browser's software adapter stands for a card: slow, but it computes the same steps
through WebGPU. `AS_CARD` makes the page take it for one, and where a test needs the
card to win, it serves the page another judge.
"""

import pytest
import torch
from test_browser_lab import ASK, begin, open_lab, state, status, toy, wait

from genlib.live import Run
from tools.browser import open_browser

__all__ = ["open_lab", "toy"]  # fixtures

SOFTWARE = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
AS_CARD = """
const value = { get: () => false };
Object.defineProperty(GPUAdapterInfo.prototype, "isFallbackAdapter", value);
"""
BUTTON = "Try the graphics card"
SECONDS = 1000


@pytest.fixture(scope="module")
def browser(chromium):
    """A browser with WebGPU, in software."""
    with open_browser(*SOFTWARE) as browser:
        yield browser


def offer(page):
    """Reload the lab's page as one that has a card."""
    page.context.add_init_script(AS_CARD)
    page.reload()
    page.click(".gl-start")
    page.get_by_role("button", name=BUTTON).wait_for(timeout=30 * SECONDS)
    begin(page)


def judge(page, *changes):
    """Serve card.mjs with some of its text replaced."""
    address = page.url.replace("lab.html", "_static/page/card.mjs")
    text = page.request.get(address).text()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    page.context.route(
        "**/card.mjs", lambda r: r.fulfill(body=text, content_type="text/javascript")
    )


def press_and_read(page):
    page.evaluate("document.querySelector('.gl-status').textContent = ''")
    page.get_by_role("button", name=BUTTON).click()
    told = "document.querySelector('.gl-status').textContent"
    wait(page, f"/take|used/.test({told})", timeout=120 * SECONDS)
    return status(page)


def trained(page, program, steps):
    """Train some steps by the engine; the largest gap to PyTorch's state."""
    run = Run(program, 0)
    scalars = {name: program.feeds[name].value for name in program.scalars}
    for n in steps:
        what = {"op": "step", "n": n, "scalars": scalars, "view": False}
        page.evaluate(ASK, [what, 0])
        run.step(n)
    assert not torch.equal(run.state, program.initial(0))
    return (torch.from_numpy(state(page)[1]) - run.state).abs().max().item()


def test_an_adapter_in_software_is_not_offered(open_lab):
    page = open_lab()
    assert page.evaluate("async () => !!(await navigator.gpu.requestAdapter())")
    assert not page.get_by_role("button", name=BUTTON).count()


OPEN = "return ort.InferenceSession.create("
SESSION = "const session = await ort.InferenceSession.create("
END = "logSeverityLevel: 3 });"
COUNTED = """
  const { run } = session;
  let runs = 0;
  session.run = (feeds) => {
    runs += 1;
    console.log(`run ${runs} on the card`);
    if (runs > ROUNDS + LAST) throw new Error("the card is gone");
    return run.call(session, feeds);
  };
  return session;
"""


def count_runs(page, *changes, last=100):
    """A list that grows with each run on the card, which is lost `last` after the race;
    `changes` of card.mjs as for `judge`."""
    runs = []
    page.on("console", lambda m: "on the card" in m.text and runs.append(m.text))
    counted = END + COUNTED.replace("LAST", str(last))
    judge(page, (OPEN, SESSION), (END, counted), *changes)
    return runs


def test_a_card_that_is_slower_is_not_used(open_lab, toy):
    page = open_lab()
    runs = count_runs(page)
    offer(page)
    text = press_and_read(page)
    assert "on the graphics card and" in text
    assert text.endswith("So it stays without.")
    raced = len(runs)
    assert trained(page, toy[0].program, (1, 5)) < 1e-4
    assert len(runs) == raced > 0


@pytest.mark.parametrize("last", [100, 1], ids=["stays", "is lost"])
def test_a_card_that_is_faster_trains_the_same(open_lab, toy, last):
    page = open_lab(expected=["the card is gone"])
    card_wins = ("(here, card) => card < here", "() => true")
    runs = count_runs(page, card_wins, last=last)
    offer(page)
    assert press_and_read(page).endswith("The card computes from now on.")
    raced = len(runs)
    assert trained(page, toy[0].program, (1, 4, 2)) < 1e-4
    # one run more than it lives, in which it is lost, or one a request
    assert len(runs) - raced == min(3, last + 1)


def test_a_card_with_other_numbers_is_not_used(open_lab, toy):
    page = open_lab()
    judge(page, ("Math.abs(value - other[i])", "Math.abs(value - 1.01 * other[i])"))
    offer(page)
    assert "its numbers differ by 0.0" in press_and_read(page)
    assert trained(page, toy[0].program, (1, 5)) < 1e-4


def test_without_its_files_the_card_can_be_tried_again(open_lab):
    page = open_lab(expected=["Failed to load", "net::ERR_FAILED"])
    blocked = "**/*asyncify.wasm"
    page.context.route(blocked, lambda route: route.abort())
    offer(page)
    assert "asyncify.wasm could not be loaded" in press_and_read(page)
    page.context.unroute(blocked)
    assert "on the graphics card and" in press_and_read(page)
