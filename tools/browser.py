"""The browser that tests and tools drive: the machine's own Chromium."""

import os
import shutil
import sys

# the sandbox needs rights that a container's root has not
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
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


def chromium():
    """The path of a browser; ends the program with one line where there is none."""
    path, why = find_chromium()
    return path or sys.exit(f"{why}; install Chromium or set GENLIB_CHROMIUM")
