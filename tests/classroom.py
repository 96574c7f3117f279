"""A small assignment, and a class of students who send in all sorts of things."""

import copy
import json
import re
import sys
import tomllib
from pathlib import Path

import nbformat

from tools.course.release import ASSIGNMENTS, marks, read_key, student_copy
from tools.notebooks import METADATA

# (name, kind, points, source); kind: text, code (both locked), solution, check, hidden,
# answer, task
SAMPLE = [
    ("title", "text", 0, "# Assignment: sample\n\nTwo functions and a word on them."),
    (
        "start",
        "code",
        0,
        "import math\n\n\ndef reference(x):\n    return float(x) ** 2",
    ),
    ("square-task", "text", 0, "## 1. Squares\n\nWrite `square(x)`: a float."),
    (
        "square",
        "solution",
        0,
        'def square(x):\n    """x times x, a float."""\n'
        "    ### BEGIN SOLUTION\n    return float(x * x)\n    ### END SOLUTION",
    ),
    (
        "square-check",
        "check",
        1,
        "y = square(3)\n"
        'assert isinstance(y, float), f"a {type(y).__name__}: no float"\n'
        'assert math.isclose(y, 9), f"the square of 3 is not {y}"',
    ),
    (
        "square-hidden",
        "hidden",
        2,
        "for x in (-2, 0, 0.5, 1e6):\n    y = square(x)\n"
        '    assert isinstance(y, float), "not always a float"\n'
        '    assert math.isclose(y, reference(x)), f"wrong for {x}"\n',
    ),
    ("halve-task", "text", 0, "## 2. Halves\n\nWrite `halve(x)`."),
    (
        "halve",
        "solution",
        0,
        "def halve(x):\n    ### BEGIN SOLUTION\n    quotient = x / 2\n"
        "    return quotient\n    ### END SOLUTION",
    ),
    (
        "halve-check",
        "check",
        1,
        'y = halve(3)\nassert isinstance(y, float), "no float"\n'
        'assert y == 1.5, "half of 3 is something else"',
    ),
    (
        "halve-hidden",
        "hidden",
        2,
        'y = halve(-7)\nassert isinstance(y, float), "no float for -7"\n'
        'assert y == -3.5, "negative numbers are halved wrongly"\n',
    ),
    ("words-task", "text", 0, "## 3. Words\n\nMeasure, then explain."),
    (
        "words",
        "solution",
        0,
        "# measured = ...\n### BEGIN SOLUTION\n"
        "measured = {n: n * n for n in range(4)}\n### END SOLUTION",
    ),
    (
        "words-check",
        "check",
        1,
        'assert type(measured) is dict, "measured is no dictionary"\n'
        'assert measured[3] == 9, "three times three is something else"',
    ),
    (
        "words-explain",
        "answer",
        3,
        "A square grows faster than its side does.\n\n**Rubric**\n\n"
        "- 3 points for saying that it grows faster.",
    ),
    (
        "open",
        "task",
        2,
        "## 4. Further\n\nFind something else. Add your cells below.\n\n"
        "=== BEGIN MARK SCHEME ===\n\n2 points for anything that was measured.\n\n"
        "=== END MARK SCHEME ===",
    ),
]
AUTO, MANUAL = 7, 5
HIDDEN = "# Hidden checks: other shapes, seeds and edge cases. Nothing to do here.\n"
CHECKS = {"square-check": 1, "square-hidden": 2, "halve-check": 1, "halve-hidden": 2}
CHECKS |= {"words-check": 1}


def cell(name, kind, points, source):
    """One cell of a key, with nbgrader's metadata."""
    graded = kind in ("check", "hidden", "answer")
    if kind == "hidden":
        body = f"### BEGIN HIDDEN TESTS\n{source.rstrip()}\n### END HIDDEN TESTS"
        source = HIDDEN + body
    text = kind in ("text", "answer", "task")
    make = nbformat.v4.new_markdown_cell if text else nbformat.v4.new_code_cell
    made = make(source)
    own = {
        "schema_version": 3,
        "grade_id": name,
        "grade": graded,
        "solution": kind in ("solution", "answer"),
        "locked": kind not in ("solution", "answer"),
        "task": kind == "task",
        "cell_type": made.cell_type,
    }
    if graded or kind == "task":
        own["points"] = points
    made.metadata["nbgrader"] = own
    made.id = name
    return made


