"""A class is graded: right, wrong, hostile and broken submissions, in one command."""

import contextlib
import csv
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import classroom
import nbformat
import psutil
import pytest
from classroom import AUTO, BODIES, CELLS, CHECKS, MANUAL, at, sample, solved

from conftest import axe, require_or_skip
from tools.course import checks, grade, release, sandbox, submissions
from tools.course.release import ReleaseError, graded_copy, marks, student_copy

ROOT = Path(__file__).parents[1]
FAST = ["--cell-timeout", "5", "--timeout", "60", "--memory", "1500"]
SECRET = "negative numbers are halved wrongly"  # in a hidden check


@pytest.fixture(scope="session")
def walls():
    """Skips where kernels cannot be walled in."""
    try:
        sandbox.check_sandbox()
    except sandbox.SandboxError as error:
        require_or_skip("sandbox", str(error))


@pytest.fixture(scope="session", autouse=True)
def quick_gradebooks():
    """nbgrader asks a program for the version of each new gradebook: once is enough."""
    import nbgrader.api

    patch = pytest.MonkeyPatch()
    ask = functools.cache(nbgrader.api.get_alembic_version)
    patch.setattr(nbgrader.api, "get_alembic_version", ask)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A folder of assignments in place of the book's: `sample`, and `other`."""
    folder = tmp_path_factory.mktemp("assignments")
    nbformat.write(sample(), folder / "sample.ipynb")
    other = sample()
    for cell in other.cells:
        if cell.id not in ("title", "start"):
            marks(cell)["grade_id"] = cell.id = f"other-{cell.id}"
    nbformat.write(other, folder / "other.ipynb")
    patch = pytest.MonkeyPatch()
    patch.setattr(release, "ASSIGNMENTS", folder)
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def key(course):
    return release.read_key(course / "sample.ipynb")


def run(folder, out, *more):
    """Grade a folder; {student: row of grades.csv}."""
    grade.main([str(folder), "--assignment", "sample", "--out", str(out), *FAST, *more])
    return {row["student"]: row for row in table(out / "grades.csv")}


def table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def parts_of(out):
    """{(student, cell): row of parts.csv}."""
    return {(row["student"], row["cell"]): row for row in table(out / "parts.csv")}


def send(folder, student, book):
    """Put a student's notebook into the folder of submissions."""
    text = book if isinstance(book, str) else nbformat.writes(book)
    path = folder / student / "sample.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    return path


# --- the class ------------------------------------------------------------------------

# body of `square` or `halve` -> the exact message that its check must give
PRYING = {
    # the course's files, others' submissions, results
    "files": (
        "import os\nfound = []\n"
        "for top, folders, names in os.walk('/'):\n"
        "    folders[:] = [f for f in folders if f not in {lib!r}]\n"
        "    found += [n for n in names if n.endswith({ends!r})]\n"
        "raise ValueError(f'found {{found}}')",
        "ValueError: found []",
    ),
    "writer": (
        "import os, pathlib\nwrote = []\n"
        "for place in {places!r}:\n"
        "    try:\n"
        "        pathlib.Path(place, 'PWNED').write_text('100')\n"
        "        wrote.append(place)\n"
        "    except OSError:\n        pass\n"
        "raise ValueError(f'wrote to {{wrote}}')",
        "ValueError: wrote to []",
    ),
    "network": (
        "import socket\nreached = []\n"
        "for address in (('127.0.0.1', {port}), ('8.8.8.8', 53)):\n"
        "    try:\n"
        "        socket.create_connection(address, 2).sendall(b'hidden checks')\n"
        "        reached.append(address)\n"
        "    except OSError:\n        pass\n"
        "raise ValueError(f'reached {{reached}}')",
        "ValueError: reached []",
    ),
    "neighbours": (
        "import os\n"
        "own = [n for n in os.listdir('/proc') if n.isdigit()]\n"
        "import pathlib\n"
        "names = [pathlib.Path('/proc', n, 'comm').read_text().strip() for n in own]\n"
        "raise ValueError(sorted(set(names) - {{'bwrap', 'python', 'python3'}}))",
        "ValueError: []",
    ),
    "rights": (
        "import os\nstatus = open('/proc/self/status').read()\n"
        "import re\ncaps = re.search(r'CapEff:\\s*(\\w+)', status)[1]\n"
        "raise ValueError([int(caps, 16), os.getuid() == 0, 'SECRET' in os.environ])",
        "ValueError: [0, False, False]",
    ),
    "disk": (
        "with open('/tmp/full', 'wb') as file:\n"
        "    for n in range(2000):\n"
        "        file.write(bytes(2**20))\n"
        "raise ValueError('room for 2 GB')",
        "OSError: [Errno 28] No space left on device",
    ),
}
# body of `halve`: it looks for the source of the hidden check that calls it
SPY = """\
import gc, linecache, sys
shell, seen = get_ipython(), []
seen += [str(globals().get(n)) for n in ("In", "_ih", "_i", "_ii")]
seen += [str(shell.kernel.get_parent()), str(linecache.cache)]
seen += [str(shell.history_manager.input_hist_raw)]
seen += [text for text in gc.get_objects() if isinstance(text, str)]
frame = sys._getframe()
while frame:
    seen += [str(v) for v in list(frame.f_locals.values()) if isinstance(v, str)]
    frame = frame.f_back
word = "assert y == -" + "3.5"
found = [text for text in seen if word in text]
raise ValueError(f"read {len(found)} times")"""


