"""What tests share: things that a machine may lack, and the site that was built.

A machine without a browser, the data files or a network passes: such tests skip, and
the last lines say what did not run and why. GENLIB_REQUIRE="browser,data" makes the
named skips failures, so that a machine that should have them cannot pass without.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from tools.browser import find_chromium, open_browser
from tools.serve import serving

ROOT = Path(__file__).parents[1]
SITE = ROOT / "_build" / "html"
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
# What the widgets of a page have shown: the explorers' frames, the lab's
RECORD = """
window.seen = [];
window.trained = [];
window.looked = [];
document.addEventListener("genlib:frame", ({detail: {z, image, ms}}) =>
  window.seen.push({z, image: [...image], ms}));
document.addEventListener("genlib:attention", ({detail}) =>
  window.looked.push(detail));
document.addEventListener("genlib:lab", ({detail}) => window.trained.push(detail));
"""


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
    path, why = find_chromium()
    if not path:
        require_or_skip("browser", why)
    return path


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


@pytest.fixture(scope="session")
def served(site):
    """The address of the built site, served on this machine; it ends with "/"."""
    with serving(site) as address:
        yield address


@pytest.fixture(scope="module")
def browser(chromium):
    with open_browser() as browser:
        yield browser


@pytest.fixture
def visit(browser, served):
    """Open a page of the site; whatever it asks elsewhere or complains of fails."""
    contexts, outside, complaints = [], [], []

    def open_page(path, expected=(), **options):
        options = {"viewport": {"width": 1280, "height": 1000}, **options}
        context = browser.new_context(**options)
        contexts.append(context)
        context.add_init_script(RECORD)
        page = context.new_page()

        def complain(text):
            if not any(word in text for word in expected):
                complaints.append(f"{path}: {text}")

        def ask(request):
            if not request.url.startswith((served, "data:", "blob:")):
                outside.append(f"{path}: {request.url}")

        def answer(response):
            if response.status >= 400:
                complain(f"{response.status} for {response.url}")

        page.on("request", ask)
        page.on("response", answer)
        page.on("pageerror", lambda error: complain(str(error)))
        page.on("console", lambda m: m.type == "error" and complain(m.text))
        page.goto(served + path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not outside, "requests that leave the site"
    assert not complaints


@pytest.fixture(scope="module")
def pages(site):
    """All pages of the site, as paths from its root."""
    found = {p.relative_to(site).as_posix(): p for p in sorted(site.rglob("*.html"))}
    assert "index.html" in found
    return [
        name
        for name, file in found.items()
        if not name.startswith("_")
        # a forwarding page shows nothing
        and 'http-equiv="Refresh"' not in file.read_text(encoding="utf-8")
    ]


def next_picture(page):
    """Wait until what the page was about to draw is drawn."""
    page.evaluate("""() => new Promise((done) =>
      requestAnimationFrame(() => requestAnimationFrame(done)))""")


def axe(page, where):
    """Return what axe-core has against this page, a line a node, three a rule."""
    if not AXE.is_file():
        require_or_skip("browser", "axe-core is not installed; run `make book`")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run().then((result) => result.violations)")
    return [
        f"{where}: {rule['id']} ({rule['impact']}): {node['html'][:160]}"
        for rule in found
        for node in rule["nodes"][:3]
    ]


@pytest.fixture(scope="module")
def jupyterlab(tmp_path_factory):
    """A JupyterLab as `make lab` starts it: its address, its folder of notebooks."""
    pytest.importorskip("jupyterlab")
    tmp_path = tmp_path_factory.mktemp("jupyterlab")
    folder = tmp_path / "notebooks"
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"CONFIG": "config", "DATA": "data", "RUNTIME": "runtime"}
    env = os.environ | {f"JUPYTER_{k}_DIR": str(tmp_path / v) for k, v in own.items()}
    env |= {"OMP_NUM_THREADS": "1", "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "user")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"]
    command += ["--IdentityProvider.token=t", f"--ServerApp.root_dir={folder}"]
    command += ["--LabApp.news_url=None", "--LabApp.extension_manager=readonly"]
    command += re.findall(r"--ServerApp\S+", (ROOT / "Makefile").read_text())
    log = tmp_path / "lab.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=out)
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}api/status?token=t", timeout=5)
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                time.sleep(0.25)
        yield address, folder
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


@pytest.fixture
def notebook(browser, jupyterlab):
    """Open a notebook of one cell: `notebook(code)` gives its page in JupyterLab."""
    import nbformat

    address, folder = jupyterlab
    pages = []

    def open_notebook(code):
        name = f"cell{len(list(folder.glob('*.ipynb')))}.ipynb"
        book = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(code)],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        )
        nbformat.write(book, folder / name)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        pages.append(page)
        page.add_init_script(RECORD)
        page.goto(f"{address}lab/tree/{name}?token=t&reset")
        page.locator(".jp-CodeCell").first.wait_for(timeout=60_000)
        page.get_by_text("| Idle").wait_for(timeout=60_000)
        return page

    yield open_notebook
    for page in pages:
        page.close()


def run_cell(page):
    """Run the first cell of a notebook."""
    page.click(".jp-CodeCell .jp-InputArea-editor")
    page.keyboard.press("Control+Enter")


def end_kernels(address):
    """Shut down every kernel of a JupyterLab."""
    with urllib.request.urlopen(f"{address}api/kernels?token=t", timeout=9) as answer:
        kernels = json.load(answer)
    for kernel in kernels:
        gone = f"{address}api/kernels/{kernel['id']}?token=t"
        request = urllib.request.Request(gone, method="DELETE")
        urllib.request.urlopen(request, timeout=30).close()


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
