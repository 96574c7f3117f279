"""The built site, page by page: whole, self-contained, and true to its sources.

Each check is a function of the site's pages that returns what is wrong. At the end each
is given one planted fault that it has to see.
"""

import copy
import functools
import gzip
import json
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup

from tools.notebooks import repository_url
from tools.repository import links

ROOT = Path(__file__).parents[1]
FIRST_VIEW = 200_000  # bytes of a page, compressed, with its scripts and first font

DRAWN = re.compile("(?s)(<mjx-math[^>]*>).*?(?=</mjx-math>)")  # hundreds of tags each


def contents():
    """The pages that _toc.yml lists, as names without ending, in order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = [c["file"] for part in toc["parts"] for c in part["chapters"]]
    return [toc["root"], *listed]


CHAPTERS = [name for name in contents() if name.startswith("notebooks/")]


class Site:
    """The parsed pages of a built site: {name: soup}, and its folder."""

    def __init__(self, folder):
        self.folder = folder
        files = [*folder.glob("book/*.html"), *folder.glob("notebooks/*.html")]
        self.pages = {
            path.relative_to(folder).with_suffix("").as_posix(): BeautifulSoup(
                DRAWN.sub(r"\1", path.read_text(encoding="utf-8")), "html.parser"
            )
            for path in [*files, folder / "search.html"]
        }

    def every(self, selector):
        """(page, element) of each element of the site that the selector finds."""
        for page, soup in self.pages.items():
            for element in soup.select(selector):
                yield page, element

    def where(self, page, address):
        """(file, fragment) that an address on a page means; None if it leaves."""
        parts = urlsplit(address)
        if parts.scheme or parts.netloc:
            return None
        here = self.folder / f"{page}.html"
        path = (here.parent / unquote(parts.path)).resolve() if parts.path else here
        return path, unquote(parts.fragment)


@pytest.fixture(scope="module")
def book(site):
    return Site(site)


def notebook(name):
    return json.loads((ROOT / f"{name}.ipynb").read_text(encoding="utf-8"))


def source(name):
    """The Markdown of a page, code apart."""
    path = ROOT / f"{name}.md"
    if path.exists():
        return re.sub(r"(?ms)^```.*?^```", "", path.read_text(encoding="utf-8"))
    cells = [c for c in notebook(name)["cells"] if c["cell_type"] == "markdown"]
    return "\n\n".join("".join(c["source"]) for c in cells)


# --- checks: Site -> list of what is wrong --------------------------------------------


def pages_are_those_of_the_contents(book):
    built, listed = set(book.pages) - {"search"}, set(contents())
    wrong = [f"{name} is not built" for name in listed - built]
    wrong += [f"{name} is built and not in _toc.yml" for name in built - listed]
    for page, soup in book.pages.items():
        menu = {
            book.where(page, a["href"])[0].relative_to(book.folder.resolve()).as_posix()
            for a in soup.select("nav.contents a")
        }
        missing = {f"{name}.html" for name in listed} - menu
        wrong += [f"{page}: its menu lacks {name}" for name in missing]
    return wrong


def heads_are_complete(book):
    wrong, titles = [], {}
    for page, soup in book.pages.items():
        if len(soup.find_all("h1")) != 1:
            wrong.append(f"{page}: {len(soup.find_all('h1'))} h1")
        title = soup.title.get_text(strip=True) if soup.title else ""
        if "Exploring Generative Models" not in title:
            wrong.append(f"{page}: title {title!r}")
        if titles.setdefault(title, page) != page:
            wrong.append(f"{page}: the title of {titles[title]}")
        described = soup.select('meta[name="description"]')
        texts = [tag["content"] for tag in described]
        if len(texts) != 1 or not 25 <= len(texts[0]) <= 200:
            wrong.append(f"{page}: description {texts}")
        if soup.html.get("lang") != "en-GB" or not soup.select_one("main#main-content"):
            wrong.append(f"{page}: language or main region")
    for page in CHAPTERS:  # what other pages refer to: {ref}`vae`
        stem = page.partition("_")[2]
        if not book.pages[page].find(id=stem):
            wrong.append(f"{page}: no label ({stem})= above its title")
    return wrong


LOADS = {
    "script": ["src"],
    "link": ["href"],
    "img": ["src", "srcset"],
    "source": ["src", "srcset"],
    "iframe": ["src"],
    "video": ["src", "poster"],
    "audio": ["src"],
    "object": ["data"],
    "form": ["action"],
    "use": ["href", "xlink:href"],
}


def nothing_comes_from_elsewhere(book):
    wrong = []
    for tag, attributes in LOADS.items():
        for page, element in book.every(tag):
            for attribute in attributes:
                address = element.get(attribute, "")
                if re.match(r"(\w+:)?//", address):
                    wrong.append(f"{page}: {tag} {attribute}={address}")
    for page, soup in book.pages.items():
        inline = [s.get_text() for s in soup.select("style, script")]
        inline += [e["style"] for e in soup.select("[style]")]
        wrong += [f"{page}: {t[:60]}" for t in inline if re.search(r"//\w+\.\w", t)]
    own = [book.folder / "_static" / name for name in ("site.css", "site.mjs")]
    own += [*book.folder.glob("_static/widgets/*"), *book.folder.glob("_static/page/*")]
    for path in own:
        code = re.sub(r"(?s)/\*.*?\*/", "", path.read_text(encoding="utf-8"))
        code = code.replace("http://www.w3.org/", "")  # names of formats
        if found := re.search(r"""(["'(])(https?:)?//.*""", code):
            wrong.append(f"{path.name}: {found[0]}")
    return wrong


def links_resolve(book):
    anchors = {}

    def ids(path):
        if path not in anchors:
            soup = next(
                (
                    s
                    for name, s in book.pages.items()
                    if (book.folder / f"{name}.html").resolve() == path.resolve()
                ),
                None,
            )
            anchors[path] = {e["id"] for e in soup.select("[id]")} if soup else set()
        return anchors[path]

    wrong = []
    for page, element in book.every("a[href], link[href], script[src], img[src]"):
        address = element.get("href") or element.get("src")
        target = book.where(page, address)
        if not target or address.startswith("data:"):
            continue
        path, fragment = target
        if not path.is_file():
            wrong.append(f"{page}: {address} is not there")
        elif fragment and fragment not in ids(path):
            wrong.append(f"{page}: {address} has no such anchor")
    return wrong


def notebooks_can_be_taken_away(book):
    wrong = []
    for page in CHAPTERS:
        found = book.pages[page].select("a.download[download]")
        if len(found) != 1:
            wrong.append(f"{page}: {len(found)} download links")
            continue
        path, _ = book.where(page, found[0]["href"])
        if not path.is_file() or json.loads(path.read_bytes()) != notebook(page):
            wrong.append(f"{page}: the download is not the notebook")
    return wrong


def equations_are_there(book):
    wrong = []
    for page in contents():
        text, soup = source(page), book.pages[page]
        expected = len(re.findall(r"(?s)\$\$.+?\$\$", text))
        expected += len(re.findall(r"(?m)^\s*\\begin\{(?:align|equation)\*?\}", text))
        found = len(soup.select("article div.math"))
        if found < expected:
            wrong.append(f"{page}: {found} of {expected} displayed equations")
        if re.search(r"\$[^$\n]+\$", text) and not soup.select("article span.math"):
            wrong.append(f"{page}: no inline formula")
        for element in soup.select("article :is(p, li, td)"):
            plain = copy.copy(element)
            for known in plain.select("code, pre, .math"):
                known.extract()
            if "$" in plain.get_text():
                wrong.append(f"{page}: a dollar sign in {plain.get_text()[:60]!r}")
        for formula in soup.select(".math"):  # drawn, and readable beside the drawing
            drawing = formula.select("mjx-container > mjx-math[aria-hidden=true]")
            spoken = formula.select("mjx-assistive-mml > math")
            if len(drawing) != 1 or len(spoken) != 1 or not spoken[0].get_text():
                wrong.append(f"{page}: not set: {str(formula)[:60]!r}")
    return wrong


def sources_are_given(book):
    wrong = []
    entries = book.pages["book/bibliography"].select("article div.citation")
    text = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    keys = re.findall(r"(?m)^@\w+\{(.+),$", text)
    used = {
        key.strip()
        for page in contents()
        for group in re.findall(r"\{cite[\w:]*\}`([^`]+)`", source(page))
        for key in group.split(",")
    }
    wrong += [f"{key} is cited and not in references.bib" for key in used - set(keys)]
    if len(entries) < len(used):
        wrong.append(f"{len(entries)} sources on the page, {len(used)} are cited")
    for entry in entries:
        if not entry.select('a[href^="http"]'):
            wrong.append(f"no address: {entry.get_text()[:60]!r}")
    for block in re.split(r"(?m)^(?=@)", text)[1:]:
        address = re.search(r"(?m)^  (doi|url) +\{?= *\{(.+)\}", block) or re.search(
            r"(?m)^  (doi|url)\s*= \{(.+)\}", block
        )
        good = {"doi": r"10\.\d{4,}/\S+", "url": r"https?://\S+\.\S+"}
        if not address or not re.fullmatch(good[address[1]], address[2]):
            wrong.append(f"no DOI or address: {block.splitlines()[0]}")
    return wrong


def terms_are_explained(book):
    wrong = []
    entries = book.pages["book/glossary"].select("dl.glossary dt")
    names = [re.sub("#$", "", e.get_text(strip=True)) for e in entries]
    if len(names) < 45:
        wrong.append(f"only {len(names)} entries")
    for entry in book.pages["book/glossary"].select("dl.glossary dd"):
        if len(entry.get_text(strip=True)) < 20:
            wrong.append(f"no explanation: {entry.get_text()!r}")
    for page in contents():
        for reference in book.pages[page].select("span.std-term"):
            if not reference.find_parent("a"):
                wrong.append(f"{page}: {reference.get_text()!r} is not in the glossary")
        used = len(re.findall(r"\{term\}`", source(page)))
        linked = len(book.pages[page].select("article a > span.std-term"))
        if linked < used:
            wrong.append(f"{page}: {linked} of {used} terms lead to the glossary")
    return wrong


def terms_lead_to_their_uses(book):
    """Each entry names where its word is used; a page that links a word is named."""
    wrong, named = [], {}
    for entry in book.pages["book/glossary"].select("dl.glossary dt"):
        uses = entry.find_next_sibling("dd").select(".uses a[href]")
        places = {book.where("book/glossary", a["href"])[0] for a in uses}
        named[entry["id"]] = places
        if not places:
            wrong.append(f"book/glossary: {entry['id']} is used nowhere")
    for page in contents():
        here = (book.folder / f"{page}.html").resolve()
        for link in book.pages[page].select("article a:has(> span.std-term)"):
            term = link["href"].partition("#")[2]
            if page != "book/glossary" and here not in named.get(term, ()):
                wrong.append(f"book/glossary: {term} does not lead to {page}")
    return wrong


def pages_say_what_they_need_and_what_comes_next(book):
    wrong, listed = [], contents()
    for n, page in enumerate(listed):
        for rel, other in (("prev", n - 1), ("next", n + 1)):
            found = [
                book.where(page, a["href"])[0]
                for a in book.pages[page].select(f"nav.turn a[rel={rel}]")
            ]
            there = 0 <= other < len(listed)
            want = [book.folder.resolve() / f"{listed[other]}.html"] if there else []
            if found != want:
                wrong.append(f"{page}: {rel} leads to {found}")
    for page in CHAPTERS:
        start = book.pages[page].select_one("article section")
        first = start.select("section")[0]
        opening = [e for e in start.select("em") if first not in e.parents]
        if "Before:" not in [e.get_text() for e in opening]:
            wrong.append(f"{page}: does not say what it needs, after *Before:*")
        if not any(b.get_text() == "Next." for b in start.select("strong")):
            wrong.append(f"{page}: does not say what comes next, after **Next.**")
    return wrong


def pictures_have_words(book):
    wrong = []
    for page, image in book.every("img"):
        alt = image.get("alt", "").strip()
        name = Path(image["src"]).name if len(image["src"]) < 500 else ""
        file = re.search(r"\.(png|svg|jpe?g|gif)$|_images/", alt)
        if len(alt) < 20 or file or alt == name:
            wrong.append(f"{page}: {name or 'image'} has alt {alt!r}")
    for page, drawing in book.every('article svg:not([aria-hidden="true"])'):
        named = drawing.get("aria-labelledby", "").split()
        texts = [book.pages[page].find(id=i) for i in named]
        if not (texts and all(t and t.get_text() for t in texts)):
            wrong.append(f"{page}: a drawing without title and description")
    return wrong


def pictures_have_a_size_to_read(book):
    from PIL import Image

    wrong = []
    for page, image in book.every('article img:not([src^="data:"])'):
        path, _ = book.where(page, image["src"])
        if path.suffix == ".svg":
            continue
        (width, height), size = Image.open(path).size, path.stat().st_size
        if not (150 <= width <= 1600 and height <= 2000 and size <= 200_000):
            wrong.append(f"{page}: {path.name} is {width} x {height}, {size} bytes")
    return wrong


def buttons_do_something(book):
    wrong = []
    modules = [*book.folder.glob("_static/**/*.mjs")]
    code = "\n".join(m.read_text("utf-8") for m in modules if "vendor" not in m.parts)
    for page, soup in book.pages.items():
        for link in soup.select("a"):
            address = link.get("href", "")
            if not re.match(r"[\w./#]", address) or address in ("#", "None"):
                wrong.append(f"{page}: a link to {address!r}")
            elif address.startswith("javascript:"):
                wrong.append(f"{page}: {address}")
        for button in soup.find_all("button"):
            names = [n for n in button.get("class", []) if n != "script"]
            if not any(f"button.{name}" in code for name in names):
                wrong.append(f"{page}: nothing answers the button {names}")
        shown = [(a.get_text(), a["href"]) for a in soup.select("a.launch")]
        url = repository_url()
        places = links(url, f"{page}.ipynb") if page in CHAPTERS else []
        if shown != [(f"Open in {place}", to) for place, to in places]:
            wrong.append(f"{page}: launch buttons {shown}")
    return wrong


def outputs_are_shown(book):
    wrong = []
    for page in CHAPTERS:
        soup = book.pages[page]
        images = widgets = texts = 0
        for cell in notebook(page)["cells"]:
            tags = cell["metadata"].get("tags", [])
            if cell["cell_type"] != "code" or {"remove-output", "remove-cell"} & {
                *tags
            }:
                continue
            for output in cell["outputs"]:
                data = output.get("data", {})
                html = "".join(data.get("text/html", ""))
                widgets += html.count("data-widget=")
                images += "image/png" in data and not html
                texts += output["output_type"] == "stream"
            drawn = any("image/png" in o.get("data", {}) for o in cell["outputs"])
            if cell["metadata"].get("mystnb", {}).get("image") and not drawn:
                wrong.append(f"{page}: no picture stored: {cell['source'][-1]!r}")
        if images + texts == 0:
            wrong.append(f"{page}: the notebook has no outputs")
        live = soup.select(".cell_output [data-widget]")
        shown = soup.select(".cell_output img:not(.gl-poster img)")
        streams = soup.select(".cell_output .output.stream")
        for what, have, want in (
            ("pictures", shown, images),
            ("widgets", live, widgets),
            ("printed outputs", streams, texts),
        ):
            if len(have) != want:
                wrong.append(f"{page}: {len(have)} of {want} {what}")
        for element in live:
            file = book.folder / "live" / f"{element['data-live']}.json"
            if not file.is_file():
                wrong.append(f"{page}: live/{element['data-live']}.json is not there")
    return wrong


@functools.cache
def compressed(path):
    return len(gzip.compress(path.read_bytes(), 6))


def first_views_are_light(book):
    wrong = []
    for page, soup in book.pages.items():
        scripts = [] if page == "search" else soup.select("script[src]")
        late = [s for s in scripts if s.get("type") == "module" or s.has_attr("defer")]
        fonts = soup.select('link[rel="preload"]')
        paths = [book.where(page, s["src"])[0] for s in scripts]
        paths += [book.where(page, e["href"])[0] for e in fonts]
        size = compressed(book.folder / f"{page}.html")
        size += sum(p.stat().st_size for p in paths)
        if size > FIRST_VIEW:
            wrong.append(f"{page}: {size} bytes, with {[p.name for p in paths]}")
        if soup.select('link[rel="stylesheet"]') or len(late) < len(scripts):
            wrong.append(f"{page}: a style sheet or script that the page waits for")
        for n, image in enumerate(soup.select("img")):
            if not (image.get("width", "").isdigit() and image["height"].isdigit()):
                wrong.append(f"{page}: a picture without its size")
            if (n == 0) != image["src"].startswith("data:"):
                wrong.append(f"{page}: picture {n} should {'not ' * bool(n)}be inside")
            if n and image.get("loading") != "lazy":
                wrong.append(f"{page}: picture {n} is fetched at once")
    return wrong


CHECKS = (
    pages_are_those_of_the_contents,
    heads_are_complete,
    nothing_comes_from_elsewhere,
    links_resolve,
    notebooks_can_be_taken_away,
    equations_are_there,
    sources_are_given,
    terms_are_explained,
    terms_lead_to_their_uses,
    pages_say_what_they_need_and_what_comes_next,
    pictures_have_words,
    pictures_have_a_size_to_read,
    buttons_do_something,
    outputs_are_shown,
    first_views_are_light,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_site(book, check):
    assert not check(book)


# --- each check sees a fault ----------------------------------------------------------

CHAPTER = "notebooks/03_vae"
FAULTS = [  # (check, page, what to replace there, by what)
    (
        pages_are_those_of_the_contents,
        CHAPTER,
        'href="../book/glossary.html"',
        'href="../book/notation.html"',
    ),
    (heads_are_complete, CHAPTER, "<h1>", "<h1>One more</h1><h1>"),
    (heads_are_complete, CHAPTER, 'name="description"', 'name="descr"'),
    (heads_are_complete, CHAPTER, 'id="vae"', 'id="other"'),
    (
        nothing_comes_from_elsewhere,
        CHAPTER,
        "</article>",
        '<img src="https://a.example/b.png"></article>',
    ),
    (
        nothing_comes_from_elsewhere,
        CHAPTER,
        "</head>",
        "<style>@import '//a.example/b.css'</style></head>",
    ),
    (links_resolve, CHAPTER, 'href="../book/glossary.html#', 'href="#no-'),
    (links_resolve, CHAPTER, 'href="../book/notation.html', 'href="../book/none.html'),
    (notebooks_can_be_taken_away, CHAPTER, 'class="download"', 'class="other"'),
    (equations_are_there, CHAPTER, 'class="math notranslate nohighlight"', ""),
    (equations_are_there, CHAPTER, "<mjx-assistive-mml", "<mjx-other"),
    (equations_are_there, CHAPTER, ' aria-hidden="true"', ""),
    (equations_are_there, CHAPTER, "</h1>", "</h1><p>and $x$ too</p>"),
    (sources_are_given, "book/bibliography", 'href="http', 'href="#http'),
    (terms_are_explained, CHAPTER, "</h1>", '</h1><span class="std-term">q</span>'),
    (terms_lead_to_their_uses, "book/glossary", 'class="uses"', 'class="used"'),
    (
        terms_lead_to_their_uses,
        "book/glossary",
        '<a class="reference internal" href="../notebooks/03_vae.html',
        '<a class="reference internal" href="../notebooks/05_gan.html',
    ),
    (pages_say_what_they_need_and_what_comes_next, CHAPTER, "Before:", "After:"),
    (pages_say_what_they_need_and_what_comes_next, CHAPTER, "Next.", "Later."),
    (
        pages_say_what_they_need_and_what_comes_next,
        CHAPTER,
        'href="../book/gans.html" rel="next"',
        'href="../book/vaes.html" rel="next"',
    ),
    (pictures_have_words, CHAPTER, ' alt="', ' alt="../_images/figure.png" title="'),
    (pictures_have_words, "book/index", 'id="families-desc"', ""),
    (buttons_do_something, CHAPTER, 'class="print"', 'class="dead"'),
    (buttons_do_something, CHAPTER, "</article>", '<a href="#">x</a></article>'),
    (
        buttons_do_something,
        CHAPTER,
        "</article>",
        '<a class="launch" href="https://x.example/">Open in X</a></article>',
    ),
    (outputs_are_shown, CHAPTER, "data-widget=", "data-other="),
    (outputs_are_shown, CHAPTER, 'class="output stream', 'class="output'),
    (
        first_views_are_light,
        CHAPTER,
        "</head>",
        '<script src="../_static/vendor/ort/ort-wasm-simd-threaded.wasm" defer>'
        "</script></head>",
    ),
    (
        first_views_are_light,
        CHAPTER,
        "</head>",
        '<link rel="stylesheet" href="../_static/site.css"></head>',
    ),
    (first_views_are_light, CHAPTER, ' loading="lazy"', ""),
    (first_views_are_light, CHAPTER, ' width="', ' data-width="'),
]


@pytest.mark.parametrize(
    "check, page, old, new", FAULTS, ids=lambda v: getattr(v, "__name__", None)
)
def test_faults_are_seen(book, check, page, old, new):
    text = str(book.pages[page])
    assert old in text
    faulty = copy.copy(book)
    soup = BeautifulSoup(text.replace(old, new), "html.parser")
    faulty.pages = book.pages | {page: soup}
    wrong = check(faulty)
    assert any(page in w or "no address" in w for w in wrong), wrong


def test_a_page_that_is_not_built_is_missed(book):
    faulty = copy.copy(book)
    faulty.pages = {name: s for name, s in book.pages.items() if name != CHAPTER}
    assert f"{CHAPTER} is not built" in pages_are_those_of_the_contents(faulty)


def test_a_picture_too_small_or_too_heavy_is_seen(book, tmp_path):
    from PIL import Image

    Image.new("L", (40, 40)).save(tmp_path / "a.png")
    faulty = Site.__new__(Site)
    faulty.folder = tmp_path
    soup = BeautifulSoup('<article><img src="a.png"></article>', "html.parser")
    faulty.pages = {"page": soup}
    assert "40 x 40" in pictures_have_a_size_to_read(faulty)[0]


# --- the frame in a browser -----------------------------------------------------------

PHONE = {"width": 390, "height": 844}


def test_colours_follow_the_switch_and_stay(visit):
    page = visit("book/notation.html", color_scheme="dark")
    theme = "document.documentElement.dataset.theme"
    assert page.evaluate(theme) == "dark"  # the system's
    seen = []
    for _ in range(3):
        page.click("button.mode")
        seen.append((page.inner_text(".mode-name"), page.evaluate(theme)))
    assert seen == [("light", "light"), ("dark", "dark"), ("system", "dark")]
    page.click("button.mode")
    page.reload()
    assert page.evaluate(theme) == "light"
    assert page.get_attribute("html", "data-mode") == "light"


def test_the_contents_open_over_a_scrolled_page_on_a_phone(visit):
    page = visit(f"{CHAPTER}.html", viewport=PHONE)
    page.evaluate("scrollTo(0, 4000)")
    link = page.locator("nav.contents a", has_text="Glossary")
    assert not link.is_visible()
    page.click("button.menu")
    assert page.get_attribute("button.menu", "aria-expanded") == "true"
    link.scroll_into_view_if_needed()  # within the menu, which is longer than a screen
    box = link.bounding_box()
    assert 0 < box["y"] < PHONE["height"] - box["height"]
    page.keyboard.press("Escape")
    assert not link.is_visible()
    assert page.evaluate("document.activeElement.className").startswith("menu")


def test_code_is_copied_as_it_stands(visit):
    page = visit(f"{CHAPTER}.html")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    block = page.locator(".cell_input .highlight", has_text="def reparameterize").first
    block.hover()
    block.locator("button.copy").click()
    page.wait_for_function("navigator.clipboard.readText().then(t => t.length > 0)")
    copied = page.evaluate("navigator.clipboard.readText()")
    cells = ["".join(c["source"]) for c in notebook(CHAPTER)["cells"]]
    assert copied in cells


def test_the_outline_follows_the_reader(visit):
    page = visit("book/notation.html")
    page.locator("section#units").scroll_into_view_if_needed()
    page.evaluate("document.getElementById('units').scrollIntoView()")
    page.wait_for_selector('nav.outline a[aria-current][href="#units"]')
    # A heading that stays in view and only passes the line where reading begins
    top = "document.querySelector('section#units > h2').getBoundingClientRect().top"
    page.evaluate(f"scrollBy(0, {top} - 300)")
    page.wait_for_selector('nav.outline a[aria-current]:not([href="#units"])')
    page.evaluate("scrollBy(0, 200)")
    page.wait_for_selector('nav.outline a[aria-current][href="#units"]')


QUERIES = {  # what a reader types -> a page and a place that must be found
    "posterior collapse": ["book/glossary.html#", "notebooks/03_vae.html#break-it"],
    "reparameterisation trick": ["book/glossary.html#", "notebooks/03_vae.html"],
    "reparameterize": ["notebooks/03_vae.html#code-gaussian_kl-reparameterize"],
    "Generator": [
        "notebooks/05_gan.html#code-LeakyReLU-Generator",
        "book/glossary.html#",
    ],
    "CausalSelfAttention": ["notebooks/13_gpt.html#code-CausalSelfAttention"],
    "evidence lower bound": ["book/glossary.html#", "notebooks/03_vae.html"],
    "Jensen-Shannon divergence": ["book/glossary.html#", "notebooks/05_gan.html"],
    "Bayes' rule": ["notebooks/03_vae.html"],
    "value of the game": ["notebooks/05_gan.html"],
}


def test_the_search_finds_terms_functions_and_equations(visit):
    page = visit("search.html")
    missed = []
    for query, places in QUERIES.items():
        page.fill("form.search input", query)
        page.press("form.search input", "Enter")
        page.get_by_text("Search finished").wait_for()
        links = page.locator("#search-results li > a")
        found = [a.get_attribute("href").partition("?")[0] for a in links.all()]
        for place in places:
            if not any(address.startswith(place) for address in found):
                missed.append(f"{query!r} does not find {place}: {found}")
        assert page.input_value("form.search input") == query
    assert not missed
    page.fill("form.search input", "reparameterize")
    page.press("form.search input", "Enter")
    page.locator("#search-results a[href*='-reparameterize']").first.click()
    assert "def reparameterize" in page.inner_text(":target")


def test_a_search_for_what_is_not_there_says_so(visit):
    page = visit("search.html?q=xyzzyquux")
    page.get_by_text("did not match any documents").wait_for()
    assert page.locator("#search-results li").count() == 0


def test_what_is_too_wide_can_be_scrolled_by_the_keyboard(visit):
    page = visit("book/notation.html", viewport=PHONE)
    stuck = page.evaluate(
        """() => [...document.querySelectorAll("article *")].filter((box) =>
             /auto|scroll/.test(getComputedStyle(box).overflowX) &&
             box.scrollWidth > box.clientWidth + 1 && box.tabIndex < 0
           ).map((box) => box.className)"""
    )
    assert stuck == []