def sample():
    """The small assignment's key."""
    cells = [cell(*row) for row in SAMPLE]
    metadata = json.loads(json.dumps(METADATA))
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def solved(key):
    """The students' copy with the key's code and a free text filled in."""
    book = student_copy(key)
    for ours, theirs in zip(key.cells, book.cells, strict=True):
        if marks(ours).get("solution"):
            if ours.cell_type == "code":
                theirs.source = re.sub(
                    r".*### (BEGIN|END) SOLUTION\n?", "", ours.source
                )
            else:
                theirs.source = "It grows faster, I should say."
    return book


def at(book, name):
    """A notebook's cell by its grade_id."""
    return next(c for c in book.cells if marks(c).get("grade_id") == name)


def with_body(key, name, body):
    """The solved copy, with another body in the solution `name`."""
    book = solved(key)
    source = at(key, name).source
    lines = "\n".join("    " + line for line in body.splitlines())
    at(book, name).source = re.sub(
        r"(?s) *### BEGIN SOLUTION.*### END SOLUTION", lambda _: lines, source
    )
    return book


def with_cell(key, code, after):
    """The solved copy, with a code cell of the student's own after the cell `after`."""
    book = solved(key)
    place = [marks(c).get("grade_id") for c in book.cells].index(after)
    book.cells.insert(place + 1, nbformat.v4.new_code_cell(code))
    return book


def without(book, *names):
    """A copy of a notebook that lacks some cells."""
    book = copy.deepcopy(book)
    book.cells = [c for c in book.cells if marks(c).get("grade_id") not in names]
    return book


# --- hostile code ---------------------------------------------------------------------

# What stands in a function's body. Its checks must give no points, and nothing else may
# suffer.
BODIES = {
    "loop": "while True:\n    pass",
    "deaf": "import time\nwhile True:\n    try:\n        time.sleep(9)\n"
    "    except BaseException:\n        pass",
    "segfault": "import ctypes\nctypes.string_at(0)",
    "exit": "import os\nos._exit(0)",
    "quit": "raise SystemExit(0)",
    "killall": "import os, signal\nos.kill(-1, signal.SIGKILL)",
    "input": "return float(input('points? '))",
    "flood": "while True:\n    print('100 points! ' * 10_000)",
    "memory": "global held\nheld = []\nwhile True:\n    held.append(bytearray(10**8))",
    "swarm": "import os, time\nwhile True:\n    try:\n        os.fork()\n"
    "    except OSError:\n        time.sleep(0.1)",
    "longword": "raise ValueError('x' * 10**6)",
    "liar": "class Liar:\n    def __getattr__(self, name):\n        return self\n"
    "    __eq__ = __lt__ = __gt__ = __le__ = __ge__ = lambda *a: True\n"
    "    __float__ = lambda self: 9.0\n    __sub__ = __rsub__ = lambda *a: 0.0\n"
    "return Liar()",
    "forger": "print('score: 100/100')\n"
    "print({'grade': 100, 'max': 100, 'passed': True})\nreturn 100",
    "shadow": "import sys\nspace = sys._getframe(1).f_globals\n"
    "space['isinstance'] = lambda *a: True\n"
    "space['math'] = type('Math', (), {'isclose': lambda *a: True})\nreturn 1.0",
}

