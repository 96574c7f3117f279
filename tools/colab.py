"""Run the notebooks with the versions that Colab ships: `make colab`.

Makes an environment in _build/colab with the packages of tools/colab.txt, installs
genlib into it as the notebooks' first cell does, with `--no-deps`, checks that this
replaced nothing, and validates every notebook's outputs there.

Colab has Python 3.13 and PyTorch 2.11; here it is the Python that runs this, and the
PyTorch that TORCH names or else the book's own. The workflow runs it with Colab's.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import venv
from pathlib import Path

from tools.notebooks import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "_build" / "colab"
PYTHON = FOLDER / "bin" / "python"
PINS = ROOT / "tools" / "colab.txt"


def run(*command, **options):
    return subprocess.run([PYTHON, "-m", *command], check=True, cwd=ROOT, **options)


def packages():
    """Name to version of what the environment holds."""
    command = ("pip", "list", "--format", "json", "--disable-pip-version-check")
    listed = json.loads(run(*command, stdout=subprocess.PIPE).stdout)
    return {item["name"].lower(): item["version"] for item in listed}


def replaced(before, after):
    """What an installation of genlib changed besides genlib, as lines."""
    names = sorted((before.keys() | after.keys()) - {"genlib"})
    return [
        f"{name}: {before.get(name, 'not there')} -> {after.get(name, 'gone')}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def install():
    """Make the environment, once; return what is in it."""
    if not PYTHON.exists():
        venv.create(FOLDER, with_pip=True)
    subprocess.run(
        [PYTHON, "-c", "from tools.install import install_torch; install_torch()"],
        check=True,
        cwd=ROOT,
    )
    run("pip", "install", "--quiet", "-r", str(PINS))
    run("pip", "uninstall", "--quiet", "--yes", "genlib")
    before = packages()
    run("pip", "install", "--quiet", "--no-deps", ".")
    after = packages()
    if changed := replaced(before, after):
        sys.exit("installing genlib replaced packages:\n" + "\n".join(changed))
    return after


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notebooks", nargs="*", help="file names; else all")
    arguments = parser.parse_args()
    here = install()
    names = arguments.notebooks or sorted(
        p.relative_to(ROOT).as_posix() for p in (ROOT / "notebooks").glob("*.ipynb")
    )
    print(f"Python {platform.python_version()}, torch {here['torch']}", flush=True)
    command = [
        *("pytest", *names, "--nbval", "--nbval-current-env"),
        *("--nbval-sanitize-with", "tests/sanitize.cfg"),
        *("--nbval-cell-timeout", "300", "-n", "2", "--dist", "loadscope", "-q"),
    ]
    environment = os.environ | ENVIRONMENT
    sys.exit(
        subprocess.run([PYTHON, "-m", *command], cwd=ROOT, env=environment).returncode
    )


if __name__ == "__main__":
    main()
