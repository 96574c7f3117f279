"""Sphinx extension: a page comes up with as few bytes and round trips as it can.

Its styles stand in the page itself, and so does its first picture. All other pictures
are files of known size that the browser fetches when the reader comes near.
"""

import base64
import hashlib
import io
import re
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
STYLES = {  # by their names in the site
    "site.css": ROOT / "book" / "_static" / "site.css",
    "widgets/widgets.css": ROOT / "genlib" / "widgets" / "static" / "widgets.css",
}
IMAGE = re.compile(r"<img\b[^>]*>")
PICTURE = re.compile(r'src="data:image/(png|jpeg);base64,([^"]+)"')


def begin(app, pagename, templatename, context, doctree):
    context["page_styles"] = []  # other extensions add theirs


def collect_styles(app, pagename, templatename, context, doctree):
    """Take the page's style sheets into the page."""
    root = context["pathto"]("_static/", 1)
    for sheet in context["css_files"]:
        name = str(sheet.filename).partition("_static/")[2]
        style = STYLES[name].read_text(encoding="utf-8")
        context["page_styles"].append(style.replace('url("', f'url("{root}'))
    context["css_files"] = []


def squeeze_styles(app, pagename, templatename, context, doctree):
    """Make them one text, without comments and blanks."""
    text = re.sub(r"(?s)/\*.*?\*/", "", "".join(context["page_styles"]))
    text = re.sub(r"\s+", " ", text)
    context["page_styles"] = re.sub(r" ?([{};,]) ?", r"\1", text)


def place_pictures(app, pagename, templatename, context, doctree):
    """Give each picture its size; keep the first in the page, the rest as files."""
    seen = []

    def place(match):
        seen.append(match)
        return placed(app, match[0], context["pathto"], first=len(seen) == 1)

    context["body"] = IMAGE.sub(place, context.get("body") or "")


def placed(app, tag, pathto, first):
    """An image element with its size; a drawing stays as it is."""
    inside = PICTURE.search(tag)
    named = re.search(r'src="[^"]*_images/([^"]+\.(?:png|jpe?g))"', tag)
    if inside:
        data, kind = base64.b64decode(inside[2]), inside[1]
    elif named:
        data = source_of(app, named[1]).read_bytes()
        kind = "png" if named[1].endswith("png") else "jpeg"
    else:
        return tag
    if first:
        source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    else:
        name = named[1] if named else store(app, data, kind)
        source = pathto(f"_images/{name}", 1)
    width, height = Image.open(io.BytesIO(data)).size
    more = f' width="{width}" height="{height}"'
    more += "" if first else ' loading="lazy" decoding="async"'
    tag = re.sub(r' (?:width|height|loading|decoding)="[^"]*"', "", tag)
    tag = re.sub(r'src="[^"]*"', lambda _: f'src="{source}"', tag)
    return re.sub(r"\s*/?>$", f"{more}>", tag)


def source_of(app, name):
    """The file that the builder copies to _images under this name."""
    found = [path for path, to in app.builder.images.items() if to == name]
    return Path(app.srcdir) / found[0]


def store(app, data, kind):
    """Write a picture to _images, as the builder does; return its name there."""
    name = f"{hashlib.sha256(data).hexdigest()}.{kind}"
    folder = Path(app.outdir) / "_images"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    return name


def setup(app):
    app.connect("html-page-context", begin, priority=100)
    app.connect("html-page-context", collect_styles, priority=940)
    app.connect("html-page-context", place_pictures, priority=940)
    app.connect("html-page-context", squeeze_styles, priority=990)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
