"""Execute the notebooks in fresh kernels and store them: `make notebooks`.

    python -m tools.notebooks            those whose code has changed since last time
    python -m tools.notebooks 03_vae     those named
    python -m tools.notebooks --all      all

The only way that outputs get in. A notebook is stored in one normal form, so that two
executions of the same code differ in nothing that a reader would not see.
"""

import argparse
import ast
import base64
import hashlib
import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
STAMPS = ROOT / "_build" / "notebooks.json"
CELL_TIMEOUT = 120  # seconds
TIMEOUT = 900  # of a notebook, in case that even its kernel cannot be stopped
ATTEMPTS = 3

# What notebooks run under, here and when pytest validates them (conftest.py).
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "GENLIB_PROFILE": "cpu",
    "GENLIB_DEVICE": "cpu",
    "PYTHONHASHSEED": "0",
    "TQDM_DISABLE": "1",
}

# --- the set-up cell ------------------------------------------------------------------

COLAB = """\
# Colab only: install the book's library, and nothing else.
import sys

if "google.colab" in sys.modules:
    %pip install -q --no-deps git+{url}

"""
SETUP = """\
from genlib.plot import use_style

use_style()"""


def setup_source(url=""):
    """The text of every notebook's set-up cell, for a repository's address or none."""
    return (COLAB.format(url=url) if url else "") + SETUP


def repository_url():
    """The book's address, or "" while it has none; tools/repository.py sets it."""
    text = (ROOT / "_config.yml").read_text(encoding="utf-8")
    found = re.search(
        r"^repository:\n(?:[ #].*\n)*?  url: *[\"']?([^\s\"'#]+)", text, re.M
    )
    return found[1] if found else ""


# --- the stored form ------------------------------------------------------------------

METADATA = {
    "kernelspec": {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
CELL_METADATA = ("mystnb", "tags")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def normalise(notebook, patterns=()):
    """Bring an executed notebook into the stored form, in place; return it.

    Kernel name, counts 1..n, ids from the sources; no timing, no widget state; text
    through `patterns` (regex, replacement); pictures small and without metadata.
    """
    notebook.metadata = json.loads(json.dumps(METADATA))
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    count, ids = 0, set()
    for cell in notebook.cells:
        kept = {k: cell.metadata[k] for k in CELL_METADATA if cell.metadata.get(k)}
        cell.metadata = type(cell.metadata)(kept)
        cell.source = cell.source.rstrip()
        # An id that follows from the text is the same whatever tool wrote the cell.
        digest = hashlib.sha256(cell.source.encode()).hexdigest()
        cell.id = next(
            name for n in range(999) if (name := f"{digest[:8]}{n or ''}") not in ids
        )
        ids.add(cell.id)
        if cell.cell_type != "code":
            cell.pop("attachments", None)
            continue
        count += 1
        cell.execution_count = count
        cell.outputs = join_streams(cell.outputs)
        for output in cell.outputs:
            normalise_output(output, count, patterns)
    return notebook


def join_streams(outputs):
    """Adjacent pieces of one stream become one output: how they arrive is chance."""
    joined = []
    for output in outputs:
        last = joined[-1] if joined else None
        if (
            last is not None
            and output.output_type == last.output_type == "stream"
            and output.name == last.name
        ):
            last.text += output.text
        else:
            joined.append(output)
    return joined


def normalise_output(output, count, patterns):
    if output.output_type == "execute_result":
        output.execution_count = count
    if output.output_type == "stream":
        output.text = sanitise(output.text, patterns)
    if "metadata" in output:
        output.metadata = type(output.metadata)()
    data = output.get("data", {})
    data.pop(WIDGET_VIEW, None)  # its model dies with the kernel
    for mime, value in data.items():
        if mime == "image/png":
            png = shrink_png(base64.b64decode(value))
            data[mime] = base64.b64encode(png).decode()
        elif isinstance(value, str):
            data[mime] = sanitise(value, patterns)


def sanitise(text, patterns):
    for regex, replacement in patterns:
        text = re.sub(regex, replacement, text)
    return text


def read_patterns(path=ROOT / "tests" / "sanitize.cfg"):
    """(regex, replacement) pairs, as nbval reads them."""
    return re.findall("^regex: (.*)\nreplace: (.*)$", path.read_text(), re.MULTILINE)


def shrink_png(png):
    """The same picture in fewer bytes: no metadata, no unused alpha, 256 colours.

    The palette is taken only where the eye sees no difference: on average under one
    of 255 levels, nowhere above 32.
    """
    import numpy as np
    from PIL import Image

    image = Image.open(io.BytesIO(png))
    image.load()
    if not image.info:
        return png  # has been here before: matplotlib names itself and the dpi
    if image.mode == "RGBA" and image.getextrema()[3] == (255, 255):
        image = image.convert("RGB")
    choices = [image]
    if image.mode == "RGB":
        method = Image.Quantize.MAXCOVERAGE
        few = image.quantize(256, method=method, kmeans=3, dither=Image.Dither.NONE)
        moved = np.abs(np.asarray(few.convert("RGB"), int) - np.asarray(image, int))
        if moved.mean() < 1 and moved.max() <= 32:
            choices.append(few)
    files = [io.BytesIO() for _ in choices]
    for choice, file in zip(choices, files, strict=True):
        choice.save(file, "PNG", optimize=True)
    return min((file.getvalue() for file in files), key=len)


# --- which notebooks to execute -------------------------------------------------------


def fingerprint(path):
    """What a notebook's outputs follow from, and the outputs themselves, as one hash.

    Its code cells as stored, every genlib module that they import, directly or not,
    and the versions of what computes. Prose changes nothing here.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    code = "\n".join("".join(c["source"]) for c in cells)
    parts = [json.dumps([cells, sys.version], sort_keys=True)]
    parts += [f"{m} {m.read_bytes()!r}" for m in sorted(genlib_modules(code))]
    for package in ("torch", "numpy", "matplotlib", "scikit-learn"):
        parts.append(f"{package} {importlib.metadata.version(package)}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def genlib_modules(code):
    """Files of the genlib modules that `code` imports, and those that they import."""
    found, todo = set(), [code]
    while todo:
        for name in imported_names(todo.pop()):
            parts = name.split(".")
            for n in range(1, len(parts) + 1):
                stem = ROOT.joinpath(*parts[:n])
                for file in (stem.with_suffix(".py"), stem / "__init__.py"):
                    if file.is_file() and file not in found:
                        found.add(file)
                        todo.append(file.read_text(encoding="utf-8"))
    return found


def imported_names(code):
    """Dotted names that a text imports from genlib: modules, and what may be one."""
    plain = re.sub(r"^(\s*)[%!].*$", r"\1pass", code, flags=re.MULTILINE)  # magics
    names = set()
    for node in ast.walk(ast.parse(plain)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "genlib"}


def read_stamps():
    return json.loads(STAMPS.read_text()) if STAMPS.exists() else {}


def write_stamp(path):
    stamps = read_stamps() | {path.name: fingerprint(path)}
    STAMPS.parent.mkdir(exist_ok=True)
    write_text(STAMPS, json.dumps(stamps, indent=1, sort_keys=True) + "\n")


def write_text(path, text):
    """Replace a file in one move; a run that is killed leaves the old one."""
    handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(partial, 0o644)
    os.replace(partial, path)


# --- execution ------------------------------------------------------------------------


def execute(path, cell_timeout=CELL_TIMEOUT):
    """Run one notebook in a fresh kernel, in this process; return its stored form.

    Where a cell runs out of time the notebook is run again, for now and then a kernel
    loses a request and then waits for ever (ipykernel, issue 1471).
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellTimeoutError

    for attempt in range(1, ATTEMPTS + 1):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        client = NotebookClient(
            notebook,
            timeout=cell_timeout,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": str(path.parent)}},
        )
        try:
            client.execute()
            break
        except CellTimeoutError:
            if attempt == ATTEMPTS:
                raise SystemExit(
                    f"code cell {last_started(notebook)} was the last to start: not "
                    f"done after {cell_timeout:g} s, in each of {ATTEMPTS} runs"
                ) from None
        except Exception as error:
            raise SystemExit(describe_failure(notebook, error)) from None
    return nbformat.writes(normalise(notebook, read_patterns())) + "\n"


def last_started(notebook):
    """Number of the last code cell that the kernel began, 0 if none."""
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    started = [n for n, c in enumerate(cells, 1) if c.execution_count or c.outputs]
    return max(started, default=0)


def describe_failure(notebook, error):
    """Which cell stopped, why, and the end of its traceback."""
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    failed = [
        (number, output)
        for number, cell in enumerate(cells, 1)
        for output in cell.outputs
        if output.output_type == "error"
        and "raises-exception" not in cell.metadata.get("tags", [])
    ]
    if failed:
        number, output = failed[-1]
        trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output.traceback))
        tail = "\n".join(trace.splitlines()[-25:])
        return f"code cell {number}: {output.ename}: {output.evalue}\n{tail}"
    last = last_started(notebook)
    return f"code cell {last} was the last to start: {type(error).__name__}: {error}"