def prying(out, port):
    """The sources of PRYING, for where results are and who listens."""
    here = [str(ROOT), str(out), os.path.expanduser("~"), "/etc", "/usr/lib"]
    fill = {
        "lib": ["usr", "proc", "sys", "site-packages", "lib"],
        "ends": (".ipynb", ".toml", ".csv", ".db", "test_grade.py", "Makefile"),
        "places": here,
        "port": port,
    }
    return {name: body.format(**fill) for name, (body, _) in PRYING.items()}


@pytest.fixture(scope="module")
def listener():
    """(port, list of those who connected) of a server on this machine."""
    callers = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen():
            while True:
                try:
                    callers.append(server.accept()[1])
                except OSError:
                    return

        threading.Thread(target=listen, daemon=True).start()
        yield server.getsockname()[1], callers
        server.shutdown(socket.SHUT_RDWR)


def students(key, out, port):
    """{student: notebook} of a class."""
    wrong = {"square": "return float(x)", "halve": "return float(x // 2)"}
    books = {
        "anna": solved(key),
        "Zoë Ünal (2)": solved(key),
        "blank": student_copy(key),
    }
    for name, body in wrong.items():
        books[f"mistake-{name}"] = classroom.with_body(key, name, body)
    for name, body in BODIES.items():
        books[f"body-{name}"] = classroom.with_body(key, "square", body)
    for name, code in CELLS.items():
        book = classroom.with_cell(key, code, after="start")
        at(book, "square").source = "def square(x):\n    return 1.0"
        books[f"cell-{name}"] = book
    for name, body in prying(out, port).items():
        books[f"pry-{name}"] = classroom.with_body(key, "square", body)
    books["pry-source"] = classroom.with_body(key, "halve", SPY)
    books["cell-dies"] = classroom.with_cell(key, "import os\nos._exit(1)", "halve")
    books["cell-loops"] = classroom.with_cell(key, "while True:\n    pass", "halve")
    books["cell-score"] = classroom.with_cell(
        key, "print('score: 7/7')\nimport sys\nsys.displayhook = print\n100", "start"
    )
    renamed = solved(key)
    at(renamed, "square").source = "def sqare(x):\n    return float(x * x)"
    broken = solved(key)
    at(broken, "halve").source = "def halve(x)\n    return x / 2"
    edited = classroom.with_body(key, "square", "return 1.0")
    at(edited, "square-check").source = "2"
    at(edited, "square-hidden").source = "print('ok')\n2.0"
    raised = classroom.with_body(key, "square", "return 1.0")
    marks(at(raised, "halve-check"))["points"] = 1000
    return books | {
        "renamed": renamed,
        "broken": broken,
        "edited": edited,
        "points": raised,
        "no-check": classroom.without(solved(key), "square-check", "halve-hidden"),
        "no-solution": classroom.without(solved(key), "halve"),
        "no-start": classroom.without(solved(key), "start", "title"),
    }


@pytest.fixture(scope="module")
def graded(walls, key, tmp_path_factory, listener, request):
    """The class, graded in one command: (rows, parts, folder of results, seconds)."""
    folder = tmp_path_factory.mktemp("class")
    out = tmp_path_factory.mktemp("graded")
    patch = pytest.MonkeyPatch()
    patch.setenv("SECRET", "of the grader")
    for student, book in students(key, out, listener[0]).items():
        send(folder, student, book)
    start = time.monotonic()
    rows = run(folder, out)
    seconds = time.monotonic() - start
    patch.undo()
    print(f"{len(rows)} submissions in {seconds:.0f} s")
    return rows, parts_of(out), out, seconds


def points(graded, student):
    """{check: points} of a student."""
    return {name: float(graded[1][student, name]["score"]) for name in CHECKS}


def without_square():
    return CHECKS | {"square-check": 0, "square-hidden": 0}


