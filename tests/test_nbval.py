"""The validation of notebooks is strict: one changed output fails exactly its cell."""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tools import notebooks

ROOT = Path(__file__).parents[1]

# One cell for each kind of output that a chapter may have.
CELLS = {
    "result": "(2, 3)",
    "stream": "print('params 82')",
    "truth": "print(0.1 + 0.2 == 0.3)",
    "quiet": "'hidden';",
    "address": "object()",
    "clear": """
        from IPython.display import clear_output, display
        print("before")
        clear_output(wait=True)
        print("after")""",
    "update": """
        handle = display("first", display_id=True)
        handle.update("second");""",
    "figure": """
        import matplotlib.pyplot as plt
        plt.plot([1, 2]);""",
    "slider": """
        import ipywidgets
        ipywidgets.IntSlider(value=3)""",
    "captured": """
        output = ipywidgets.Output()
        with output:
            print("inside")
        print("outside")""",
    "interact": """
        ipywidgets.interact(lambda a: print(a), a=(0, 4));""",
    "error": "1 / 0",
    "poster": """
        from IPython.display import HTML
        HTML('<img alt="Four" src="data:image/png;base64,iVBORw0KGgoAAA==">')""",
}


def dedent(source):
    return re.sub(r"^ {8}", "", source.strip("\n"), flags=re.MULTILINE)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The cells above as `make notebooks` stores them."""
    cells = [new_code_cell(dedent(source)) for source in CELLS.values()]
    cells[list(CELLS).index("error")].metadata.tags = ["raises-exception"]
    path = tmp_path_factory.mktemp("toy") / "toy.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    return nbformat.reads(notebooks.execute(path, cell_timeout=20), as_version=4)


def validate(tmp_path, *variants):
    """Run nbval as `make test` does; the names of the failed cells of each variant."""
    for number, notebook in enumerate(variants):
        nbformat.write(notebook, tmp_path / f"toy_{number}.ipynb")
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-c", os.devnull]
    command += ["--rootdir", tmp_path, "-p", "no:cacheprovider", "--nbval", "-q"]
    command += ["--nbval-current-env", "--nbval-sanitize-with", "tests/sanitize.cfg"]
    command += ["--nbval-cell-timeout", "60", "-rf", tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = re.findall(r"^FAILED .*toy_(\d+)\.ipynb::Cell (\d+)", result.stdout, re.M)
    assert " passed" in result.stdout, result.stdout + result.stderr
    names = list(CELLS)
    return [
        [names[int(cell)] for toy, cell in found if int(toy) == number]
        for number in range(len(variants))
    ]


def test_each_planted_fault_fails_its_cell_and_no_other(executed, tmp_path):
    def never_executed(cell):
        cell.outputs, cell.execution_count = [], None

    def reply(text):
        def change(cell):
            output = cell.outputs[0]
            if output.output_type == "stream":
                output.text = text
            else:
                output.data["text/plain"] = text

        return change

    faults = {
        "result": reply("(2, 4)"),
        "stream": reply("params 83\n"),
        "truth": reply("True\n"),
        "quiet": never_executed,
        "address": reply("<other at 0x7f0000000000>"),
        "clear": reply("before\nafter\n"),
        "update": reply("'first'"),
        "figure": lambda cell: cell.outputs.clear(),
        "slider": reply("IntSlider(value=4)"),
        "captured": reply("inside\noutside\n"),
        "interact": lambda cell: cell.outputs[0].data.update({"text/plain": "other"}),
        "error": lambda cell: cell.outputs[0].update(evalue="another"),
        "poster": lambda cell: cell.outputs[0].data.update({"text/html": "no image"}),
    }
    assert faults.keys() == CELLS.keys()
    # Half of the faults in one notebook, half in another: two kernels are enough.
    halves = []
    for part in (0, 1):
        notebook = copy.deepcopy(executed)
        for name in list(CELLS)[part::2]:
            faults[name](notebook.cells[list(CELLS).index(name)])
        halves.append(notebook)
    right, first, second = validate(tmp_path, executed, *halves)
    assert right == []
    assert first == list(CELLS)[0::2]
    assert second == list(CELLS)[1::2]
