"""Sphinx extension: brings the widgets of a static page to life.

Pages that hold a widget's HTML form (`data-widget`) load a style sheet and one small
module, `page/mount.mjs`; other pages load nothing. The widgets' own modules and the
exported models are copied into the site as they are.
"""

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WIDGETS = ROOT / "genlib" / "widgets" / "static"
LIVE = ROOT / "book" / "live"


def add_mount(app, pagename, templatename, context, doctree):
    """Load the mount module on pages that hold a widget, and on no others."""
    if 'data-widget="' in context.get("body", ""):
        app.add_css_file("widgets/widgets.css")
        app.add_js_file("page/mount.mjs", type="module")


def copy_files(app, error):
    """Copy widget modules and exported models; weights stay in the repository."""
    if error or app.builder.format != "html":
        return
    out = Path(app.outdir)
    keep = shutil.ignore_patterns("*.safetensors", "*.part")
    for source, target in (
        (WIDGETS, out / "_static" / "widgets"),
        (LIVE, out / "live"),
    ):
        shutil.rmtree(target, ignore_errors=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=keep)


def setup(app):
    app.connect("html-page-context", add_mount)
    app.connect("build-finished", copy_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