def test_the_whole_class_gets_a_row_and_a_page(graded, key, listener):
    rows, _, out, _ = graded
    assert set(rows) == set(students(key, out, 0))
    pages = list((out / "feedback").iterdir())
    assert len(pages) == len(rows)
    for row in rows.values():
        assert row["status"] in ("graded", "manual", "tampered")
        assert row["max"] == str(AUTO + MANUAL)
        assert float(row["score"]) == float(row["auto_score"])  # nothing by hand yet


@pytest.mark.parametrize("student", ["anna", "Zoë Ünal (2)", "cell-score"])
def test_the_key_scores_full(graded, student):
    row = graded[0][student]
    assert points(graded, student) == CHECKS
    assert (row["auto_score"], row["status"]) == (str(AUTO), "manual")
    assert row["manual_pending"] == "3"  # an answer; nothing below the open task
    assert not row["reason"]


def test_the_blank_scores_zero_and_waits_for_nobody(graded):
    row = graded[0]["blank"]
    assert (row["score"], row["manual_pending"], row["status"]) == ("0", "0", "graded")
    assert "Not written yet" in graded[1]["blank", "square-check"]["message"]


@pytest.mark.parametrize(
    "student, lost, says",
    [
        ("mistake-square", {"square-check", "square-hidden"}, "the square of 3 is not"),
        ("mistake-halve", {"halve-check", "halve-hidden"}, "half of 3 is something"),
        ("renamed", {"square-check", "square-hidden"}, "'square' is not defined"),
        ("broken", {"halve-check", "halve-hidden"}, "'halve' is not defined"),
        ("edited", {"square-check", "square-hidden"}, "the square of 3 is not 1.0"),
        ("points", {"square-check", "square-hidden"}, "the square of 3 is not 1.0"),
        ("no-check", set(), ""),
        ("no-start", set(), ""),
        ("no-solution", {"halve-check", "halve-hidden"}, "'halve' is not defined"),
        ("cell-dies", set(), ""),
        ("cell-loops", set(), ""),
    ],
)
def test_a_wrong_part_loses_its_own_points(graded, student, lost, says):
    assert points(graded, student) == {
        name: 0 if name in lost else most for name, most in CHECKS.items()
    }
    if says:
        first = min(lost)
        assert says in graded[1][student, first]["message"]
    row = graded[0][student]
    assert row["status"] == "manual"
    for name, noted in (
        ("edited", "changed, and graded as released: square-check, square-hidden"),
        ("no-check", "deleted: square-check, halve-hidden"),
        ("no-solution", "deleted: halve"),
        ("no-start", "deleted: start"),
    ):
        assert (noted in row["reason"]) == (name == student)


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_function_harms_only_its_own_part(graded, name):
    student = f"body-{name}"
    if name == "shadow":  # it reaches into the check itself
        assert graded[0][student]["status"] == "tampered"
        assert not any(points(graded, student).values())
    else:
        assert points(graded, student) == without_square()
        assert graded[1][student, "square-check"]["message"]
    if name == "loop":  # stopped, and not killed
        said = graded[1][student, "square-check"]["message"]
        assert said.startswith("Not done after 5 s. Does a loop never end, or")


@pytest.mark.parametrize("name", CELLS)
def test_hostile_code_earns_nothing(graded, name):
    student = f"cell-{name}"
    got = points(graded, student)
    assert got["square-check"] == got["square-hidden"] == 0
    sly = {"eraser", "reference", "hider", "isinstance", "nothing"}
    if name not in sly:
        row = graded[0][student]
        assert row["status"] == "tampered"
        assert row["auto_score"] == "0"
        ended = name in ("success", "runner", "answers", "expressions")
        why = "the check did not come to its end" if ended else "this was changed"
        assert re.match(rf"\w+-\w+: {why}", row["reason"])
    elif name != "nothing":  # without effect: nothing else is lost
        assert got == without_square()


@pytest.mark.parametrize("name", PRYING)
def test_the_sandbox_shows_nothing(graded, listener, name):
    student = f"pry-{name}"
    assert graded[1][student, "square-check"]["message"] == PRYING[name][1]
    assert points(graded, student) == without_square()
    assert not listener[1], "somebody got out"
    assert not list(graded[2].rglob("PWNED"))


def test_the_source_of_a_hidden_check_is_nowhere(graded):
    message = graded[1]["pry-source", "halve-hidden"]["message"]
    assert message == "ValueError: read 0 times"


def test_no_process_is_left(graded):
    """Ours, or orphans: tests beside this one may be grading."""
    orphans = [p for p in psutil.process_iter() if p.ppid() == 1]
    left = []
    for process in (*psutil.Process().children(recursive=True), *orphans):
        with contextlib.suppress(psutil.Error):
            left += [process.cmdline()]
    assert not [name for name in left if f"{sandbox.SOCKETS}.json" in name]


