"""Every assignment: its format, and what its key, its blank and its mistakes earn."""

import ast
import json
import re
import tomllib
from html import escape
from pathlib import Path

import classroom
import nbformat
import pytest
from classroom import at
from test_grade import parts_of, quick_gradebooks, table, walls  # noqa: F401

from tools.course import grade, release
from tools.course.checks import asserts
from tools.course.release import is_answer, is_check, marks
from tools.notebooks import METADATA, setup_source

ROOT = Path(__file__).parents[1]
STEMS = release.stems()
NOTEBOOKS = {path.stem[3:] for path in (ROOT / "notebooks").glob("*.ipynb")}

# A function that gives back objects which agree with everything.
LIAR = """\
class Liar:
    def __getattr__(self, name):
        return self

    def __call__(self, *given, **named):
        return self

    def __iter__(self):
        return iter([self] * 4)

    def __getitem__(self, key):
        return self

    def __len__(self):
        return 2

    def __float__(self):
        return 0.0

    def __int__(self):
        return 0

    def __bool__(self):
        return True


for _name in "eq ne lt gt le ge and or contains".split():
    setattr(Liar, f"__{_name}__", lambda self, *other: True)
for _name in "add radd sub rsub mul rmul truediv rtruediv pow neg abs matmul".split():
    setattr(Liar, f"__{_name}__", lambda self, *other: self)
"""
LIES = {
    "object": LIAR,
    "tensor": LIAR.replace("class Liar:", "class Liar(_torch.Tensor):").replace(
        "    def __getattr__(self, name):\n        return self\n\n",
        "    def __torch_function__(self, function, types, args=(), kwargs=None):\n"
        "        return Liar()\n\n",
    ),
}


def key_of(stem):
    return release.read_key(release.ASSIGNMENTS / f"{stem}.ipynb")


def mistakes_of(stem):
    path = ROOT / "tests" / "mistakes" / f"{stem}.toml"
    return tomllib.loads(path.read_text("utf-8"))["mistake"]


def test_there_are_assignments():
    assert STEMS


# --- format ---------------------------------------------------------------------------


@pytest.mark.parametrize("stem", STEMS)
def test_format(stem):
    path = release.ASSIGNMENTS / f"{stem}.ipynb"
    assert stem in NOTEBOOKS, "no chapter has this stem"
    book = nbformat.read(path, as_version=4)
    assert json.loads(json.dumps(book.metadata)) == METADATA
    assert 20 <= len(book.cells) <= 50
    key = key_of(stem)
    release.student_copy(key)
    names = [cell.id for cell in key.cells]
    assert names[:2] == ["title", "setup"]
    assert key.cells[1].source.startswith(setup_source())
    for cell in book.cells:
        name = marks(cell)["grade_id"]
        assert set(cell.metadata) <= {"nbgrader", "mystnb"}, name
        assert marks(cell)["schema_version"] == 3, name
        if cell.cell_type == "code":
            assert cell.source.count("\n") < 40, f"{name} is over 40 lines"
            assert not cell.outputs and cell.execution_count is None, name
    auto = sum(marks(c)["points"] for c in key.cells if is_check(c))
    hand = sum(marks(c)["points"] for c in key.cells if is_answer(c))
    assert 20 <= auto + hand <= 45
    assert 0.45 <= auto / (auto + hand) <= 0.7
    hidden = [name for name in names if name.endswith("-hidden")]
    assert len(hidden) >= 3, "at least three parts are built and have hidden checks"
    assert sum(bool(marks(c).get("task")) for c in key.cells) == 1
    for cell in filter(is_answer, key.cells):
        if not marks(cell).get("task"):
            assert "**Rubric**" in cell.source, f"{cell.id} has no rubric"


@pytest.mark.parametrize("stem", STEMS)
def test_checks_can_be_turned_round(stem):
    for cell in filter(is_check, key_of(stem).cells):
        tree = ast.parse(cell.source)
        assert asserts(tree), f"{cell.id}: no assert that surely runs"
        for node in ast.walk(tree):
            if isinstance(node, ast.Assert):
                assert node.msg is not None, f"{cell.id}: an assert without a message"


@pytest.mark.parametrize("stem", STEMS)
def test_mistakes_are_well_formed(stem):
    key, planted = key_of(stem), mistakes_of(stem)
    points = {c.id: marks(c)["points"] for c in key.cells if is_check(c)}
    assert len(planted) >= 5
    assert len({m["name"] for m in planted}) == len(planted)
    for mistake in planted:
        assert at(key, mistake["cell"]).source.count(mistake["old"]) == 1, mistake[
            "name"
        ]
        assert mistake["lost"], mistake["name"]
        for name, lost in mistake["lost"].items():
            assert points[name] == lost, mistake["name"]
    subtle = [m for m in planted if all(n.endswith("-hidden") for n in m["lost"])]
    assert subtle, "no mistake is caught by hidden checks alone"


