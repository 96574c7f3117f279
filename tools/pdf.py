"""Print the built book to PDF: `make pdf` writes each page, and the book in one file.

Headless Chromium prints the site as a reader would: live figures are their posters,
what is folded is open. In the book's one file links between pages stay links; in a
page's own file they are text, for the place of the other file is not known. What
would be cut off on the paper is named, and then the command fails.
"""

import argparse
import html
import sys
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import yaml  # noqa: E402
from bs4 import BeautifulSoup  # noqa: E402

from tools.browser import open_browser  # noqa: E402
from tools.serve import SITE, serving  # noqa: E402

ROOT = SITE.parents[1]
OUT = SITE.with_name("pdf")
TITLE = "Exploring Generative Models"
WIDTH = 657  # pixels between the margins of A4; site.css sets 18 mm each
# Every picture is there and everything folded is open before the paper is filled.
PREPARE = """async () => {
  document.documentElement.dataset.theme = "light";
  for (const folded of document.querySelectorAll("article details")) folded.open = true;
  const pictures = [...document.images];
  for (const picture of pictures) picture.loading = "eager";
  await Promise.all(pictures.map((picture) => picture.decode()));
  await document.fonts.ready;
}"""
# What would be cut: what reaches beyond the edge, boxes that scroll, what is folded.
CUT = """() => {
  const edge = document.querySelector("article").getBoundingClientRect().right + 2;
  const wrong = new Map();
  for (const element of document.querySelectorAll("article *")) {
    if (element.closest("mjx-assistive-mml, .hidden, svg *")) continue;
    const style = getComputedStyle(element);
    const scrolls = element.scrollWidth > element.clientWidth + 1 &&
      style.overflowX !== "visible" && style.display !== "inline" &&
      !element.closest("mjx-container");
    const box = element.getBoundingClientRect();
    if (scrolls || (box.width && box.right > edge)) {
      const outer = element.closest(".math, pre, table, figure, p, li, img") ?? element;
      const words = outer.textContent.trim().slice(0, 60).replace(/\\s+/g, " ");
      wrong.set(outer, `<${outer.localName} class="${outer.className}">: ${words}`);
    }
  }
  for (const folded of document.querySelectorAll("article details:not([open])"))
    wrong.set(folded, `folded: ${folded.textContent.trim().slice(0, 60)}`);
  return [...wrong.values()];
}"""
UNLINK = """() => {
  for (const link of document.querySelectorAll("article a[href]"))
    if (link.origin === location.origin && link.pathname !== location.pathname)
      link.removeAttribute("href");
}"""


def contents():
    """The book's pages in order: (caption of the part or None, name without ending)."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    pages = [(None, toc["root"])]
    for part in toc["parts"]:
        pages += [(part["caption"], c["file"]) for c in part["chapters"]]
    return pages


def anchor(page, fragment=""):
    """The id, in the one file, of a page or of a place on it."""
    return "--".join([page.replace("/", "-"), *([fragment] if fragment else [])])


def running(title, page=""):
    """The style that puts a title at the head of each sheet."""
    words = title.replace("\\", "").replace('"', "”")
    font = 'font: 9pt "Source Serif 4", serif'
    return f'@page {page} {{ @top-right {{ content: "{words}"; {font} }} }}'


def move_in(article, page, pages):
    """Make a page's article part of the one file: its ids, pictures and links."""
    for element in article.select("[id]"):
        element["id"] = anchor(page, element["id"])
    for element in article.select("[aria-labelledby]"):
        ids = element["aria-labelledby"].split()
        element["aria-labelledby"] = " ".join(anchor(page, i) for i in ids)
    for element in article.select("[src]:not([src^='data:'])"):
        element["src"] = urljoin(f"/{page}.html", element["src"])[1:]
    for link in article.select("a[href]"):
        target = urlsplit(urljoin(f"/{page}.html", link["href"]))
        name = unquote(target.path)[1:].removesuffix(".html")
        if not target.netloc and name in pages:
            link["href"] = "#" + anchor(name, unquote(target.fragment))
        elif not target.netloc:
            del link["href"]


def one_document(site=SITE):
    """All pages of the book as one HTML text, to be opened at the site's root."""
    listed = contents()
    names = {name for _, name in listed}
    styles, articles, menu, part = {}, [], [], None
    for number, (caption, name) in enumerate(listed):
        text = (site / f"{name}.html").read_text(encoding="utf-8")
        soup = BeautifulSoup(text, "html.parser")
        for style in soup.select("head style"):  # each only once, in order
            styles[style.string.replace('url("../', 'url("')] = None
        article = soup.article
        move_in(article, name, names)
        article["id"] = anchor(name)
        article["style"] = f"page: sheet{number}; break-before: page"
        article.select_one("h1 .headerlink").extract()
        title = " ".join(article.h1.get_text().split())
        styles[running(title, f"sheet{number}")] = None
        if caption and caption != part:
            menu.append(f'<p class="part">{html.escape(caption)}</p>')
        part = caption
        shown = title if title != TITLE else "About this book"
        menu.append(f'<p><a href="#{anchor(name)}">{html.escape(shown)}</a></p>')
        articles.append(str(article))
    return (
        '<!doctype html><html lang="en-GB" data-theme="light"><head>'
        f'<meta charset="utf-8"><title>{TITLE}</title>'
        f"<style>{''.join(styles)}</style></head><body><main>"
        f"<h1>{TITLE}</h1><nav>{''.join(menu)}</nav>{''.join(articles)}"
        "</main></body></html>"
    )


def write(page, path, title=None):
    """Print what the page shows; return what would be cut off."""
    page.evaluate(PREPARE)
    page.evaluate(UNLINK)
    if title:
        page.add_style_tag(content=running(title))
    page.emulate_media(media="print", color_scheme="light")
    wrong = page.evaluate(CUT)
    page.pdf(path=path, format="A4", print_background=True, outline=True, tagged=True)
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", help="such as notebooks/03_vae; else all")
    wanted = parser.parse_args().pages
    if not (SITE / "index.html").exists():
        sys.exit(f"{SITE} is not built; run `make book`")
    OUT.mkdir(exist_ok=True)
    wrong = []

    def tell(path, cut):
        wrong.extend(f"cut off in {path.name}: {what}" for what in cut)
        print(
            f"{path.relative_to(ROOT)}  {path.stat().st_size / 1e6:.1f} MB", flush=True
        )

    with serving() as address, open_browser() as browser:
        page = browser.new_page(viewport={"width": WIDTH, "height": 930})
        for name in wanted or [name for _, name in contents()]:
            page.goto(f"{address}{name}.html")
            path = OUT / f"{name.rpartition('/')[2]}.pdf"
            tell(path, write(page, path, page.title().partition(" – ")[0]))
        if not wanted:
            whole = one_document()
            sent = {"body": whole, "content_type": "text/html; charset=utf-8"}
            page.route("**/whole.html", lambda route: route.fulfill(**sent))
            page.goto(f"{address}whole.html")
            path = OUT / "exploring-generative-models.pdf"
            tell(path, write(page, path))
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
