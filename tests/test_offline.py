"""The packed site, unpacked under a sub-path and served by `python -m http.server`.

The fixture `visit` fails on whatever a page asks of another host or does not find.
"""

import re
import subprocess
import sys
import zipfile

import pytest

from genlib import __version__
from tools.pack import pack


@pytest.fixture(scope="module")
def unpacked(site, tmp_path_factory):
    """The folder that the archive holds, some folders down."""
    root = tmp_path_factory.mktemp("stick")
    archive = pack(site, root)
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(root / "a" / "b c")
    return root / "a" / "b c" / archive.stem


@pytest.fixture(scope="module")
def served(unpacked):
    """As conftest's, but of the archive, by Python's own server, under a sub-path."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    root = unpacked.parents[2]
    server = subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        port = re.search(r"port (\d+)", server.stdout.readline())[1]
        path = unpacked.relative_to(root).as_posix().replace(" ", "%20")
        yield f"http://127.0.0.1:{port}/{path}/"
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def test_every_page_is_whole_under_a_sub_path(visit, pages):
    empty = []
    for path in pages:
        page = visit(path)
        pictures = page.evaluate(
            """async () => {
              const pictures = [...document.images];
              for (const picture of pictures) picture.loading = "eager";
              await Promise.allSettled(pictures.map((picture) => picture.decode()));
              return pictures.filter((p) => p.naturalWidth < 2).map((p) => p.src);
            }"""
        )
        page.wait_for_load_state("networkidle")
        empty += [f"{path}: {source[:90]}" for source in pictures]
        page.context.close()
    assert len(pages) > 10 and not empty


def test_the_first_page_leads_into_the_book(visit, served):
    # the forwarding page names no icon: a browser that is quick asks for one
    page = visit("", expected=["favicon.ico", "404 (File not found)"])
    page.wait_for_url("**/book/index.html")
    page.click("a[rel=next]")
    assert page.url == f"{served}book/using.html"


def test_a_laboratory_trains_offline(visit, unpacked):
    pages = sorted(unpacked.glob("notebooks/*.html"))
    name = next(p.name for p in pages if 'data-widget="training_lab"' in p.read_text())
    page = visit(f"notebooks/{name}")
    lab = page.locator('[data-widget="training_lab"]').first
    lab.locator(".gl-start").click()
    lab.get_by_role("button", name="One step").click(timeout=60_000)
    page.wait_for_function("window.trained.length > 0", timeout=60_000)


def test_the_search_works_offline(visit):
    page = visit("book/using.html")
    page.fill("form.search input", "reparameterisation")
    page.press("form.search input", "Enter")
    page.wait_for_selector("#search-results li a")
    page.locator("#search-results li a").first.click()
    page.wait_for_url(lambda url: "search.html" not in url)  # and is loaded whole
    assert "reparameteri" in page.inner_text("article").lower()


def test_the_archive_is_whole_and_always_the_same(site, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = pack(site, tmp_path / "one"), pack(site, tmp_path / "two")
    assert one.name == f"exploring-generative-models-{__version__}.zip"
    assert one.read_bytes() == two.read_bytes()
    with zipfile.ZipFile(one) as packed:
        assert packed.testzip() is None
        names = {name.partition("/")[2] for name in packed.namelist()}
        top = {name.partition("/")[0] for name in packed.namelist()}
        assert (
            "python -m http.server" in packed.read(f"{one.stem}/READ-ME.txt").decode()
        )
    assert top == {one.stem}
    there = {p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file()}
    left_out = {name for name in there - names if not name.startswith("_images/")}
    assert left_out <= {".buildinfo"}
    assert names - there == {"READ-ME.txt"}
    assert one.stat().st_size < 20_000_000


def test_a_picture_that_no_page_shows_is_left_out(tmp_path):
    site = tmp_path / "html"
    (site / "_images").mkdir(parents=True)
    (site / "index.html").write_text('<img src="_images/a.png">')
    for name in ("a.png", "b.png"):
        (site / "_images" / name).write_bytes(b"picture")
    with zipfile.ZipFile(pack(site, tmp_path)) as packed:
        names = [name.partition("/")[2] for name in packed.namelist()]
    assert names == ["READ-ME.txt", "_images/a.png", "index.html"]
