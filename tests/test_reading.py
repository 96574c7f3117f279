"""What axe does not see: the keyboard, what a screen reader is told, forced colours.

Each check is also shown a fault.
"""

import pytest
from test_browser import start_all

LIVING = "notebooks/05_gan.html"
# What is wrong with the element that has the focus; null when it left the page, or
# when it is back at the first stop
FOCUSED = """() => {
  const element = document.activeElement;
  if (!element || element === document.body) return null;
  if (window.last && window.backwards && element.matches(".skip")) return null;
  const style = getComputedStyle(element);
  const box = element.getBoundingClientRect();
  const header = document.querySelector("header.top");
  const top = header.contains(element) ? 0 : header.getBoundingClientRect().bottom;
  const wrong = [];
  if (style.outlineStyle === "none" || parseFloat(style.outlineWidth) < 2)
    wrong.push("no outline");
  const inside = box.width && box.bottom > 1 && box.top < innerHeight - 1;
  if (!inside) wrong.push("not in view");
  else if (box.bottom <= top + 1) wrong.push("under the header");
  if (window.last && !(window.last.compareDocumentPosition(element) &
      (window.backwards ? 2 : 4))) wrong.push("out of order");
  window.last = element;
  return { wrong, what: element.outerHTML.slice(0, 80) };
}"""


def walk(page, key, most=400):
    """Press Tab until the focus leaves the page: (number of stops, what is wrong)."""
    page.evaluate(
        f"window.last = null; window.backwards = {str('Shift' in key).lower()}"
    )
    wrong = []
    for stops in range(most):
        page.keyboard.press(key)
        found = page.evaluate(FOCUSED)
        if found is None:
            return stops, wrong
        wrong += [f"{fault}: {found['what']}" for fault in found["wrong"]]
    pytest.fail("the focus never leaves the page")


@pytest.fixture
def living(visit):
    page = visit(LIVING, viewport={"width": 1280, "height": 800})
    start_all(page)
    page.get_by_role("button", name="Pause").first.click()
    page.focus(".skip")  # the first stop
    return page


def test_the_keyboard_reaches_everything_in_order_and_is_seen(living):
    stops, wrong = walk(living, "Tab")
    assert not wrong
    assert 1 + stops >= living.evaluate(REACHABLE) > 100
    back, wrong = walk(living, "Shift+Tab")
    assert not wrong and abs(back - stops) <= 1


REACHABLE = """() => {
  const controls = "a[href], button, input, select, summary";
  return [...document.querySelectorAll(controls)].filter((element) =>
    element.checkVisibility({ visibilityProperty: true }) &&
    !element.disabled && element.tabIndex >= 0).length;
}"""
FAULTS = {
    "no outline": ":focus-visible { outline: none !important }",
    "not in view": "article a { position: fixed; left: -900px; top: -900px }",
    "out of order": "article a { color: red }",
    "under the header": "html { scroll-padding-top: 0 !important } header.top "
    "{ position: fixed !important; top: 0; left: 0; right: 0; height: 500px }",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_keyboard_is_seen(visit, fault):
    page = visit("book/gans.html", viewport={"width": 1280, "height": 600})
    page.add_style_tag(content=FAULTS[fault])
    if fault == "out of order":
        page.evaluate("document.querySelector('article a').tabIndex = 5")
    wrong = walk(page, "Tab")[1] + walk(page, "Shift+Tab")[1]
    assert any(fault in what for what in wrong), wrong


NAMED = {"button", "slider", "checkbox", "combobox", "textbox", "link", "spinbutton"}
NAMED |= {"searchbox", "image", "img", "application", "MathMLMath"}


def tree(page):
    """What the browser tells a screen reader: [(role, name or text), ...]."""
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    return [
        (node["role"]["value"], node.get("name", {}).get("value", "").strip())
        for node in nodes
        if not node.get("ignored")
    ]


def test_a_screen_reader_gets_names_formulas_and_news(living):
    told = tree(living)
    formulas = living.locator("article .math").count()
    assert [role for role, _ in told].count("MathMLMath") == formulas > 100
    unnamed = NAMED - {"MathMLMath"}
    assert not [role for role, name in told if role in unnamed and not name]
    sliders = living.locator("input[type=range]")
    assert sliders.count() > 2
    for widget in living.locator("[data-widget]").all():
        assert widget.locator("[aria-live], [role=status]").count()
        for canvas in widget.locator("canvas").all():
            hidden = canvas.evaluate("c => Boolean(c.closest('[aria-hidden=true]'))")
            inside = canvas.evaluate("c => Boolean(c.closest('[role], button'))")
            assert hidden or inside or canvas.get_attribute("aria-label")
    living.evaluate(
        "document.querySelectorAll('mjx-assistive-mml').forEach(e => e.remove())"
    )
    assert "MathMLMath" not in [role for role, _ in tree(living)], "the count is real"


def test_forced_colours_keep_what_carries_a_meaning(visit):
    page = visit(LIVING, forced_colors="active", color_scheme="dark")
    start_all(page)
    colour = "e => getComputedStyle(e).backgroundColor"
    for kind in (".gl-sign-points", "span.gl-key"):
        signs = page.locator(f"[data-widget] {kind}")
        shown = {sign.evaluate(colour) for sign in signs.all()}
        assert len(shown) >= 2, f"{kind}: {shown}"
    border = "e => getComputedStyle(e).borderLeftColor"
    here = page.locator("nav.contents a[aria-current]").evaluate(border)
    there = page.locator("nav.contents a:not([aria-current])").first.evaluate(border)
    assert here != there


def test_enlarged_four_times_the_header_leaves_room(visit):
    page = visit("book/using.html", viewport={"width": 320, "height": 256})
    page.evaluate("scrollTo(0, 700)")
    box = page.locator("header.top").bounding_box()
    assert box["y"] + box["height"] <= 0
    assert box["height"] < 80, "one row"
