"""The tree keeps its rules: stems, imports, sizes, and nothing of one machine in it."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tools import sync

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODULES = sorted((ROOT / "genlib").rglob("*.py"))
# Modules that serve all chapters and have none of their own (yet).
SUPPORT = {
    "__init__",
    "data",
    "exercises",
    "export",
    "live",
    "multi30k",  # the full-size run of the chapter on the Transformer
    "plot",
    "widgets",
}
MAX_LINES = 40


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def tracked_files():
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("git: this is no git checkout, so its files cannot be listed")
    return [
        path for p in listed.stdout.split("\0") if p and (path := ROOT / p).is_file()
    ]


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )


# --- stems ----------------------------------------------------------------------------


def stem_problems(notebooks, modules, tests):
    """What breaks the stem rule, given file names without their ending."""
    problems = []
    for notebook in notebooks:
        found = re.fullmatch(r"(\d\d)_([a-z][a-z0-9_]*)", notebook)
        if not found:
            problems.append(f"notebooks/{notebook}.ipynb is not named NN_<stem>.ipynb")
        elif found[2] not in modules:
            problems.append(f"notebooks/{notebook}.ipynb has no genlib/{found[2]}.py")
    stems = [notebook[3:] for notebook in notebooks]
    problems += [f"two notebooks of {s}" for s in set(stems) if stems.count(s) > 1]
    for module in modules:
        if module not in stems and module not in SUPPORT:
            problems.append(f"genlib/{module}.py has no notebooks/NN_{module}.ipynb")
        if f"test_{module}" not in tests and module not in ("__init__", "exercises"):
            problems.append(f"genlib/{module}.py has no tests/test_{module}.py")
    return problems


def test_stems():
    inside = (p for p in (ROOT / "genlib").iterdir() if p.suffix in ("", ".py"))
    here = [p.stem for p in inside if not p.name.startswith("__p")]
    problems = stem_problems(
        [path.stem for path in NOTEBOOKS],
        sorted(here),
        [path.stem for path in (ROOT / "tests").glob("test_*.py")],
    )
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    "notebooks, modules, tests",
    [
        (["03_vae"], ["gan"], ["test_gan"]),
        (["vae"], ["vae"], ["test_vae"]),
        (["03_vae", "04_vae"], ["vae"], ["test_vae"]),
        (["03_vae"], ["vae"], []),
        ([], ["vae"], ["test_vae"]),
    ],
)
def test_a_broken_stem_is_found(notebooks, modules, tests):
    assert stem_problems(notebooks, modules, tests)
    assert not stem_problems(["03_vae"], ["vae"], ["test_vae"])


def test_the_book_lists_every_notebook():
    listed = re.findall(r"notebooks/(\w+)", (ROOT / "_toc.yml").read_text())
    assert sorted(listed) == [path.stem for path in NOTEBOOKS]


# --- imports --------------------------------------------------------------------------


HEAVY = {"matplotlib", "sklearn", "pooch", "onnx", "onnxruntime", "ipywidgets"}
LIGHT = {
    "attention",
    "data",
    "exercises",
    "gan",
    "gpt",
    "stability",
    "training",
    "transformer",
    "vae",
}  # load such things when they use them


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_module_imports_alone(path):
    result = python(f"import {module_name(path)}, sys; print(*sys.modules)")
    assert result.returncode == 0, result.stderr
    loaded = HEAVY & set(result.stdout.split())
    assert path.stem not in LIGHT or not loaded, f"loads {loaded} at import"


def test_import_genlib_is_free():
    """`import genlib` loads nothing that Python does not bring: no torch, no NumPy."""
    code = (
        "import sys, time; before = set(sys.modules); start = time.perf_counter();"
        "import genlib; seconds = time.perf_counter() - start;"
        "names = {n.partition('.')[0] for n in set(sys.modules) - before};"
        "print(seconds, *sorted(names - sys.stdlib_module_names))"
    )
    runs = [python(code).stdout.split() for _ in range(5)]
    assert [names for _, *names in runs] == [["genlib"]] * 5
    # The best of several: a busy machine makes single runs slow, never fast.
    assert min(float(seconds) for seconds, *_ in runs) <= 0.1


def star_imports(tree):
    return [
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
    ]


def test_no_star_imports():
    assert star_imports(ast.parse("from math import *"))
    for path in MODULES:
        found = star_imports(ast.parse(path.read_text(encoding="utf-8")))
        assert not found, f"{path}: from {found} import *"


# --- what notebooks show --------------------------------------------------------------


def shown_definitions():
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code" and (marker := sync.read_marker(cell.source)):
                yield from ((path.name, marker[0], name) for name in marker[1])


def test_shown_definitions_fit_a_screen():
    shown = list(shown_definitions())
    assert shown, "no notebook shows library code"
    for notebook, file, name in shown:
        lines = sync.read_module(file)[name].count("\n") + 1
        assert lines <= MAX_LINES, f"{notebook} shows {name}: {lines} lines"


# --- nothing of one machine, and no index of packages ---------------------------------

FORBIDDEN = {
    # A package comes from whatever registry the reader's pip or npm is set up for.
    "a package registry's host": re.compile(
        r"\b(?:files\.)?pythonhosted\.org|\bpypi\.(?:org|python)|registry\.npmjs\.org"
        r"|download\.pytorch\.org|registry\.yarnpkg\.com|\bindex-url\b",
        re.IGNORECASE,
    ),
    "a path of one machine": re.compile(
        r"(?<![\w.~/$}])/(?:home|Users|root|work|tmp/w)/[\w.-]+"
    ),
}
# Python packages for the test's own use write these words on purpose.
EXEMPT = {"tests/test_layout.py", "tests/test_notebooks.py"}


def forbidden(text):
    for what, pattern in FORBIDDEN.items():
        if found := pattern.search(text):
            yield f"{what}: {found[0]!r}"


def test_tracked_files_name_no_machine_and_no_registry():
    problems = []
    for path in tracked_files():
        name = path.relative_to(ROOT).as_posix()
        if name in EXEMPT:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture, weights
        problems += [f"{name}: {problem}" for problem in forbidden(text)]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    "text",
    [
        "see https://pypi.org/project/x",
        "--index-url https://x",
        "https://registry.npmjs.org/axe",
        "saved to /home/ada/x.pt",
    ],
)
def test_a_forbidden_word_is_found(text):
    assert list(forbidden(text))
    assert not list(forbidden("https://a.example/home/x and book/home/y"))


def test_the_lock_file_has_no_addresses():
    lock = json.loads((ROOT / "package-lock.json").read_text())
    assert lock["packages"]
    for name, package in lock["packages"].items():
        assert "resolved" not in package, f"{name} is locked to an address"


def test_no_data_and_no_build_products_are_tracked():
    for path in tracked_files():
        name = path.relative_to(ROOT).as_posix()
        assert not name.startswith(("_build/", "node_modules/", "book/_static/vendor/"))
        assert not re.search(r"\.(gz|npz|pt|pth|pkl|pyc|whl)$", name), name
        most = 3_000_000 if name.endswith(".safetensors") else 2_000_000
        assert path.stat().st_size <= most, f"{name} is over {most:,} bytes"
