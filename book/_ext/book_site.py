"""Sphinx extension: the frame of the book's pages.

The theme finds the pages, their order and their buttons; how a page looks is ours:
`book/_templates/layout.html`, `site.css`, `site.mjs`. The theme's styles, scripts
and icon fonts (2 MB on every page) are left out of pages and site.
"""

import html
import re
import shutil
import sys
from pathlib import Path

from docutils import nodes
from sphinx.environment.adapters.toctree import TocTree

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the builder starts elsewhere
from tools.repository import COLAB, links  # noqa: E402

# What a page may load, by the start of its path under _static; everything else that
# the theme or an extension registers is dropped.
WANTED = ("site.", "page/", "widgets/")
# What the theme copies into the site and no page uses.
UNUSED = (
    "design-tabs.js",
    "images",
    "locales",
    "sbt-webpack-macros.html",
    "scripts",
    "sphinx-design.min.css",
    "styles",
    "vendor/fontawesome",
    "webpack-macros.html",
)
# What every page follows from.
FRAME = ("book/_ext", "book/_static", "book/_templates", "genlib/widgets/static")
# Names that hide the words on a button, and roles that have gone out of use.
MISLEADING = re.compile(
    ' aria-label="Toggle hidden content"| role="doc-biblioentry"'
    '|(?<=<div) role="list"(?= class="citation-list">)'
)


def wanted(asset):
    """Whether a page uses this script or style: ours. Maths needs none."""
    name = str(asset.filename or "").rpartition("_static/")[2]
    return name.startswith(WANTED)


def add_context(app, pagename, templatename, context, doctree):
    """Give the templates the parts of the book, the page's outline, a description."""
    context["script_files"] = [s for s in context["script_files"] if wanted(s)]
    context["css_files"] = [s for s in context["css_files"] if wanted(s)]
    # the layout has its own
    viewport = re.compile('<meta name="viewport"[^>]*>')
    context["metatags"] = viewport.sub("", context.get("metatags", "")).strip()
    context["body"] = MISLEADING.sub("", context.get("body", ""))
    context["repository"] = url = app.config.html_context["repository"]
    notebook = pagename.startswith("notebooks/")
    context["places"] = links(url, f"{pagename}.ipynb") if notebook else []
    context["parts"] = parts(app)
    context["outline"] = outline(app, pagename) if doctree else ""
    if doctree and 'name="description"' not in context["metatags"]:
        text = html.escape(first_sentences(doctree))
        context["metatags"] += f'<meta content="{text}" name="description" />'


def keep_repository(app, config):
    """Take the address away from the theme, which fails on hosts unknown to it."""
    url = config.html_theme_options.pop("repository_url", "")
    config.html_context["repository"] = url


def note_changes(app, env, docnames):
    env.book_changed = bool(docnames)


def write_all(app, env):
    """Write every page after any change.

    A new source renumbers the anchors of others, and Sphinx alone overlooks that a
    style or a template is newer than the site.
    """
    site = Path(app.outdir) / "searchindex.js"
    built = site.stat().st_mtime if site.exists() else 0
    files = [f for name in FRAME for f in (ROOT / name).rglob("*")]
    newer = any(f.stat().st_mtime > built for f in files if f.is_file())
    return sorted(env.all_docs) if env.book_changed or newer else []


def remove_colab_link(app, doctree):
    """The notebook's own link to Colab is for readers elsewhere; the page has one."""
    for link in list(doctree.findall(nodes.reference)):
        if link.get("refuri", "").startswith(COLAB) and len(link.parent) == 1:
            link.parent.parent.remove(link.parent)


def parts(app):
    """The table of contents: (caption, [(page, title), ...]) for each part."""
    site_map, titles = app.config.external_site_map, app.env.titles
    return [
        (tree.caption, [(str(p), titles[str(p)].astext()) for p in tree.items])
        for tree in site_map.root.subtrees
    ]


def outline(app, pagename):
    """The headings below a page's title, as a nested HTML list, or ""."""
    toc = TocTree(app.env).get_toc_for(pagename, app.builder)
    if not toc.children or len(toc[0].children) < 2:
        return ""
    return app.builder.render_partial(toc[0][1])["fragment"]


def first_sentences(doctree, length=160):
    """The start of the page's first paragraph, cut between words."""
    for paragraph in doctree.findall(nodes.paragraph):
        text = re.sub(r"\s+", " ", paragraph.astext()).strip()
        if len(text) > 40:
            cut = text[:length].rpartition(" ")[0]
            return text if len(text) <= length else f"{cut.rstrip(',;:')} …"
    return ""


def remove_unused(app, error):
    if error or app.builder.format != "html":
        return
    for name in UNUSED:
        path = Path(app.outdir) / "_static" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def setup(app):
    # Jupyter Book always sets this one, which belongs to an extension left out here.
    app.add_config_value("comments_config", {}, "html")
    app.add_css_file("site.css")
    app.add_js_file("site.mjs", type="module")
    app.connect("config-inited", keep_repository, priority=100)
    app.connect("env-before-read-docs", note_changes)
    app.connect("env-updated", write_all)
    app.connect("doctree-read", remove_colab_link)
    app.connect("html-page-context", add_context, priority=900)
    app.connect("build-finished", remove_unused)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
