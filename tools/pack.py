"""Pack the built site for machines without a network: `make book` calls it.

The archive holds one folder, which works from any static server. The same site gives
the same archive, byte for byte.
"""

import re
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "_build" / "html"
NAME = "exploring-generative-models"
HOW = """Exploring Generative Models, {version}

To read the book with its live figures, start a server in this folder:

    python -m http.server

and open http://127.0.0.1:8000/ in a browser. Opened as files, the pages show pictures
in the place of live figures and cannot be searched.
"""


def version():
    text = (ROOT / "genlib" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'__version__ = "(.+)"', text)[1]


def files(site):
    """The site's files in order, without pictures that no page shows any more."""
    pages = "".join(p.read_text(encoding="utf-8") for p in sorted(site.rglob("*.html")))
    for path in sorted(p for p in site.rglob("*") if p.is_file()):
        stale = path.parent.name == "_images" and path.name not in pages
        if not stale and path.name != ".buildinfo":
            yield path


def pack(site=SITE, folder=None):
    """Write <name>-<version>.zip beside the site, whole or not at all; return it."""
    name = f"{NAME}-{version()}"
    archive = (folder or site.parent) / f"{name}.zip"
    partial = archive.with_suffix(".part")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as out:

        def put(path, data):
            entry = zipfile.ZipInfo(f"{name}/{path}", (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            out.writestr(entry, data)

        put("READ-ME.txt", HOW.format(version=version()))
        for path in files(site):
            put(path.relative_to(site).as_posix(), path.read_bytes())
    for old in archive.parent.glob(f"{NAME}-*.zip"):
        old.unlink()
    partial.rename(archive)
    return archive


if __name__ == "__main__":
    if not (SITE / "index.html").exists():
        sys.exit(f"{SITE} is not built; run `make book`")
    archive = pack()
    size = archive.stat().st_size / 1e6
    print(f"The book for offline reading: {archive.relative_to(ROOT)}, {size:.1f} MB")