# --- what a student sees --------------------------------------------------------------


def page(graded, student):
    name = grade.file_names(list(graded[0]))[student]
    return (graded[2] / "feedback" / f"{name}.html").read_text("utf-8")


def test_feedback_says_what_is_wrong_and_not_the_answer(graded, key):
    text = page(graded, "mistake-square")
    assert "the square of 3 is not 3.0" in text
    assert "1. Squares" in text and "hidden checks" in text
    assert "return float(x)" in text  # what the student wrote
    assert '<p class="total">4 of 12 points</p>' in text
    assert "Waits for a person." in text


@pytest.mark.parametrize("student", ["anna", "blank", "cell-reference", "pry-source"])
def test_feedback_tells_no_secret(graded, key, student):
    text = page(graded, student)
    assert "HIDDEN" not in text and "MARK SCHEME" not in text
    assert "math.isclose(y, reference" not in text and "-3.5" not in text
    assert "A square grows faster" not in text and "Rubric" not in text
    if student == "blank":
        assert "quotient = x / 2" not in text and "x * x" not in text


def test_feedback_is_one_page_without_scripts(graded):
    for path in (graded[2] / "feedback").iterdir():
        text = path.read_text("utf-8")
        assert not re.search(r"<script|<link|<img|https?:|url\(", text), path.name


def test_feedback_is_accessible(graded, browser):
    for student in ("mistake-square", "cell-isclose"):
        for scheme in ("light", "dark"):
            context = browser.new_context(color_scheme=scheme)
            tab = context.new_page()
            tab.set_content(page(graded, student))
            assert not axe(tab, f"{student}, {scheme}")
            context.close()


def test_executed_copies_have_outputs_for_the_person(graded):
    name = grade.file_names(list(graded[0]))["body-flood"]
    path = graded[2] / "executed" / f"{name}.ipynb"
    assert path.stat().st_size < 200_000
    score = nbformat.read(graded[2] / "executed" / "cell-score.ipynb", as_version=4)
    printed = [o.text for c in score.cells for o in c.get("outputs", []) if "text" in o]
    assert "score: 7/7" in printed[0]


# --- layers of evidence, each alone ---------------------------------------------------


def run_here(key, book, kind=checks.Run, **limits):
    cells = [
        submissions.Cell(c.cell_type, c.source, marks(c).get("grade_id", ""))
        for c in book.cells
    ]
    notebook, _ = submissions.restore(graded_copy(key), student_copy(key), cells)
    limits = {"cell": 5, "total": 60, "memory": 1500} | limits
    return kind(notebook, sandbox.Limits(**limits)).go()


def hostile(key, code):
    book = classroom.with_cell(key, code, after="start")
    at(book, "square").source = "def square(x):\n    return 1.0"
    return book


class Blind(checks.Run):
    """Sees no change of the library."""

    def marks(self, source):
        return "'{}'"


def test_a_check_that_cannot_fail_is_found_by_turning_it_round(walls, key):
    done = run_here(key, hostile(key, CELLS["unpacker"]), Blind)
    assert done.tampered == "square-check: the check also passes where it must not"
    assert done.passed == []


def test_a_blind_grader_is_fooled_by_a_changed_library(walls, key):
    """What the marks are for: without them this would pass."""
    done = run_here(key, hostile(key, CELLS["isclose"]), Blind)
    assert "square-hidden" in done.passed and not done.tampered


SHAM = """\
class Sham(float):
    __module__ = "builtins"
    def __eq__(self, other):
        return True
return Sham(0)"""


def test_a_number_that_equals_every_number_is_none(walls, key):
    done = run_here(key, classroom.with_body(key, "halve", SHAM))
    assert done.messages == {
        "halve-check": "no float",
        "halve-hidden": "no float for -7",
    }
    assert not done.tampered


LURE = """
import os, socket
for n in range(1, 6):
    path = f"/run/kernel/s-{{n}}"
    os.remove(path)
    os.symlink({place!r}, path)
for fd in os.listdir("/proc/self/fd"):
    try:
        end = socket.socket(fileno=os.dup(int(fd)))
        if "kernel/s" in str(end.getsockname()) and end.getpeername() is not None:
            end.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
"""


