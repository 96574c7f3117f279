"""What students get is complete, works, and tells nothing; faults stop a release."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from classroom import at, cell, sample

from tools.course import release
from tools.course.release import ReleaseError, marks, read_key, student_copy
from tools.notebooks import METADATA, SETUP, setup_source

ROOT = Path(__file__).parents[1]
URL = "https://host.example/ada/book"


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Write a notebook as assignment `sample`; its path."""
    monkeypatch.setattr(release, "ASSIGNMENTS", tmp_path / "assignments")
    monkeypatch.setattr(release, "COURSE", tmp_path / "course")
    monkeypatch.setattr(release, "ROOT", tmp_path)
    (tmp_path / "assignments").mkdir()

    def write(book):
        path = tmp_path / "assignments" / "sample.ipynb"
        nbformat.write(book, path)
        return path

    return write


def with_setup():
    """The sample, with the book's set-up cell in front."""
    book = sample()
    book.cells.insert(1, cell("setup", "code", 0, SETUP + "\n\nimport math"))
    return book


def test_a_copy_has_everything_but_the_answers(source):
    key = read_key(source(with_setup()))
    copy = student_copy(key, URL)
    assert [c.id for c in copy.cells] == [c.id for c in key.cells]
    assert json.loads(json.dumps(copy.metadata)) == METADATA
    text = nbformat.writes(copy)
    assert "quotient" not in text and "grows faster" not in text
    assert "measured cubes" not in text and "reference(x))" not in text
    assert "2 points for anything" not in text
    stub = "    # YOUR CODE HERE\n    raise NotImplementedError()"
    assert at(copy, "halve").source == "def halve(x):\n" + stub
    assert at(copy, "words-explain").source == "YOUR ANSWER HERE"
    assert at(copy, "square-hidden").source.startswith("# Hidden checks")
    assert at(copy, "square-hidden").source.count("\n") == 0
    assert at(copy, "square-check").source == at(key, "square-check").source
    assert at(copy, "open").source.endswith("Add your cells below.")


def test_a_copy_is_ready_for_colab(source):
    key = read_key(source(with_setup()))
    setup = at(student_copy(key, URL), "setup").source
    assert setup == setup_source(URL) + "\n\nimport math"
    assert URL in setup and "google.colab" in setup
    assert at(student_copy(key), "setup").source == SETUP + "\n\nimport math"


def test_cells_are_locked(source):
    copy = student_copy(read_key(source(with_setup())))
    for c in copy.cells:
        assert c.metadata["deletable"] is False, c.id
        assert c.metadata.get("editable", True) is bool(marks(c)["solution"]), c.id
        assert len(marks(c)["checksum"]) == 32


def test_outputs_and_other_metadata_are_left_behind(source):
    book = with_setup()
    solution = at(book, "halve")
    solution.outputs = [nbformat.v4.new_output("stream", text="quotient 1.5")]
    solution.execution_count = 7
    solution.metadata["comment"] = "quotient = x / 2"
    book.metadata["authors"] = ["Ada"]
    at(book, "open")["attachments"] = {"a.png": {"image/png": "quotient"}}
    copy = student_copy(read_key(source(book)))
    assert "quotient" not in nbformat.writes(copy) and "Ada" not in nbformat.writes(
        copy
    )


def edit(name, old, new):
    def change(book):
        found = at(book, name)
        assert old in found.source
        found.source = found.source.replace(old, new)

    return change


def unmark(name):
    def change(book):
        found = at(book, name)
        found.source = re.sub(r"(?m)^.*(BEGIN|END) .*$", "", found.source)

    return change


def mark(name, **values):
    return lambda book: marks(at(book, name)).update(values)


