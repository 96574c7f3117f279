"""`make notebooks`: what is executed, what is stored, and what a failure leaves."""

import base64
import io
import json
import os
import subprocess
import sys
import time

import matplotlib
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from tools import notebooks


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of notebooks, with stamps of its own."""
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(notebooks, "STAMPS", tmp_path / "build" / "notebooks.json")
    return tmp_path


def write(folder, name, *sources):
    path = folder / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(s) for s in sources]), path)
    return path


def test_stores_outputs_twice_alike_and_then_has_nothing_to_do(folder, capsys):
    source = "import matplotlib.pyplot as plt\nprint(2 + 2)\nplt.plot([1, 3])"
    path = write(folder, "01_a", "import os\nos.environ['OMP_NUM_THREADS']", source)
    assert notebooks.select([], everything=False) == [path]
    assert notebooks.run(path) is None
    assert capsys.readouterr().out.startswith("01_a.ipynb: ")
    stored = path.read_bytes()
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].outputs[0].data["text/plain"] == "'1'"
    assert {o.output_type for o in cells[1].outputs} == {
        "execute_result",
        "stream",
        "display_data",
    }
    assert notebooks.select([], everything=False) == []
    assert notebooks.select([], everything=True) == [path]
    assert notebooks.run(path) is None
    assert path.read_bytes() == stored


def test_a_failing_cell_is_named_and_the_old_file_stays(folder):
    path = write(
        folder, "01_a", "1", "print('fine')\nraise ValueError('no such glyph')"
    )
    before = path.read_bytes()
    problem = notebooks.run(path)
    assert problem.startswith("01_a.ipynb: code cell 2: ValueError: no such glyph")
    assert "the stored file is unchanged" in problem
    assert path.read_bytes() == before
    assert list(folder.glob("*.partial")) == []


def test_a_dead_kernel_is_named(folder):
    # The word that a cell has begun must get out before the kernel dies.
    path = write(folder, "01_a", "1", "import os, time\ntime.sleep(2)\nos._exit(3)")
    problem = notebooks.run(path)
    assert "code cell 2 was the last to start: DeadKernelError" in problem


def test_a_hanging_notebook_ends_and_leaves_no_kernel(folder, monkeypatch):
    monkeypatch.setattr(notebooks, "TIMEOUT", 8)
    pid = folder / "pid"
    hang = f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\n"
    path = write(folder, "01_a", hang + "time.sleep(600)")
    assert "01_a.ipynb: not done after 8 s" in notebooks.run(path)
    for _ in range(100):  # the kernel looks for its parent every second or so
        try:
            os.kill(int(pid.read_text()), 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the kernel of a notebook that was stopped is still running")


def test_unknown_names_are_refused(folder):
    path = write(folder, "01_data", "1")
    for name in ("01_data", "data", "notebooks/01_data.ipynb"):
        assert notebooks.select([name], everything=False) == [path]
    with pytest.raises(ValueError, match="no notebook '02_gan'; there are: 01_data"):
        notebooks.select(["02_gan"], everything=False)
    command = [sys.executable, "-m", "tools.notebooks", "no_such_chapter"]
    result = subprocess.run(command, cwd=notebooks.ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "no notebook 'no_such_chapter'" in result.stderr


def test_what_counts_as_a_change(folder, tmp_path, monkeypatch):
    library = tmp_path / "library"
    (library / "genlib").mkdir(parents=True)
    monkeypatch.setattr(notebooks, "ROOT", library)
    for name, text in {
        "__init__": "",
        "shapes": "from genlib import units\n",
        "units": "TURN = 6.28\n",
        "other": "",
    }.items():
        (library / "genlib" / f"{name}.py").write_text(text)
    cells = [new_markdown_cell("Prose."), new_code_cell("%time\nimport genlib.shapes")]
    path = folder / "01_a.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    first = notebooks.fingerprint(path)

    (library / "genlib" / "other.py").write_text("x = 1\n")
    cells[0].source = "Better prose."
    nbformat.write(new_notebook(cells=cells), path)
    assert notebooks.fingerprint(path) == first

    (library / "genlib" / "units.py").write_text("TURN = 6.283\n")
    second = notebooks.fingerprint(path)
    assert second != first
    cells[1].outputs = [new_output("stream", text="by hand")]
    nbformat.write(new_notebook(cells=cells), path)
    assert notebooks.fingerprint(path) != second


def test_normal_form_keeps_what_a_reader_sees_and_nothing_else():
    data = {
        "text/plain": "<Axes at 0x7f3a12345678>",
        "text/html": "<b>poster</b>",
        notebooks.WIDGET_VIEW: {"model_id": "3f"},
    }
    cell = new_code_cell("f()  ", execution_count=7, id="random")
    cell.metadata.update(tags=["setup"], execution={"busy": "2026"}, collapsed=True)
    cell.outputs = [
        new_output("stream", text="a", name="stdout"),
        new_output("stream", text="b", name="stdout"),
        new_output("stream", text="c", name="stderr"),
        new_output("execute_result", data, execution_count=7),
    ]
    notebook = new_notebook(cells=[cell, new_code_cell("f()")])
    notebook.metadata.widgets = {"state": {}}
    notebook.metadata.kernelspec = {"name": "mine", "display_name": "x"}
    notebooks.normalise(notebook, notebooks.read_patterns())
    stored = json.loads(nbformat.writes(notebook))
    assert stored["metadata"] == notebooks.METADATA
    first, second = stored["cells"]
    assert (first["execution_count"], second["execution_count"]) == (1, 2)
    assert first["metadata"] == {"tags": ["setup"]}
    assert second["id"] == first["id"] + "1"
    a, b, result = first["outputs"]
    assert (a["text"], b["text"], b["name"]) == (["ab"], ["c"], "stderr")
    assert result["execution_count"] == 1
    assert result["data"] == {
        "text/plain": ["<Axes at 0xADDRESS>"],
        "text/html": ["<b>poster</b>"],
    }


def test_a_stored_picture_is_small_and_the_same():
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots()
    axes.scatter(*np.random.default_rng(0).normal(size=(2, 500)), c=range(500))
    file = io.BytesIO()
    figure.savefig(file, format="png")
    plt.close(figure)
    png = notebooks.shrink_png(file.getvalue())
    assert len(png) < 0.5 * len(file.getvalue())
    assert b"Software" in file.getvalue() and b"Software" not in png
    before = np.asarray(Image.open(file).convert("RGB"), int)
    after = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int)
    assert abs(before - after).max() <= 32
    assert abs(before - after).mean() < 1
    assert notebooks.shrink_png(png) == png
    # Where 256 colours do not do, all are kept.
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG", dpi=(96, 96))
    kept = notebooks.shrink_png(file.getvalue())
    assert (np.asarray(Image.open(io.BytesIO(kept))) == noise).all()
    assert notebooks.shrink_png(kept) == kept != file.getvalue()
    assert base64.b64encode(png).startswith(b"iVBORw0KGgo")


def test_a_cell_that_got_lost_once_is_run_again(folder):
    mark = folder / "was_here"
    source = f"""import pathlib, time
        mark = pathlib.Path({str(mark)!r})
        first = not mark.exists()
        mark.touch()
        time.sleep(60 if first else 0)
        print("done")"""
    path = write(folder, "01_a", "\n".join(map(str.strip, source.splitlines())))
    stored = nbformat.reads(notebooks.execute(path, cell_timeout=5), as_version=4)
    assert stored.cells[0].outputs[0].text == "done\n"


def test_a_cell_that_never_ends_is_named(folder, monkeypatch):
    monkeypatch.setattr(notebooks, "ATTEMPTS", 1)
    path = write(folder, "01_a", "1", "import time\ntime.sleep(60)")
    with pytest.raises(SystemExit, match="code cell 2 was the last to start: not done"):
        notebooks.execute(path, cell_timeout=3)