def test_the_grader_is_not_lured_to_another_socket(walls, tmp_path_factory):
    """The kernel ends a connection; its path leads elsewhere by then."""
    place = str(tmp_path_factory.mktemp("s") / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(place)
        server.listen()
        server.settimeout(4)
        with sandbox.Kernel(sandbox.Limits(memory=1500)) as kernel:
            kernel.run(LURE.format(place=place), timeout=10)
            with pytest.raises(TimeoutError):
                server.accept()


def test_long_outputs_are_cut(walls):
    with sandbox.Kernel(sandbox.Limits(memory=1500)) as kernel:
        reply = kernel.run("print('x' * 10**6)\n'y' * 10**6", timeout=10)
    assert reply.status == "ok"
    text = "".join(output["text"] for output in reply.outputs)
    assert text.endswith("[cut]\n") and len(text) < 21_000


def test_time_for_the_whole_notebook_is_limited(walls, key):
    book = classroom.with_cell(key, "while True:\n    pass", after="square")
    start = time.monotonic()
    done = run_here(key, book, cell=30, total=6)
    assert time.monotonic() - start < 20
    assert done.passed == []
    assert "the whole notebook may take 6 s" in done.messages["square-check"]


def test_asserts_that_surely_run():
    tree = checks.ast.parse(
        "assert a\nfor x in y:\n    assert b\n    if x:\n        assert c\n"
        "def f():\n    assert d\ntry:\n    assert e\nexcept E:\n    pass\n"
        "with g:\n    assert h"
    )
    assert [checks.ast.unparse(a.test) for a in checks.asserts(tree)] == ["a", "b", "h"]


# --- bad input ------------------------------------------------------------------------


def damaged(key):
    """{student: (text or bytes of the file, what the reason says)}."""
    good = json.loads(nbformat.writes(solved(key)))

    def but(**changes):
        return json.dumps(good | changes)

    other = json.loads(
        nbformat.writes(solved(release.read_key(release.ASSIGNMENTS / "other.ipynb")))
    )
    foreign = {"metadata": {"kernelspec": {"name": "ir", "language": "R"}}}
    return {
        "not-json": ("{'cells': [", "sample.ipynb is not valid JSON: line 1"),
        "half": (json.dumps(good)[:900], "is not valid JSON: line 1"),
        "empty": ("", "is empty"),
        "spaces": (" \n ", "is empty"),
        "binary": (bytes(range(256)), "is not valid JSON: it is no text in UTF-8"),
        "deep": ("[" * 200_000, "cannot be read: RecursionError"),
        "digits": ('{"nbformat": ' + "9" * 9999 + "}", "cannot be read: ValueError"),
        "list": ("[]", "is no notebook"),
        "python": ('{"a": 1}', "is no notebook"),
        "old": (but(nbformat=3), "is of notebook format 3; save it in format 4"),
        "no-cells": (but(cells=7), "is damaged: it has no cells"),
        "odd-cell": (but(cells=[7]), "is damaged: a cell has no type"),
        "odd-text": (
            but(cells=[{"cell_type": "code", "source": {"a": 1}}]),
            "is damaged: the text of a cell is none",
        ),
        "wordy": (
            but(cells=[{"cell_type": "raw", "source": "x" * 2_000_001}]),
            "has more than 2,000,000 characters of text and code",
        ),
        "little": (but(cells=good["cells"][:3]), "has 2 of this assignment's 15 cells"),
        "many": (but(cells=good["cells"] * 21), "has more than 300 cells"),
        "french": (but(**foreign), "is written in R; the assignment is in Python"),
        "other": (json.dumps(other), "is of another assignment: other"),
        "nobody's": (but(cells=[]), "has 0 of this assignment's 15 cells"),
    }


def test_bad_input_gets_a_row_with_a_reason(walls, key, tmp_path, capsys):
    folder, out = tmp_path / "sent", tmp_path / "out"
    expected = damaged(key)
    for student, (content, _) in expected.items():
        path = folder / student / "sample.ipynb"
        path.parent.mkdir(parents=True)
        data = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(data)
    (folder / "vast").mkdir()
    with open(folder / "vast" / "sample.ipynb", "wb") as file:
        file.truncate(submissions.MOST_BYTES + 1)
    (folder / "piped").mkdir()
    os.mkfifo(folder / "piped" / "sample.ipynb")
    (folder / "linked").mkdir()
    (folder / "linked" / "sample.ipynb").symlink_to(
        release.ASSIGNMENTS / "sample.ipynb"
    )
    (folder / "linked-folder").symlink_to(release.ASSIGNMENTS)
    (folder / "report").mkdir()
    (folder / "report" / "report.pdf").write_text("%PDF")
    (folder / "nothing").mkdir()
    expected = {name: says for name, (_, says) in expected.items()} | {
        "vast": "has 200 MB, 200 MB may be: clear its outputs",
        "piped": "is no file",
        "linked": "a link, which is not followed: sample.ipynb",
        "linked-folder": "a link, which is not followed: linked-folder",
        "report": "there is no notebook: report.pdf",
        "nothing": "there is no notebook",
    }
    rows = run(folder, out)
    assert set(rows) == set(expected)
    for student, says in expected.items():
        row = rows[student]
        assert row["reason"].endswith(says), student
        assert (row["status"], row["score"]) == ("refused", "0")
        assert "Traceback" not in row["reason"]
    assert len(list((out / "feedback").iterdir())) == len(expected)
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    assert not (out / "manual.csv").read_text().splitlines()[1:]


NAMES = [
    "Ada Lovelace", "Zoë Ünal", "..", "..\\..\\etc\\passwd", "-rf *", "a;rm -rf $HOME",
    "=1+1", "<script>alert(1)<\\script>", "line\nbreak", "李雷", "O'Neil",
    "x" * 200, "ANNA", "anna", ".hidden", "con", "tab\tbed", "\u202egnp.exe",
]  # fmt: skip


def test_names_lead_nowhere(walls, key, tmp_path):
    """Each name gets a row and a file of its own in the folder of results."""
    folder, out = tmp_path / "sent", tmp_path / "out"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}_sample.ipynb").write_text("nothing")
    (folder / os.fsdecode(b"caf\xe9_sample.ipynb")).write_text("nothing")
    outside = set(tmp_path.rglob("*"))
    rows = run(folder, out)
    assert len(rows) == len(NAMES) + 1
    assert "'=1+1" in rows and "caf\ufffd" in rows and "line break" in rows
    new = set(tmp_path.rglob("*")) - outside
    assert all(path.is_relative_to(out) for path in new)
    pages = [path.name for path in (out / "feedback").iterdir()]
    assert len({name.casefold() for name in pages}) == len(rows)
    for name in pages:
        assert re.fullmatch(r"\w[\w-]{0,70}\.html|[0-9a-f-]+\.html", name), name
    for path in (out / "feedback").iterdir():
        assert "<script" not in path.read_text("utf-8")