@pytest.mark.parametrize(
    "change, says",
    [
        (edit("halve", "### BEGIN", "### BEGINN"), "no pair of marks"),
        (edit("halve", "### END SOLUTION", ""), "no pair of marks"),
        (edit("halve-hidden", "### BEGIN HIDDEN TESTS", ""), "no pair"),
        (
            edit("halve-hidden", "BEGIN HIDDEN TESTS", "BEGIN HIDDEN TEST"),
            "no pair of marks",
        ),
        (edit("halve-hidden", "HIDDEN TESTS", "hidden checks"), "no pair of marks"),
        (edit("halve-hidden", "### END HIDDEN TESTS", ""), "no pair of marks"),
        (unmark("halve-hidden"), "halve-hidden: nothing was taken out"),
        (edit("open", "BEGIN MARK SCHEME", "MARK SCHEME"), "no pair of marks"),
        (edit("open", "END MARK SCHEME", "THE END"), "no pair of marks"),
        (unmark("open"), "open: nothing was taken out"),
        (edit("title", "Two", "`measured = {n: n * n for n in range(4)}`.\nTwo"), None),
        (edit("title", "Two", "measured = {n: n * n for n in range(4)}\nTwo"), "title"),
        (mark("halve", solution=False), "non-solution cell"),
        (mark("words", solution=False), "non-solution cell"),
        (mark("words-explain", solution=False), "nbgrader refuses it"),
        (mark("halve", grade_id="square"), "the grade_id 'square' is used twice"),
        (mark("halve", grade_id=""), "cell 9 has no grade_id"),
        (mark("halve", grade_id="ha lf"), "'ha lf' cannot be a grade_id"),
        (mark("halve-check", points=0), "'halve-check' is graded and has no points"),
        (edit("halve-check", "y =", "%time y ="), "is not plain Python"),
        (edit("setup", "use_style()", "pass"), "does not begin as the book's does"),
    ],
)
def test_a_fault_stops_the_release(source, change, says):
    book = with_setup()
    change(book)
    path = source(book)
    if says is None:  # a hint in other words is no leak
        student_copy(read_key(path))
        return
    with pytest.raises(ReleaseError, match=says) as stopped:
        student_copy(read_key(path))
    assert "\n" not in str(stopped.value)


def test_a_cell_without_metadata_stops_the_release(source):
    book = with_setup()
    book.cells.append(nbformat.v4.new_code_cell("1"))
    with pytest.raises(ReleaseError, match="cell 17 has no grade_id"):
        read_key(source(book))


@pytest.mark.parametrize("text", ["", "{", '{"cells": 1}'])
def test_what_is_no_notebook_stops_the_release(source, text):
    path = source(sample())
    path.write_text(text)
    with pytest.raises(ReleaseError, match="sample.ipynb is no notebook"):
        read_key(path)


def command(monkeypatch, *names):
    monkeypatch.setattr(sys, "argv", ["release", *names])
    release.main()


def test_the_command(source, monkeypatch, capsys, tmp_path):
    source(sample())
    command(monkeypatch)
    printed = capsys.readouterr().out
    assert "sample: 15 cells, 12 points" in printed
    assert "for students: course/release; for those who teach: course/keys" in printed
    student = nbformat.read(tmp_path / "course/release/sample.ipynb", as_version=4)
    assert "quotient" not in nbformat.writes(student)
    key = nbformat.read(tmp_path / "course/keys/sample.ipynb", as_version=4)
    assert "quotient" in nbformat.writes(key)
    counts = [c.execution_count for c in key.cells if c.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


def test_a_key_that_does_not_run_stops_the_release(source, monkeypatch, tmp_path):
    book = sample()
    at(
        book, "halve-check"
    ).source = 'y = halve(3)\nassert y == 2, "a fault in the check"'
    source(book)
    with pytest.raises(
        SystemExit, match="(?s)Nothing was released.*a fault in the check"
    ):
        command(monkeypatch)
    assert not (tmp_path / "course").exists()


def test_a_wrong_name(source, monkeypatch, capsys):
    source(sample())
    with pytest.raises(SystemExit):
        command(monkeypatch, "simple")
    assert "no assignment 'simple'; there are: sample" in capsys.readouterr().err


def test_keys_are_not_in_the_site():
    listed = subprocess.run(
        ["git", "check-ignore", "_build/course/keys/vae.ipynb"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert listed.returncode == 0, "keys could be committed"
    contents = (ROOT / "_toc.yml").read_text("utf-8")
    assert "assignments" not in contents and "course" not in contents
    assert "only_build_toc_files: true" in (ROOT / "_config.yml").read_text("utf-8")
