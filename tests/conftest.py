"""What tests share: things that a machine may lack, and the site that was built.

A machine without a browser, the data files or a network passes: such tests skip, and
the last lines say what did not run and why. GENLIB_REQUIRE="browser,data" makes the
named skips failures, so that a machine that should have them cannot pass without.
"""

import functools
import http.server
import os
import re
import shutil
import threading
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SITE = ROOT / "_build" / "html"
BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)


def required():
    """What this machine must have, from GENLIB_REQUIRE."""
    return {w for w in re.split(r"[,\s]+", os.environ.get("GENLIB_REQUIRE", "")) if w}


def require_or_skip(what, reason):
    """Skip this test for want of `what`; fail if GENLIB_REQUIRE names it."""
    if what in required():
        pytest.fail(f"GENLIB_REQUIRE asks for {what}, but {reason}", pytrace=False)
    pytest.skip(f"{what}: {reason}")


@pytest.fixture(scope="session")
def chromium():
    """The path of a browser. GENLIB_CHROMIUM names one that is not on the PATH."""
    named = os.environ.get("GENLIB_CHROMIUM")
    for name in [named] if named else BROWSERS:
        if path := shutil.which(name):
            return path
    looked = f"GENLIB_CHROMIUM={named} is no program" if named else "no Chromium here"
    require_or_skip("browser", looked)


@pytest.fixture(scope="session")
def node():
    """The path of Node, which runs the pages' modules without a page."""
    from tools.vendor import find_npm

    try:
        _, env = find_npm()
    except SystemExit as error:
        require_or_skip("node", str(error))
    return shutil.which("node", path=env["PATH"])


@pytest.fixture(scope="session")
def site():
    """The folder of the built site."""
    if not (SITE / "index.html").is_file():
        require_or_skip("book", "the site is not built; run `make book`")
    return SITE


class Quiet(http.server.SimpleHTTPRequestHandler):
    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def served(site):
    """The address of the built site, served on this machine; it ends with "/"."""
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def require_data():
    """Call it with the name of a data set: skips where its files are not here."""
    from genlib.data import available

    def check(name):
        if not available(name):
            folder = os.environ.get("GENLIB_DATA") or "the user's cache"
            require_or_skip("data", f"{name} is not in {folder}")

    return check


def pytest_terminal_summary(terminalreporter):
    """Last lines: each thing that could not run here, why, and how often."""
    reasons = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else "skipped"
        reasons[text.removeprefix("Skipped: ")] += 1
    if not reasons:
        return
    terminalreporter.section("could not run here")
    for reason, count in sorted(reasons.items()):
        tests = "1 test" if count == 1 else f"{count} tests"
        terminalreporter.line(f"{reason} ({tests})")
