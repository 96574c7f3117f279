"""Sphinx extension: formulas are set when the book is built, not in the browser.

MathJax runs here, under Node, on each page's formulas. A page holds what comes out: the
drawn formula, hidden from screen readers, and its MathML for them. So a page needs no
script for maths, nothing jumps when a formula is set, and a formula that is no TeX
stops the build. The fonts are cut down to the characters that the book shows.
"""

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from fontTools import subset
from sphinx.errors import ExtensionError
from sphinx.util import logging

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))  # the builder starts elsewhere
from tools.vendor import find_npm  # noqa: E402

# As Sphinx writes them: \(...\) in a span, \[...\] or an environment in a div.
FORMULA = re.compile(
    r'(?s)(<(?P<tag>span|div) class="[^"]*\bmath\b[^"]*"[^>]*>'
    r'(?:\s*<span class="eqno">.*?</span>)?)\s*(?P<tex>[^<]+?)\s*(?=</(?P=tag)>)'
)
MATHJAX = HERE.parents[1] / "node_modules" / "mathjax"
FONTS = "_static/vendor/mathjax"
CHARACTER = re.compile(r'content: "(\\[0-9A-F]+|.)')
logger = logging.getLogger(__name__)


class Typesetter:
    """MathJax under Node: `page(formulas)` sets those of a page."""

    def __init__(self):
        _, env = find_npm()
        node = shutil.which("node", path=env["PATH"])
        self.process = subprocess.Popen(
            [node, str(HERE / "maths.mjs")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def page(self, formulas):
        """Return ([{"html": ...} or {"error": ...}, ...], style) for a page."""
        try:
            self.process.stdin.write(json.dumps(formulas) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise ExtensionError("MathJax did not start; run `make book`, see above")
        answer = json.loads(answer)
        return answer["formulas"], answer["style"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def set_formulas(app, pagename, templatename, context, doctree):
    """Set every formula of a page and give the template the style they need."""
    fields = [(context, "body"), (context, "outline")]
    fields += [(context[k], "title") for k in ("prev", "next") if context.get(k)]
    found = [m for held, key in fields for m in FORMULA.finditer(held.get(key) or "")]
    if not found:
        return
    app.typesetter = getattr(app, "typesetter", None) or Typesetter()
    results, style = app.typesetter.page([parse(match) for match in found])
    for result in results:
        if "error" in result:
            logger.warning("not TeX: %s", result["error"], location=pagename)
    set_ones = iter(results)

    def put(match):
        return match[1] + next(set_ones).get("html", match["tex"])

    for held, key in fields:
        held[key] = FORMULA.sub(put, held.get(key) or "")
    context["page_styles"].append(style.replace("FONTS", context["pathto"](FONTS, 1)))


def parse(match):
    tex = html.unescape(match["tex"])
    return {
        "tex": re.sub(r"^\\[(\[]|\\[)\]]$", "", tex),
        "display": match["tag"] == "div",
    }


def finish(app, error):
    """End MathJax; give the site its fonts, if pages with formulas were written."""
    if getattr(app, "typesetter", None):
        app.typesetter.close()
        app.typesetter = None
        if not error:
            site = Path(app.outdir)
            pages = (path.read_text("utf-8") for path in site.rglob("*.html"))
            characters = {c for page in pages for c in CHARACTER.findall(page)}
            cut_fonts(characters, site / FONTS)  # pages of earlier builds included


def cut_fonts(characters, folder):
    """Write MathJax's fonts with these characters only, and its licence."""
    points = [int(c[1:], 16) if c[0] == "\\" and c[1:] else ord(c) for c in characters]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copyfile(MATHJAX / "LICENSE", folder / "LICENSE")
    options = subset.Options(flavor="woff", notdef_outline=True)
    for path in sorted(MATHJAX.glob("es5/output/chtml/fonts/woff-v2/*.woff")):
        font = subset.load_font(str(path), options)
        cutter = subset.Subsetter(options)
        cutter.populate(unicodes=points)
        cutter.subset(font)
        subset.save_font(font, str(folder / path.name), options)


def setup(app):
    app.connect("html-page-context", set_formulas, priority=950)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
