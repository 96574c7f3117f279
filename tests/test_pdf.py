"""On paper: nothing is cut, posters stand for live figures, solutions are open."""

import re

import pytest
from bs4 import BeautifulSoup

from tools.pdf import CUT, PREPARE, TITLE, WIDTH, contents, one_document, write

PAPER = {"viewport": {"width": WIDTH, "height": 930}}
# What paper has no use for and yet shows; posters that it does not show
FOR_SCREENS = """() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const wrong = all("header.top, nav, button, .gl-note, .tools, footer")
    .filter((element) => element.checkVisibility());
  wrong.push(...all("[data-widget] img").filter((poster) => !poster.checkVisibility()));
  return wrong.map((element) => element.outerHTML.slice(0, 80));
}"""


@pytest.fixture
def printed(visit):
    """Open a page as it goes to the printer."""

    def open_page(name):
        page = visit(f"{name}.html", **PAPER)
        page.emulate_media(media="print")
        page.evaluate(PREPARE)
        return page

    return open_page


def test_nothing_is_cut_on_paper(printed):
    wrong = []
    for _, name in contents():
        page = printed(name)
        wrong += [f"{name}: {what}" for what in page.evaluate(CUT)]
        wrong += [f"{name}: {what}" for what in page.evaluate(FOR_SCREENS)]
        page.context.close()
    assert not wrong


FAULTS = {
    "a wide formula": "e => e.querySelector('mjx-math').style.paddingLeft = '700px'",
    "code in one line": "e => { const pre = e.querySelector('pre');"
    "pre.style.whiteSpace = 'pre'; pre.textContent = 'x = 1; '.repeat(40); }",
    "a box that scrolls": "e => { const p = e.querySelector('section > p');"
    "p.style.overflowX = 'auto'; p.innerHTML = 'a'.repeat(200); "
    "p.style.overflowWrap = 'normal'; p.style.wordBreak = 'keep-all' }",
    "a wide picture": "e => { const i = e.querySelector('img');"
    "i.style.maxWidth = 'none'; i.style.width = '900px' }",
    "a folded solution": "e => e.querySelector('details').open = false",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_cut_is_seen(printed, fault):
    page = printed("notebooks/03_vae")
    page.locator("article").evaluate(FAULTS[fault])
    assert len(page.evaluate(CUT)) == 1


def test_a_page_becomes_a_pdf_with_title_numbers_and_links(visit, served, tmp_path):
    page = visit("book/vaes.html", **PAPER)
    assert not write(page, tmp_path / "vaes.pdf", "Latent variables")
    data = (tmp_path / "vaes.pdf").read_bytes()
    assert data.startswith(b"%PDF-") and b"/StructTreeRoot" in data
    assert len(re.findall(rb"/Type /Page\b(?!s)", data)) >= 1
    assert b"/Outlines" in data
    assert served.encode() not in data, "an address of this machine"
    assert b"127.0.0.1" not in data


def test_the_book_in_one_file_is_whole_and_its_links_lead_on(site):
    soup = BeautifulSoup(one_document(site), "html.parser")
    assert soup.title.string == TITLE
    ids = [e["id"] for e in soup.select("[id]")]
    known = set(ids)
    assert len(ids) == len(known)
    lost = [
        a["href"] for a in soup.select("a[href^='#']") if a["href"][1:] not in known
    ]
    assert not lost
    for address in soup.select("a[href]"):
        assert re.match("#|https://|http://|mailto:", address["href"])
    for image in soup.select("img"):
        data = image["src"].startswith("data:")
        assert data or (site / image["src"]).is_file(), image["src"]
    for font in re.findall(
        r'url\("?([^")]+)', "".join(s.string for s in soup("style"))
    ):
        assert "mathjax" not in font or font.startswith("_static/"), font
    assert len(soup.select("article")) == len(contents())
