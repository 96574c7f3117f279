"""Pages on a slow connection: little to fetch, nothing to wait for, nothing that jumps.

The connection is the browser's own emulation; see `tools/speed.py`. Each limit is also
shown a page that breaks it.
"""

import gzip
import urllib.request

import numpy as np
import pytest
from PIL import Image

from tools.serve import serving
from tools.speed import LIMITS, faults, measure

CHAPTERS = 8  # at least


@pytest.fixture(scope="module")
def chapters(site):
    """The chapters' pages, the heaviest first."""
    pages = sorted(site.glob("notebooks/*.html"), key=lambda p: -p.stat().st_size)
    return [page.relative_to(site).as_posix() for page in pages]


def test_every_chapter_is_light_and_comes_up_at_once(browser, site, chapters):
    """Few bytes, no file to wait for, nothing that jumps: these hold on any connection
    and on a busy machine. The times that follow are for `make speed`."""
    wrong = []
    with serving(site) as address:
        for name in chapters:
            found = measure(browser, address + name, None)
            found |= {"first": 0, "largest": 0, "blocking": 0}
            wrong += [f"{name}: {fault}" for fault in faults(found)]
    assert len(chapters) >= CHAPTERS
    assert not wrong


PAGE = "<!doctype html><title>A page</title>{}<h1>A page</h1><p>" + "Some text. " * 12
FAULTY = {
    "first": '<link rel="stylesheet" href="style.css">',
    "largest": '<img src="late.png" width="900" height="600">',
    "blocking": """<script>setTimeout(() => {
        const end = performance.now() + 400;
        while (performance.now() < end);
      }, 300)</script>""",
    "shift": """<style>h1 { height: 400px }</style><script>setTimeout(() => {
        document.querySelector("h1").style.marginTop = "400px";
      }, 500)</script>""",
    "waits": '<img src="late.png" width="900" height="600">',
    "bytes": '<link rel="preload" as="fetch" crossorigin href="noise.bin">',
}


@pytest.mark.parametrize("limit", LIMITS)
def test_a_page_that_breaks_a_limit_is_seen(browser, tmp_path, limit):
    noise = np.random.default_rng(0).integers(0, 256, 350_000, dtype=np.uint8)
    (tmp_path / "index.html").write_text(PAGE.format(FAULTY[limit]))
    (tmp_path / "style.css").write_text("h1 { color: red }")
    (tmp_path / "noise.bin").write_bytes(noise.tobytes())
    Image.fromarray(noise[:60_000].reshape(200, 300)).save(tmp_path / "late.png")
    with serving(tmp_path) as address:
        found = measure(browser, address)
    assert limit in [fault.split()[0] for fault in faults(found)], found


def test_text_is_sent_compressed_and_the_rest_as_it_is(tmp_path):
    text = "word " * 1000
    (tmp_path / "index.html").write_text(text)
    (tmp_path / "data.bin").write_bytes(b"x" * 1000)
    with serving(tmp_path) as address:

        def get(path, accept="gzip, br"):
            request = urllib.request.Request(address + path)
            request.add_header("Accept-Encoding", accept)
            with urllib.request.urlopen(request) as answer:
                return answer.read(), answer.headers

        body, headers = get("")
        assert headers["Content-Encoding"] == "gzip" and len(body) < 100
        assert headers["Content-Type"] == "text/html"
        assert gzip.decompress(body).decode() == text
        assert get("", "identity")[0].decode() == text
        assert get("data.bin")[0] == b"x" * 1000
        assert get("data.bin")[1]["Content-Encoding"] is None
        (tmp_path / "index.html").write_text("new")
        assert gzip.decompress(get("")[0]) == b"new"
