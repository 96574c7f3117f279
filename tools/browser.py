"""The browser that tests and tools drive: the machine's own Chromium."""

import contextlib
import os
import shutil
import sys

# the sandbox needs rights that a container's root has not
FLAGS = ["--no-sandbox", "--disable-quic", "--no-first-run"]
BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)


def find_chromium():
    """Return (path, ""), or (None, why). GENLIB_CHROMIUM names one not on the PATH."""
    named = os.environ.get("GENLIB_CHROMIUM")
    for name in [named] if named else BROWSERS:
        if path := shutil.which(name):
            return path, ""
    return (
        None,
        f"GENLIB_CHROMIUM={named} is no program" if named else "no Chromium here",
    )


@contextlib.contextmanager
def open_browser(*flags, gpu=False):
    """Playwright's browser, headless, until the block ends; `gpu` lets it use a card.

    Ends the program with one line where there is no Chromium.
    """
    from playwright.sync_api import sync_playwright

    path, why = find_chromium()
    if not path:
        sys.exit(f"{why}; install Chromium or set GENLIB_CHROMIUM")
    flags = [*FLAGS, *([] if gpu else ["--disable-gpu"]), *flags]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()