@pytest.mark.parametrize(
    "name, student",
    [
        ("ada_sample", "ada"),
        ("ada_b_sample", "ada_b"),
        ("ada-sample (1)", "ada"),
        ("ada", "ada"),
        ("Ada Byron_12_assignsubmission_file_sample", "Ada Byron_12"),
        ("Ada Byron_12_assignsubmission_file_", "Ada Byron_12"),
        ("byronada_12_345_my work", "byronada_12"),
        ("byronada_LATE_12_345_sample-1", "byronada_12"),
        ("Course_ada_attempt_2026-11-21-10-00-00_x", "ada"),
    ],
)
def test_whose_a_file_is(name, student):
    assert submissions.whose(name, "sample") == student


def test_of_two_submissions_the_later_counts(key, tmp_path):
    for n, name in enumerate(["sample.ipynb", "sample (1).ipynb", "sample-old.ipynb"]):
        path = tmp_path / "ada" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
        os.utime(path, (n % 2 * 100 + 1000, n % 2 * 100 + 1000))
    (tmp_path / "ada" / "gan.ipynb").write_text("{}")  # now, but not this one
    (tmp_path / "ada_sample.ipynb").write_text("{}")
    os.utime(tmp_path / "ada_sample.ipynb", (900, 900))
    deep = tmp_path / "bob" / "sample" / "work"
    deep.mkdir(parents=True)
    (deep / "homework.ipynb").write_text("{}")
    (tmp_path / "bob" / "gan.ipynb").write_text("{}")
    found = {f.student: f for f in submissions.find(tmp_path, "sample")}
    assert found["ada"].path.name == "sample (1).ipynb"
    assert found["ada"].others == [
        "ada_sample.ipynb", "sample-old.ipynb", "sample.ipynb"
    ]  # fmt: skip
    assert found["bob"].path.name == "homework.ipynb"


def test_huge_outputs_do_not_matter(walls, key, tmp_path):
    book = json.loads(nbformat.writes(solved(key)))
    huge = {"output_type": "stream", "name": "stdout", "text": "x" * 100_000_000}
    book["cells"][1]["outputs"] = [huge]
    send(tmp_path / "sent", "ada", json.dumps(book))
    rows = run(tmp_path / "sent", tmp_path / "out")
    assert rows["ada"]["auto_score"] == str(AUTO)
    assert sum(p.stat().st_size for p in (tmp_path / "out").rglob("*")) < 2_000_000


# --- what editors do to notebooks -----------------------------------------------------


