"""Tell the book where its repository is: `make repository URL=https://host/owner/name`.

    python -m tools.repository https://github.com/ada/book    set or change
    python -m tools.repository ""                             take it out again

`_config.yml` is the place that everything else is written from: the notebooks' set-up
cell and link to Colab, README.md, CITATION.cff and pyproject.toml; the site's buttons
follow when the book is built. Without an address none of them shows anything.
"""

import argparse
import re
import sys
from urllib.parse import quote

import nbformat

from tools.notebooks import ROOT, setup_source, write_text

COLAB = "https://colab.research.google.com/github"
BINDER = "https://mybinder.org/v2"
BRANCH = "main"


def clean(url):
    """The address in its plain form, or ""; ValueError if it is none of a repository.

    >>> clean("https://github.com/ada/book.git/")
    'https://github.com/ada/book'
    """
    plain = re.sub(r"(\.git)?/*$", "", url.strip())
    part = r"[\w.~-]*\w[\w.~-]*"
    if plain and not re.fullmatch(rf"https://[\w.-]+(:\d+)?/{part}/{part}", plain):
        raise ValueError(
            f"{url!r} is not the address of a repository; expected "
            "https://host/owner/name, such as https://github.com/ada/book, "
            "or nothing to take it out"
        )
    return plain


def links(url, path):
    """Where a notebook of the repository can be run: [(name, address)], Colab first.

    Colab opens notebooks from GitHub only; Binder takes any host.
    """
    if not url:
        return []
    host, _, name = url.removeprefix("https://").partition("/")
    found = []
    if host == "github.com":
        found.append(("Colab", f"{COLAB}/{name}/blob/{BRANCH}/{path}"))
        source = f"gh/{name}"
    elif host == "gitlab.com":
        source = f"gl/{quote(name, safe='')}"
    else:
        source = f"git/{quote(url, safe='')}"
    found.append(("Binder", f"{BINDER}/{source}/{BRANCH}?urlpath=lab/tree/{path}"))
    return found


# --- one function for each place: (text, address) -> text -----------------------------


def config(text, url):
    return one(r"(?m)^(repository:\n(?: *#.*\n)*  url: ).*$", rf'\g<1>"{url}"', text)


def citation(text, url):
    text = re.sub(r"(?m)^repository-code: .*\n", "", text)
    line = f'repository-code: "{url}"\n' if url else ""
    return one(r"(?m)^(license: .*\n)", rf"\g<1>{line}", text)


def project(text, url):
    text = re.sub(r'\[project\.urls\]\nSource = ".*"\n\n', "", text)
    block = f'[project.urls]\nSource = "{url}"\n\n' if url else ""
    return one(r"(?m)^(?=\[tool\.setuptools\.packages)", block, text)


def readme(text, url):
    """The lines between the two marks: get it, open it elsewhere, is it healthy?"""
    lines = []
    if url:
        name = url.rpartition("/")[2]
        first = "notebooks/03_vae.ipynb"
        places = [f"[{place}]({to})" for place, to in links(url, first)]
        lines = ["", "```bash", f"git clone {url} && cd {name}", "```", ""]
        lines += [f"A chapter in {' or '.join(places)}."]
        if url.startswith("https://github.com/"):
            check = f"{url}/actions/workflows/check.yml"
            lines[-1] += f" [![Checks]({check}/badge.svg)]({check})"
        lines += [""]
    inside = "".join(line + "\n" for line in lines)
    mark = "<!-- {}repository -->\n"
    start, end = (re.escape(mark.format(slash)) for slash in ("", "/"))
    return one(rf"(?s)({start}).*?({end})", rf"\g<1>{inside}\g<2>", text)


def notebook(text, url, path):
    """A notebook's set-up cell, and the link to Colab that ends its first cell."""
    book = nbformat.reads(text, as_version=4)
    for cell in book.cells:
        if "setup" in cell.metadata.get("tags", []):
            cell.source = setup_source(url)
    first = re.sub(r"\n\n\[Open in Colab\]\([^)]*\)$", "", book.cells[0].source)
    to = dict(links(url, path)).get("Colab")
    book.cells[0].source = first + (f"\n\n[Open in Colab]({to})" if to else "")
    return nbformat.writes(book) + "\n"


def one(pattern, replacement, text):
    """Replace the one match of a pattern; ValueError if there is another number."""
    text, count = re.subn(pattern, replacement, text)
    if count != 1:
        raise ValueError(f"{count} places match {pattern!r}, expected one")
    return text


# --- command --------------------------------------------------------------------------

PLACES = {
    "_config.yml": config,
    "CITATION.cff": citation,
    "README.md": readme,
    "pyproject.toml": project,
}


def set_repository(url, root=ROOT):
    """Write the address into every place under `root`; return the files that changed.

    All texts are made before the first is written, so an error leaves them as they are.
    """
    url, texts = clean(url), {}
    for name, write in PLACES.items():
        path = root / name
        try:
            texts[path] = write(path.read_text(encoding="utf-8"), url)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        texts[path] = notebook(text, url, f"notebooks/{path.name}")
    changed = [p for p, text in texts.items() if p.read_text(encoding="utf-8") != text]
    for path in changed:
        write_text(path, texts[path])
    return [str(path.relative_to(root)) for path in changed]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", help='https://host/owner/name; "" takes it out')
    try:
        url = clean(parser.parse_args().url)
        changed = set_repository(url)
    except (OSError, ValueError) as error:
        sys.exit(f"repository: {error}")
    print("\n".join(f"wrote {name}" for name in changed) or "nothing to change")
    if url and not url.startswith("https://github.com/"):
        print("Colab opens notebooks from GitHub only, so there are no links to it.")


if __name__ == "__main__":
    main()
