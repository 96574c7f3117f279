"""Notebook cells hold the library word for word, and nothing is pasted forward."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tools import notebooks, sync

ROOT = Path(__file__).parents[1]
MODULE = '''\
"""A module."""

import math

# not part of anything

# What a turn is,
# in radians.
TURN = 2 * math.pi  # full circle
A, B = 1, 2
SIZE: int = 3


def half(x):
    """Half of x."""

    return x / 2


# Kept for speed.
@staticmethod
@decorate(
    1
)
class Shape(list):
    side = 1

    def area(self):
        return self.side**2
'''


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A genlib of one module, genlib/shapes.py."""
    monkeypatch.setattr(sync, "ROOT", tmp_path)
    sync.read_module.cache_clear()
    sync.library_names.cache_clear()
    (tmp_path / "genlib").mkdir()
    (tmp_path / "genlib" / "shapes.py").write_text(MODULE)
    yield tmp_path
    sync.read_module.cache_clear()
    sync.library_names.cache_clear()


def notebook(*sources, tags=()):
    cells = [new_code_cell(source) for source in sources]
    for cell in cells:
        cell.metadata.tags = list(tags)
    return new_notebook(cells=cells)


def test_definitions_are_cut_out_whole():
    found = sync.definitions(MODULE)
    assert list(found) == ["TURN", "A", "B", "SIZE", "half", "Shape"]
    assert found["TURN"] == (
        "# What a turn is,\n# in radians.\nTURN = 2 * math.pi  # full circle"
    )
    assert found["A"] == found["B"] == "A, B = 1, 2"
    assert found["half"].startswith("def half(x):")
    assert found["half"].endswith("    return x / 2")
    assert found["Shape"].startswith("# Kept for speed.\n@staticmethod\n@decorate(")
    assert found["Shape"].endswith("return self.side**2")


def test_writes_cells_once(library):
    nb = notebook("# genlib/shapes.py: TURN,half", "print(1)")
    (message,) = sync.sync({"01_a.ipynb": nb})
    assert message.startswith(
        "01_a.ipynb, code cell 1 (# genlib/shapes.py: TURN, half)"
    )
    lines = sync.definitions(MODULE)
    expected = f"# genlib/shapes.py: TURN, half\n{lines['TURN']}\n\n\n{lines['half']}"
    assert nb.cells[0].source == expected
    assert nb.cells[1].source == "print(1)"
    assert sync.sync({"01_a.ipynb": nb}) == []


@pytest.mark.parametrize(
    "change",
    [("x / 2", "x / 3"), ("Half of x", "Half"), ("\n\n    return", "\n    return")],
)
def test_finds_any_change(library, change):
    nb = notebook("# genlib/shapes.py: half")
    sync.sync({"01_a.ipynb": nb})
    nb.cells[0].source = nb.cells[0].source.replace(*change)
    (message,) = sync.sync({"01_a.ipynb": nb})
    assert re.search(r"line \d is '.*', expected '.*'", message)


@pytest.mark.parametrize(
    "marker, words",
    [
        (
            "# genlib/shapes.py: third",
            "genlib/shapes.py defines no 'third'; it defines: ",
        ),
        ("# genlib/forms.py: half", "there is no genlib/forms.py; there are: "),
        ("# genlib/shapes.py: half,", "write the marker as"),
        ("# genlib/shapes.py", "write the marker as"),
        ("# genlib/shapes.py: math", "defines no 'math'"),
    ],
)
def test_a_wrong_marker_is_named(library, marker, words):
    nb = notebook("1", marker)
    with pytest.raises(sync.SyncError, match="01_a.ipynb, code cell 2: ") as error:
        sync.sync({"01_a.ipynb": nb})
    assert words in str(error.value)


def test_setup_cell_is_written(library):
    (library / "_config.yml").write_text("repository:\n  url: https://a.example/b\n")
    nb = notebook("anything", tags=["setup"])
    sync.sync({"01_a.ipynb": nb})
    assert nb.cells[0].source == notebooks.setup_source(sync.repository_url())


def test_setup_source_installs_on_colab_only_and_only_genlib():
    assert "pip" not in notebooks.setup_source()
    lines = notebooks.setup_source("https://a.example/b").splitlines()
    (install,) = [line for line in lines if "pip" in line]
    assert "--no-deps git+https://a.example/b" in install
    assert lines[lines.index(install) - 1] == 'if "google.colab" in sys.modules:'


def test_a_library_name_needs_its_marker(library):
    cells = ["def half(x):\n    return x", "def quarter(x):\n    return x"]
    (message,) = sync.pasted({"01_a.ipynb": notebook(*cells)})
    assert message.startswith(
        "01_a.ipynb, code cell 1: half is a name of genlib/shapes"
    )
    marked = "# genlib/shapes.py: half\ndef half(x):\n    return x"
    assert sync.pasted({"01_a.ipynb": notebook(marked)}) == []


def test_nothing_is_pasted_forward(library):
    first, later = (
        notebook("%time\ndef f():\n    return 1"),
        notebook("def f(): return 1"),
    )
    (message,) = sync.pasted({"01_a.ipynb": first, "02_b.ipynb": later})
    assert message.startswith("02_b.ipynb, code cell 1: f is the same as in 01_a.ipynb")
    other = notebook("def f(): return 2")
    assert sync.pasted({"01_a.ipynb": first, "02_b.ipynb": other}) == []
    shown = notebook("# genlib/shapes.py: half\n...")
    (message,) = sync.pasted({"01_a.ipynb": shown, "02_b.ipynb": shown})
    assert "half of genlib/shapes.py is shown by 01_a.ipynb, code cell 1" in message


def test_notebooks_agree_with_the_library():
    result = subprocess.run(
        [sys.executable, "-m", "tools.sync", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