def restored(key, change):
    """(notebook, notes) after a change to the solved copy's JSON."""
    book = json.loads(nbformat.writes(solved(key)))
    change(book)
    path = release.ASSIGNMENTS.parent / "changed.ipynb"
    path.write_text(json.dumps(book))
    cells, notes = submissions.read(path)
    frame = graded_copy(key), student_copy(key)
    notebook, more = submissions.restore(*frame, cells)
    return notebook, notes + more


def drop_metadata(book):
    for cell in book["cells"]:
        cell["metadata"] = {}


def drop_metadata_and_ids(book):
    drop_metadata(book)
    for number, cell in enumerate(book["cells"]):
        cell["id"] = f"c{number}"


@pytest.mark.parametrize("change", [drop_metadata, drop_metadata_and_ids])
def test_lost_metadata_are_made_good(walls, key, change):
    notebook, notes = restored(key, change)
    assert any("had lost their metadata" in note for note in notes)
    assert "grows faster" in at(notebook, "words-explain").source
    limits = sandbox.Limits(cell=5, total=60, memory=1500)
    assert checks.Run(notebook, limits).go().passed == list(CHECKS)


def test_cells_twice_of_another_type_or_out_of_order(walls, key):
    def change(book):
        cells = book["cells"]
        names = [c["metadata"]["nbgrader"]["grade_id"] for c in cells]
        square, halve = names.index("square"), names.index("halve")
        cells[halve]["cell_type"] = "raw"
        again = dict(cells[square], id="again", source="ran = square(2)")
        cells.insert(square + 1, again)
        cells.append(cells.pop(1))  # the set-up cell goes to the end
        for number, cell in enumerate(cells):
            if cell["cell_type"] == "code":
                cell["execution_count"] = 50 - number

    notebook, notes = restored(key, change)
    assert "there twice: square" in notes
    assert "of another cell type: halve" in notes
    assert any("out of order" in note for note in notes)
    assert [c.id for c in notebook.cells][:3] == ["title", "start", "square-task"]
    limits = sandbox.Limits(cell=5, total=60, memory=1500)
    assert checks.Run(notebook, limits).go().passed == list(CHECKS)


def test_a_solution_that_moved_to_a_new_cell_still_counts(walls, key):
    book = classroom.with_cell(key, "def halve(x):\n    return x / 2", "halve")
    book = classroom.without(book, "halve")
    assert run_here(key, book).passed == list(CHECKS)


# --- points by hand, and going on -----------------------------------------------------


def test_points_by_hand(walls, key, tmp_path):
    folder, out = tmp_path / "sent", tmp_path / "out"
    book = solved(key)
    book.cells.append(nbformat.v4.new_markdown_cell("I measured cubes too."))
    path = send(folder, "ada", book)
    send(folder, "=bob", student_copy(key))
    assert run(folder, out)["ada"]["manual_pending"] == str(MANUAL)
    manual = out / "manual.csv"
    rows = table(manual)
    assert [(r["student"], r["cell"], r["max"], r["points"]) for r in rows] == [
        ("ada", "words-explain", "3", ""),
        ("ada", "open", "2", ""),
    ]
    executed = out / rows[0]["where"]
    assert "grows faster" in executed.read_text("utf-8")

    def enter(*points):
        rows = table(manual)
        for row, (value, comment) in zip(rows, points, strict=True):
            row |= {"points": value, "comment": comment}
        grade.write_table(manual, grade.MANUAL, rows)

    def graded_now():
        row = run(folder, out)["ada"]
        return row["score"], row["manual_pending"], row["status"]

    enter(("2,5", "Why?"), ("", ""))
    assert graded_now() == ("9.5", "2", "manual")
    enter(("2.5", "Why?"), ("2", ""))
    assert graded_now() == ("11.5", "0", "graded")
    feedback = (out / "feedback" / "ada.html").read_text("utf-8")
    assert "Why?" in feedback and "3 points for saying that it grows" in feedback
    assert "A square grows faster" not in feedback
    for wrong in ("4", "-1", "three", "nan"):
        enter((wrong, ""), ("2", ""))
        with pytest.raises(SystemExit, match=f"line 2: '{wrong}' is no number from 0"):
            run(folder, out)
    enter((" 3 ", "Yes"), ("2", ""))
    at(book, "words-explain").source = "Something else."
    path.write_text(nbformat.writes(book))
    row = run(folder, out)["ada"]
    assert row["status"] == "manual" and row["score"] == "9"
    assert "words-explain has changed since it was graded by hand" in row["reason"]
    path.unlink()
    path.parent.rmdir()
    run(folder, out)
    kept = [(r["points"], r["comment"]) for r in table(manual)]
    assert kept == [("", "[3 points for an earlier answer] Yes"), ("2", "")]


