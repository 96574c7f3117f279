"""Make the students' copies of the assignments: `make release`.

    python -m tools.course.release              all of assignments/
    python -m tools.course.release vae gan      those named

The edited copy, `assignments/<stem>.ipynb`, is the key. It is run first; then nbgrader
takes out what is between its marks: solutions, hidden checks, mark schemes and model
answers. Written are `_build/course/release/<stem>.ipynb` for students, with the set-up
cell for Colab, and `_build/course/keys/<stem>.ipynb`, the key with its outputs, for
those who teach. Nothing is written where anything of a key would survive.
"""

import argparse
import copy
import json
import os
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nbformat

from tools.notebooks import (
    ENVIRONMENT,
    METADATA,
    execute,
    repository_url,
    setup_source,
    write_text,
)

ROOT = Path(__file__).resolve().parents[2]
ASSIGNMENTS = ROOT / "assignments"
COURSE = ROOT / "_build" / "course"

# The lines that nbgrader cuts between; others that look like them cut nothing.
CUTS = (
    ("### BEGIN SOLUTION", "### END SOLUTION"),
    ("### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS"),
    ("=== BEGIN MARK SCHEME ===", "=== END MARK SCHEME ==="),
)
BEGIN = re.compile(r"\bBEGIN\s+(SOLUTION|HIDDEN|MARK)", re.IGNORECASE)
END = re.compile(r"\bEND\s+(SOLUTION|HIDDEN|MARK)", re.IGNORECASE)
# No line of a release may look like one of these, rightly spelt or not.
MARK = re.compile(
    r"^\W*(BEGIN|END)\W+(SOL|HID|MARK|TEST)|mark scheme|\*\*rubric\*\*", re.IGNORECASE
)
SHORT = 16  # a line of fewer characters, `return x`, tells nobody anything


class ReleaseError(Exception):
    """What is wrong with an assignment, in one line."""


# --- reading --------------------------------------------------------------------------


def stems():
    """The stems of all assignments, in order."""
    return sorted(path.stem for path in ASSIGNMENTS.glob("*.ipynb"))


def marks(cell):
    """A cell's nbgrader metadata, {} where it has none."""
    return cell.metadata.get("nbgrader", {})


def is_check(cell):
    """Whether the machine gives this cell's points: a locked, graded code cell."""
    m = marks(cell)
    return bool(cell.cell_type == "code" and m.get("grade") and not m.get("solution"))


def is_answer(cell):
    """Whether a person gives this cell's points: a free text, or a task."""
    m = marks(cell)
    return bool(m.get("task") or (m.get("grade") and not is_check(cell)))


def read_key(path):
    """The key in `path`, checked; ReleaseError if it breaks the format's rules.

    Every cell has a grade_id, which is also its cell id from here on, so that a cell
    is known again after an editor has dropped the metadata.
    """
    try:
        key = nbformat.read(path, as_version=4)
        nbformat.validate(key)
    except OSError as error:
        raise ReleaseError(f"{path.name} cannot be read: {error.strerror}") from None
    except Exception as error:
        raise ReleaseError(f"{path.name} is no notebook: {first_line(error)}") from None
    seen = set()
    for number, cell in enumerate(key.cells, 1):
        name = marks(cell).get("grade_id")
        where = f"{path.name}, cell {number}"
        if not name:
            raise ReleaseError(f"{where} has no grade_id: {cell.source[:40]!r}")
        if name in seen:
            raise ReleaseError(f"{where}: the grade_id {name!r} is used twice")
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            raise ReleaseError(f"{where}: {name!r} cannot be a grade_id")
        check_cuts(cell, where)
        if (is_check(cell) or is_answer(cell)) and not marks(cell).get("points", 0) > 0:
            raise ReleaseError(f"{where}: {name!r} is graded and has no points")
        if cell.cell_type == "code" and not marks(cell).get("solution"):
            compile_cell(cell, where)
        seen.add(name)
        cell.id = name
    if not any(map(is_check, key.cells)):
        raise ReleaseError(f"{path.name} has no check")
    return key


def check_cuts(cell, where):
    """Every line that looks like a mark is one and has its partner; ReleaseError."""
    cut = re.compile("###" if cell.cell_type == "code" else "===|### (BEGIN|END)")
    lines = [line.strip() for line in cell.source.splitlines()]
    lines = [line for line in lines if cut.match(line)]
    for begin, end in zip(lines[::2], [*lines[1::2], ""], strict=False):
        if (begin, end) not in CUTS:
            raise ReleaseError(f"{where}: {begin!r} and {end!r} are no pair of marks")


def compile_cell(cell, where):
    """What students may not change is plain Python, without magics; ReleaseError."""
    try:
        compile(cell.source, where, "exec")
    except SyntaxError as error:
        raise ReleaseError(f"{where} is not plain Python: {error}") from None


def first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# --- the two copies -------------------------------------------------------------------


def preprocess(notebook, *names):
    """Put a notebook through preprocessors of nbgrader, in place."""
    import nbgrader.preprocessors

    resources = {"nbgrader": {}}
    for name in names:
        step = getattr(nbgrader.preprocessors, name)()
        step.log.disabled = True  # its errors come as exceptions, too
        notebook, resources = step.preprocess(notebook, resources)
    return notebook