# What stands in a cell of its own, before a first part that is wrong. It tries to get
# that part's points all the same.
CELLS = {
    "tracebacks": "shell = get_ipython()\nshell.showtraceback = lambda *a, **k: None\n"
    "shell._showtraceback = lambda *a, **k: None",
    "success": "from IPython.core.interactiveshell import ExecutionResult\n"
    "ExecutionResult.success = property(lambda self: True)",
    "runner": "shell = get_ipython()\n"
    "async def run(code, result=None, **k):\n"
    "    try:\n        exec(code, shell.user_global_ns, shell.user_ns)\n"
    "    except BaseException:\n        pass\n    return False\n"
    "shell.run_code = run",
    "nothing": "import builtins\nbuiltins.exec = lambda *a, **k: None",
    "eraser": "import ast\n"
    "class Erase(ast.NodeTransformer):\n"
    "    def visit_Assert(self, node):\n        return ast.Pass()\n"
    "get_ipython().ast_transformers.append(Erase())\n"
    "get_ipython().input_transformers_post.append(\n"
    "    lambda lines: [line.replace('assert ', 'None #') for line in lines])",
    "isclose": "math.isclose = lambda *a, **k: True",
    "reference": "def reference(x):\n    return square(x)",
    "hider": "isinstance = lambda *a: True\nclass math:\n    isclose = lambda *a: True",
    "unpacker": "import marshal, builtins\n"
    "plain = marshal.loads\n"
    "def loads(data):\n"
    "    code = plain(data)\n"
    "    name = next(n for n in reversed(code.co_names) if n[:1] == '_')\n"
    "    secret = [c for c in code.co_consts if isinstance(c, str)][-1]\n"
    "    return compile(f'{name} = {secret!r}', 'x', 'exec')\n"
    "marshal.loads = loads",
    "isinstance": "import builtins\nbuiltins.isinstance = lambda *a: True\n"
    "builtins.AssertionError = None",
    "expressions": "import secrets\n"
    "get_ipython().user_expressions = lambda e: {\n"
    "    k: {'status': 'ok', 'data': {'text/plain': repr('0' * 32)}, 'metadata': {}}\n"
    "    for k in e}",
    "answers": "kernel = get_ipython().kernel\nplain = kernel.do_execute\n"
    "async def do_execute(*a, **k):\n"
    "    answer = await plain(*a, **k)\n"
    "    return {'status': 'ok', 'execution_count': 1, 'payload': [],\n"
    "            'user_expressions': {}}\n"
    "kernel.do_execute = do_execute",
    "tracer": "import sys\nsys.settrace(lambda *a: None)",
}


# --- a class over a real assignment ---------------------------------------------------


def thirty(stem, folder):
    """Write 30 submissions of an assignment, of all sorts, into a folder."""
    key = read_key(ASSIGNMENTS / f"{stem}.ipynb")
    path = ASSIGNMENTS.parent / "tests" / "mistakes" / f"{stem}.toml"
    planted = tomllib.loads(path.read_text("utf-8"))["mistake"]
    part = next(
        c.id
        for c in key.cells
        if "def " in c.source and re.search(r"\n    ### BEGIN SOLUTION", c.source)
    )
    good, blank = solved(key), student_copy(key)
    lost = copy.deepcopy(good)
    for one in lost.cells:
        one.metadata = {}
    books = {f"Ada Byron_12_assignsubmission_file_{stem}": good}
    books |= {f"Zoë Ünal_{stem}": good, f"hopper_LATE_7_8_{stem}": good}
    books |= {f"metadata-lost_{stem}": lost, f"blank_{stem}": blank}
    books[f"one-part_{stem}"] = copy.deepcopy(blank)
    at(books[f"one-part_{stem}"], part).source = at(good, part).source
    books[f"deleted_{stem}"] = without(good, part, f"{part}-check")
    for number, mistake in enumerate((planted * 8)[:8]):
        book = books[f"mistake-{number}_{stem}"] = copy.deepcopy(good)
        wrong = at(book, mistake["cell"])
        wrong.source = wrong.source.replace(mistake["old"], mistake["new"])
    for name in ("loop", "segfault", "flood", "memory", "swarm", "liar", "forger"):
        books[f"{name}_{stem}"] = with_body(key, part, BODIES[name])
    for name in ("success", "unpacker", "expressions"):
        books[f"{name}_{stem}"] = with_cell(key, CELLS[name], after="setup")
    folder.mkdir(parents=True)
    for name, book in books.items():
        nbformat.write(book, folder / f"{name}.ipynb")
    (folder / f"not-json_{stem}.ipynb").write_text("{")
    (folder / f"empty_{stem}.ipynb").write_text("")
    nbformat.write(sample(), folder / f"another_{stem}.ipynb")
    heavy = json.loads(nbformat.writes(good))
    heavy["cells"][1]["outputs"] = [{"output_type": "stream", "text": "x" * 10**8}]
    (folder / f"heavy_{stem}.ipynb").write_text(json.dumps(heavy))
    (folder / f"link_{stem}.ipynb").symlink_to("/etc/passwd")
    assert len(list(folder.iterdir())) == 30


if __name__ == "__main__":  # PYTHONPATH=. python tests/classroom.py vae /tmp/class
    thirty(sys.argv[1], Path(sys.argv[2]))