def test_an_interrupted_run_goes_on(walls, course, key, tmp_path):
    folder, out = tmp_path / "sent", tmp_path / "out"
    send(folder, "a-quick", solved(key))
    slow = solved(key)
    sleep = "import time\ntime.sleep(4.5)"  # 45 s in all, unless it is stopped
    slow.cells[1:1] = [nbformat.v4.new_code_cell(sleep) for _ in range(10)]
    path = send(folder, "b-slow", slow)
    send(folder, "c-quick", solved(key))
    code = (
        "import pathlib; from tools.course import grade, release\n"
        f"release.ASSIGNMENTS = pathlib.Path({str(course)!r})\n"
        f"grade.main([{str(folder)!r}, '--assignment', 'sample', '--out', {str(out)!r},"
        f" '--jobs', '1', *{FAST!r}])"
    )
    command = [sys.executable, "-c", code]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert "1/3 a-quick: 5 of 5 checks" in first.stdout.readline()
    time.sleep(1)
    family = psutil.Process(first.pid).children(recursive=True)
    assert family
    first.send_signal(signal.SIGINT)
    assert first.wait(30) == 1
    first.stdout.close()
    _, left = psutil.wait_procs(family, timeout=10)
    assert not left
    path.write_text(nbformat.writes(solved(key)))
    rerun = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert rerun.returncode == 0, rerun.stderr
    assert "a-quick: 5 of 5 checks (as before)" in rerun.stdout
    assert rerun.stdout.count("as before") < 3
    assert [row["auto_score"] for row in table(out / "grades.csv")] == [str(AUTO)] * 3


def test_what_is_done_is_not_done_again(walls, key, tmp_path, capsys):
    folder, out = tmp_path / "sent", tmp_path / "out"
    path = send(folder, "ada", solved(key))
    run(folder, out)
    first = (out / "grades.csv").read_text()
    run(folder, out)
    assert capsys.readouterr().out.count("as before") == 1
    assert (out / "grades.csv").read_text() == first
    (out / "results" / "ada.json").write_text("{")  # a disk that was full
    run(folder, out)
    path.write_text(nbformat.writes(student_copy(key)))
    assert run(folder, out)["ada"]["score"] == "0"
    run(folder, out, "--timeout", "50")  # other limits
    assert "as before" not in capsys.readouterr().out


# --- the command ----------------------------------------------------------------------


def test_without_a_sandbox_it_refuses(course, key, tmp_path, monkeypatch):
    send(tmp_path / "sent", "ada", solved(key))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="no bwrap here.*--no-sandbox"):
        run(tmp_path / "sent", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    rows = run(tmp_path / "sent", tmp_path / "out", "--no-sandbox")
    assert rows["ada"]["auto_score"] == str(AUTO)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"--assignment": "none"}, "no assignment 'none'; there are: other, sample"),
        ({"folder": "nowhere"}, "nowhere is no folder"),
        ({"--manual": "nowhere.csv"}, "nowhere.csv is no file"),
    ],
)
def test_wrong_arguments(walls, course, tmp_path, change, says):
    (tmp_path / "sent").mkdir()
    given = {"--assignment": "sample", "--out": str(tmp_path / "out")}
    given |= {k: v for k, v in change.items() if k != "folder"}
    folder = tmp_path / change.get("folder", "sent")
    options = [part for pair in given.items() for part in pair]
    with pytest.raises(SystemExit, match=re.escape(says)):
        grade.main([str(folder), *options])


def test_a_grader_that_fails_gives_a_row_and_no_score(
    walls, key, tmp_path, monkeypatch
):
    send(tmp_path / "sent", "ada", solved(key))
    monkeypatch.setattr(grade.sys, "executable", "/bin/false")
    row = run(tmp_path / "sent", tmp_path / "out")["ada"]
    assert (row["status"], row["score"]) == ("failed", "")
    assert "the grader stopped" in row["reason"]
    monkeypatch.undo()
    monkeypatch.setattr(release, "ASSIGNMENTS", tmp_path)
    nbformat.write(sample(), tmp_path / "sample.ipynb")
    assert run(tmp_path / "sent", tmp_path / "out")["ada"]["auto_score"] == str(AUTO)


def test_nothing_is_graded_by_a_key_that_would_tell(course, tmp_path, monkeypatch):
    broken = sample()
    at(broken, "halve-hidden").source = "assert halve(2) == 1, 'not one at all'"
    nbformat.write(broken, tmp_path / "sample.ipynb")
    monkeypatch.setattr(release, "ASSIGNMENTS", tmp_path)
    with pytest.raises(ReleaseError):
        student_copy(release.read_key(tmp_path / "sample.ipynb"))
    with pytest.raises(SystemExit, match="nothing was taken out"):
        run(tmp_path, tmp_path / "out")