def graded_copy(key):
    """The key as the grader keeps it: locked, with checksums, hidden checks inside.

    The checksum of a cell that students fill in is that of the empty one: so nbgrader
    knows an answer that was never given.
    """
    graded, blank = copy.deepcopy(key), student_copy(key)
    preprocess(graded, "ClearOutput", "LockCells", "ComputeChecksums")
    for cell, empty in zip(graded.cells, blank.cells, strict=True):
        if marks(cell).get("solution"):
            marks(cell)["checksum"] = marks(empty)["checksum"]
    return graded


def student_copy(key, url=""):
    """The notebook that students get, from a key; ReleaseError if it would tell.

    url: where Colab installs the library from; "" leaves its lines out.
    """
    release = copy.deepcopy(key)
    release.metadata = nbformat.from_dict(METADATA)
    release.nbformat, release.nbformat_minor = 4, 5
    for cell in release.cells:
        kept = {
            k: cell.metadata[k] for k in ("nbgrader", "mystnb") if cell.metadata.get(k)
        }
        cell.metadata = nbformat.from_dict(kept)
        cell.pop("attachments", None)
        if cell.id == "setup":
            if not cell.source.startswith(setup_source()):
                raise ReleaseError("the cell `setup` does not begin as the book's does")
            cell.source = setup_source(url) + cell.source.removeprefix(setup_source())
    try:
        preprocess(
            release,
            "ClearOutput",
            "LockCells",
            "ClearSolutions",
            "ClearHiddenTests",
            "ClearMarkScheme",
            "ComputeChecksums",
            "CheckCellMetadata",
        )
    except Exception as error:
        raise ReleaseError(f"nbgrader refuses it: {first_line(error)}") from None
    for cell in release.cells:
        cell.source = re.sub(r"\n{3,}", "\n\n\n", cell.source).strip("\n")
    preprocess(release, "ComputeChecksums")
    nbformat.validate(release)
    if problems := survivors(key, release):
        raise ReleaseError("; ".join(problems))
    return release


def split_secrets(cell):
    """(visible lines, secret lines) of a key's cell, read without nbgrader's help."""
    lines = cell.source.splitlines()
    if marks(cell).get("solution") and not any(map(BEGIN.search, lines)):
        return [], lines
    visible, secret, inside = [], [], False
    for line in lines:
        if BEGIN.search(line):
            inside = True
        elif END.search(line):
            inside = False
        else:
            (secret if inside else visible).append(line)
    return visible, secret


def survivors(key, release):
    """What of a key's secrets is still in a release, a line of text for each cell."""
    problems = []
    split = [split_secrets(cell) for cell in key.cells]
    code = (p for p, c in zip(split, key.cells, strict=True) if c.cell_type == "code")
    shown = {line.strip() for visible, _ in code for line in visible}
    secret = {line.strip() for _, hidden in split for line in hidden} - shown
    secret = {line for line in secret if len(line) >= SHORT}
    for cell, source in zip(release.cells, key.cells, strict=True):
        m, name = marks(source), cell.id
        lines = [line.strip() for line in cell.source.splitlines()]
        left = [line for line in lines if line in secret or MARK.search(line)]
        if left:
            problems.append(f"{name}: {left[0][:50]!r} would survive")
        must = m.get("solution") or m.get("task") or name.endswith("-hidden")
        if must and cell.source.split() == source.source.split():
            problems.append(f"{name}: nothing was taken out of it")
        if cell.cell_type == "code" and (cell.outputs or cell.execution_count):
            problems.append(f"{name}: it has outputs")
    return problems


# --- the command ----------------------------------------------------------------------


def make(stem, url):
    """(student copy, executed key) of an assignment as texts; ReleaseError."""
    path = ASSIGNMENTS / f"{stem}.ipynb"
    release = student_copy(read_key(path), url)
    os.environ.update(ENVIRONMENT)
    try:
        done = execute(path)
    except SystemExit as error:
        raise ReleaseError(f"the key does not run: {error}") from None
    return nbformat.writes(release) + "\n", done


def make_or_tell(stem, url):
    try:
        return make(stem, url), None
    except ReleaseError as error:
        return None, f"{stem}: {error}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("stems", nargs="*", help="vae, or several; default: all")
    arguments = parser.parse_args()
    have = stems()
    if wrong := sorted(set(arguments.stems) - set(have)):
        parser.error(
            f"no assignment {wrong[0]!r}; there are: {', '.join(have) or 'none'}"
        )
    chosen = arguments.stems or have
    with ProcessPoolExecutor(2) as pool:
        made = list(pool.map(make_or_tell, chosen, [repository_url()] * len(chosen)))
    if problems := [problem for _, problem in made if problem]:
        raise SystemExit("\n".join(["Nothing was released."] + problems))
    for stem, (texts, _) in zip(chosen, made, strict=True):
        for folder, text in zip(("release", "keys"), texts, strict=True):
            (COURSE / folder).mkdir(parents=True, exist_ok=True)
            write_text(COURSE / folder / f"{stem}.ipynb", text)
        cells = json.loads(texts[0])["cells"]
        points = sum(c["metadata"]["nbgrader"].get("points", 0) for c in cells)
        print(f"{stem}: {len(cells)} cells, {points:g} points")
    where = COURSE.relative_to(ROOT)
    print(f"for students: {where}/release; for those who teach: {where}/keys")


if __name__ == "__main__":
    main()