def run(path):
    """Execute and store one notebook in a process of its own; None, or what failed."""
    start = time.monotonic()
    live = ROOT / "book" / "live"
    live.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tools.notebooks", "--execute", str(path)]
    environment = os.environ | ENVIRONMENT | {"GENLIB_LIVE": str(live)}
    try:
        result = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return f"{path.name}: not done after {TIMEOUT} s; the stored file is unchanged"
    if result.returncode:
        return f"{path.name}: {result.stderr.strip()}\n(the stored file is unchanged)"
    write_text(path, result.stdout)
    write_stamp(path)
    seconds, size = time.monotonic() - start, path.stat().st_size
    print(f"{path.name}: {seconds:.0f} s, {size / 1000:.0f} KB", flush=True)
    return None


def select(names, everything):
    """The notebooks to execute; ValueError for a name that is no notebook."""
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    if names:
        chosen = []
        for name in names:
            stem = Path(name).name.removesuffix(".ipynb")
            found = [p for p in paths if stem in (p.stem, p.stem.partition("_")[2])]
            if not found:
                have = ", ".join(p.stem for p in paths) or "none yet"
                raise ValueError(f"no notebook {name!r}; there are: {have}")
            chosen += found
        return chosen
    stamps = read_stamps()
    return [p for p in paths if everything or stamps.get(p.name) != fingerprint(p)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="03_vae, or vae; default: the changed")
    parser.add_argument("--all", action="store_true", help="execute all")
    parser.add_argument("--execute", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.execute:
        sys.stdout.write(execute(arguments.execute))
        return
    try:
        paths = select(arguments.names, arguments.all)
    except ValueError as error:
        parser.error(str(error))
    if not paths:
        print("Every notebook is as its code left it; --all executes them anyway.")
    # Two at a time, one thread each: kernels that share threads slow each other down.
    with ThreadPoolExecutor(2) as pool:
        problems = [problem for problem in pool.map(run, paths) if problem]
    if problems:
        raise SystemExit("\n\n".join(problems))


if __name__ == "__main__":
    main()