# --- what they earn -------------------------------------------------------------------


def together(planted):
    """Groups of mistakes that can be in one submission: no cell is in two of them."""
    groups = []
    for mistake in planted:
        touched = {mistake["cell"], *mistake["lost"]}
        for cells, group in groups:
            if not cells & touched:
                cells |= touched
                group.append(mistake)
                break
        else:
            groups.append((touched, [mistake]))
    return [group for _, group in groups]


def lying(key, lie):
    """The blank copy, but its functions and classes are liars."""
    book = release.student_copy(key)
    for cell in book.cells:
        if cell.cell_type == "code" and marks(cell).get("solution"):
            source = at(key, marks(cell)["grade_id"]).source
            names = [
                node.name
                for node in ast.parse(source).body
                if isinstance(node, ast.FunctionDef | ast.ClassDef)
            ]
            liars = "".join(
                f"\n\n\ndef {n}(*given, **named):\n    return Liar()" for n in names
            )
            cell.source = f"import torch as _torch\n\n\n{lie}{liars}"
    return book


@pytest.fixture(scope="module", params=STEMS)
def sent(request, walls, tmp_path_factory):  # noqa: F811
    """One assignment, graded: (key, groups of mistakes, rows, parts, out)."""
    stem = request.param
    folder, out = (tmp_path_factory.mktemp(f"{stem}-{n}") for n in ("sent", "out"))
    key = key_of(stem)
    groups = together(mistakes_of(stem))
    books = {"key": classroom.solved(key), "blank": release.student_copy(key)}
    books |= {f"liar-{name}": lying(key, lie) for name, lie in LIES.items()}
    for number, group in enumerate(groups):
        book = books[f"mistakes-{number}"] = classroom.solved(key)
        for mistake in group:
            cell = at(book, mistake["cell"])
            cell.source = cell.source.replace(mistake["old"], mistake["new"])
    for student, book in books.items():
        nbformat.write(book, folder / f"{student}_{stem}.ipynb")
    slow = ["--cell-timeout", "200", "--timeout", "900"]  # a machine that tests much
    grade.main([str(folder), "--assignment", stem, "--out", str(out), *slow])
    rows = {row["student"]: row for row in table(out / "grades.csv")}
    return key, groups, rows, parts_of(out), out


def lost_by(sent, student):
    """{check: points lost}."""
    key, _, _, parts, _ = sent
    most = {c.id: marks(c)["points"] for c in key.cells if is_check(c)}
    lost = {name: m - float(parts[student, name]["score"]) for name, m in most.items()}
    return {name: points for name, points in lost.items() if points}


def test_the_key_scores_full(sent):
    row = sent[2]["key"]
    assert lost_by(sent, "key") == {}
    assert row["status"] == "manual" and not row["reason"]
    assert row["auto_score"] == row["auto_max"]


def test_the_blank_scores_zero(sent):
    row = sent[2]["blank"]
    assert (row["score"], row["status"], row["manual_pending"]) == ("0", "graded", "0")


def test_each_mistake_loses_its_own_points_and_is_explained(sent):
    _, groups, _, parts, out = sent
    for number, group in enumerate(groups):
        student = f"mistakes-{number}"
        lost = {name: m for mistake in group for name, m in mistake["lost"].items()}
        assert lost_by(sent, student) == lost, [mistake["name"] for mistake in group]
        page = (out / "feedback" / f"{student}.html").read_text("utf-8")
        for mistake in group:
            said = [parts[student, name]["message"] for name in mistake["lost"]]
            found = [message for message in said if mistake["says"] in message]
            assert found, f"{mistake['name']}: {said}"
            assert escape(mistake["says"]) in page


@pytest.mark.parametrize("lie", LIES)
def test_objects_that_agree_with_everything_earn_nothing(sent, lie):
    assert sent[2][f"liar-{lie}"]["auto_score"] == "0", {
        name: part["message"]
        for (who, name), part in sent[3].items()
        if who == f"liar-{lie}"
    }


def test_feedback_shows_no_line_of_the_key(sent):
    key, _, _, _, out = sent
    page = (out / "feedback" / "blank.html").read_text("utf-8")
    shown = {
        line.strip()
        for c in release.student_copy(key).cells
        for line in c.source.splitlines()
    }
    for cell in key.cells:
        _, secret = release.split_secrets(cell)
        for line in {line.strip() for line in secret} - shown:
            if len(line) >= release.SHORT and not re.fullmatch(r"[\W_]+", line):
                assert escape(line) not in page, cell.id
