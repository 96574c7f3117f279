"""tools/repository.py, on a scratch copy of the book: every place, there and back."""

import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

from tools import notebooks
from tools.repository import clean, links, set_repository

ROOT = Path(__file__).parents[1]
URL = "https://github.com/ada/book-of-models"
OTHER = "https://codeberg.org/grace/models"
LEFT_OUT = shutil.ignore_patterns(
    ".*cache*", ".git", ".venv", "node_modules", "_build", "__pycache__", "vendor"
)


@pytest.fixture
def scratch(tmp_path):
    """A copy of the book without an address."""
    root = tmp_path / "book"
    shutil.copytree(ROOT, root, ignore=LEFT_OUT)
    set_repository("", root)
    return root


def run(root, url):
    """The command, as `make repository` calls it."""
    command = [sys.executable, "-m", "tools.repository", url]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


def hashes(root):
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file() and "__pycache__" not in p.parts
    }


def chapters(root):
    paths = sorted((root / "notebooks").glob("*.ipynb"))
    assert paths
    return {p.stem: nbformat.read(p, as_version=4) for p in paths}


def test_every_place_gets_the_address(scratch):
    before = hashes(scratch)
    result = run(scratch, URL + ".git/")
    assert result.returncode == 0, result.stderr
    after = hashes(scratch)
    changed = {name for name in after if after[name] != before[name]}
    named = {line.removeprefix("wrote ") for line in result.stdout.splitlines()}
    files = {"_config.yml", "README.md", "CITATION.cff", "pyproject.toml"}
    assert changed == named == files | {f"notebooks/{n}.ipynb" for n in chapters(ROOT)}

    def text(name):
        return (scratch / name).read_text(encoding="utf-8")

    assert f'repository:\n  url: "{URL}"\n' in text("_config.yml")
    assert f'\nrepository-code: "{URL}"\n' in text("CITATION.cff")
    project = tomllib.loads(text("pyproject.toml"))["project"]
    assert project["urls"] == {"Source": URL}
    readme = text("README.md")
    assert f"git clone {URL} && cd book-of-models\n" in readme
    assert f"{URL}/actions/workflows/check.yml/badge.svg" in readme
    assert "https://mybinder.org/v2/gh/ada/book-of-models/main?urlpath=lab/tree/" in (
        readme
    )
    for name, book in chapters(scratch).items():
        colab = "https://colab.research.google.com/github/ada/book-of-models"
        colab += f"/blob/main/notebooks/{name}.ipynb"
        assert book.cells[0].source.endswith(f"\n\n[Open in Colab]({colab})")
        setup = [c for c in book.cells if "setup" in c.metadata.get("tags", [])]
        assert [c.source for c in setup] == [notebooks.setup_source(URL)]
        assert f"git+{URL}" in setup[0].source


def test_links_of_the_readme_lead_to_files_that_exist(scratch):
    run(scratch, URL)
    readme = (scratch / "README.md").read_text(encoding="utf-8")
    paths = re.findall(r"(?:blob/main/|lab/tree/)([^)]+)\)", readme)
    assert len(paths) == 2
    assert all((scratch / path).is_file() for path in paths)


def test_twice_is_once_and_another_address_leaves_nothing_of_the_first(scratch):
    run(scratch, URL)
    once = hashes(scratch)
    assert run(scratch, URL).stdout == "nothing to change\n"
    assert hashes(scratch) == once
    set_repository(OTHER, scratch)
    texts = [
        p.read_text(encoding="utf-8")
        for p in (*scratch.glob("*.*"), *scratch.glob("notebooks/*"))
        if p.is_file()
    ]
    assert not any("ada/book-of-models" in text for text in texts)
    assert any(OTHER in text for text in texts)
    # Colab opens GitHub only: no link to it may remain
    assert not any("colab.research.google.com/" in text for text in texts)


@pytest.mark.parametrize("url", [URL, OTHER, "https://gitlab.com/a.b/c_d"])
def test_unset_restores_every_byte(scratch, url):
    before = hashes(scratch)
    assert set_repository(url, scratch)
    assert set_repository("", scratch)
    assert hashes(scratch) == before


@pytest.mark.parametrize(
    "url",
    [
        "github.com/ada/book",
        "http://github.com/ada/book",
        "https://github.com/ada",
        "https://github.com/ada/book/tree/main",
        "https://github.com/ada/bo ok",
        'https://github.com/ada/book"',
        "https://github.com//book",
        "git@github.com:ada/book.git",
    ],
)
def test_what_is_no_address_changes_nothing_and_is_named(scratch, url):
    before = hashes(scratch)
    with pytest.raises(ValueError, match="expected https://host/owner/name") as error:
        set_repository(url, scratch)
    assert repr(url) in str(error.value)
    assert hashes(scratch) == before


def test_the_command_says_what_is_wrong_in_one_line(scratch):
    result = run(scratch, "github.com/ada")
    assert result.returncode == 1
    assert result.stderr.startswith("repository: 'github.com/ada' is not the address")
    assert len(result.stderr.splitlines()) == 1


def test_a_place_that_lost_its_mark_is_named_and_nothing_is_written(scratch):
    readme = scratch / "README.md"
    readme.write_text(readme.read_text().replace("<!-- /repository -->", ""))
    before = hashes(scratch)
    with pytest.raises(ValueError, match="README.md: 0 places match"):
        set_repository(URL, scratch)
    assert hashes(scratch) == before


def test_addresses_in_their_plain_form():
    assert clean(" https://github.com/ada/book.git ") == "https://github.com/ada/book"
    assert clean("") == ""
    assert links("", "notebooks/03_vae.ipynb") == []
    assert [name for name, _ in links(OTHER, "a.ipynb")] == ["Binder"]


@pytest.mark.parametrize("url, places", [(URL, ["Colab", "Binder"]), ("", [])])
def test_the_built_chapter_shows_its_buttons(scratch, url, places):
    set_repository(url, scratch)
    (scratch / "node_modules").symlink_to(ROOT / "node_modules")  # MathJax is there
    start = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", start, "build", ".", "-q"]
    result = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    for name in chapters(scratch):
        page = scratch / "_build" / "html" / "notebooks" / f"{name}.html"
        html = page.read_text(encoding="utf-8")
        found = re.findall(r'<a class="launch" href="([^"]*)">Open in (\w+)</a>', html)
        assert [place for _, place in found] == places
        assert dict((b, a) for a, b in found) == {
            place: to.replace("&", "&amp;")
            for place, to in links(url, f"notebooks/{name}.ipynb")
        }
        # the notebook's own link is for readers elsewhere
        assert html.count("colab.research.google.com") == places.count("Colab")
        assert (f'<a class="source" href="{url}">' in html) == bool(url)
