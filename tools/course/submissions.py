"""Find the submissions in a folder, read them, and put each back into the key's frame.

Whose a file is follows from its name or from its folder's, `<student>` below:

    <student>/<stem>.ipynb            a folder for each student, at any depth below it
    <student>/<any name>.ipynb
    <student>_<stem>.ipynb            all in one folder
    <student>.ipynb
    Ada Byron_12_assignsubmission_file_vae.ipynb    Moodle: "Ada Byron_12"
    byronada_LATE_12_345_vae.ipynb                  Canvas: "byronada_12"
    Course_ada_attempt_2026-11-21-10-00-00_x.ipynb  Blackboard: "ada"

Of several notebooks of one student, those whose name or inner folder has the stem in it
count before all others, and among them the one that was changed last.
"""

import json
import os
import re
import stat
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

from tools.course.release import is_answer, is_check, marks

MOST_BYTES = 200_000_000  # of a file
MOST_CELLS = 300
MOST_TEXT = 2_000_000  # characters of all its cells

# what computers leave in folders, and no student
JUNK = re.compile(
    r"\._.*|\.DS_Store|\.git.*|\.ipynb_checkpoints|__MACOSX|Thumbs\.db|desktop\.ini"
)
MOODLE = re.compile(r"(?P<who>.+?_\d+)_assignsubmission_(file|onlinetext)_?.*")
CANVAS = re.compile(r"(?P<who>[^_]+)(_LATE)?_(?P<id>\d+)_\d+_.*")
BLACKBOARD = re.compile(r".+_(?P<who>[^_]+)_attempt_\d{4}(-\d\d){5}.*")


class Refused(Exception):
    """Why a file cannot be graded, in words for the student."""


# --- finding --------------------------------------------------------------------------


@dataclass
class Found:
    """One student's submission; without a `path` there is nothing to grade."""

    student: str
    path: Path | None = None
    reason: str = ""  # why there is nothing to grade
    others: list = field(default_factory=list)  # names of files that do not count


def find(folder, stem):
    """The submissions in a folder: [Found], one for each student, by name."""
    candidates = {}  # student -> [(path, names that may have the stem)]
    rest = {}  # student -> [what else they sent]
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        name = plain(entry.name)
        if JUNK.fullmatch(name):
            continue
        student = whose(name if entry.is_dir() else Path(name).stem, stem)
        for path, problem in files(entry):
            inside = [plain(p) for p in path.relative_to(folder).parts]
            if problem or path.suffix.lower() != ".ipynb":
                rest.setdefault(student, []).append((inside[-1], problem))
            else:
                parts = inside[1:] or inside
                candidates.setdefault(student, []).append((path, parts))
        if student not in candidates:
            rest.setdefault(student, [])
    found = []
    for student in sorted(candidates.keys() | rest.keys()):
        if student in candidates:
            found.append(choose(student, candidates[student], stem))
        else:
            sent = rest[student]
            reason = next((p for _, p in sent if p), "") or "there is no notebook"
            names = ", ".join(name for name, _ in sent[:3])
            found.append(Found(student, None, reason + (f": {names}" if names else "")))
    return found


def files(entry):
    """(path, problem) of all files at or below a directory entry; links stay unread."""
    link = "a link, which is not followed"
    if entry.is_symlink():
        yield Path(entry.path), link
    elif not entry.is_dir():
        yield Path(entry.path), ""
    else:
        for top, folders, names in os.walk(entry.path):
            folders[:] = sorted(f for f in folders if not JUNK.fullmatch(f))
            for name in folders:
                if os.path.islink(os.path.join(top, name)):
                    yield Path(top, name), link
            for name in sorted(names):
                if not JUNK.fullmatch(name):
                    path = Path(top, name)
                    yield path, link if path.is_symlink() else ""


def choose(student, candidates, stem):
    """Of a student's notebooks the one that counts."""
    word = re.compile(rf"(?<![a-z0-9]){re.escape(stem)}(?![a-z])", re.IGNORECASE)
    named = [c for c in candidates if any(word.search(part) for part in c[1])]
    paths = [path for path, _ in named or candidates]
    # a clock that stands still must not leave it to chance
    paths.sort(key=lambda p: (os.lstat(p).st_mtime_ns, str(p)))
    return Found(student, paths[-1], others=[plain(p.name) for p in paths[:-1]])


def plain(name):
    """A file's name as text for any place: NFC, no control characters."""
    text = os.fsencode(name).decode("utf-8", "replace")
    text = unicodedata.normalize("NFC", text)
    return re.sub(r"[\x00-\x1f\x7f\u2028\u2029\u202a-\u202e]", " ", text).strip()


def whose(name, stem):
    """The student whom a file or folder is named after, without the ending."""
    for pattern in (MOODLE, CANVAS, BLACKBOARD):
        if match := pattern.fullmatch(name):
            parts = match.groupdict()
            return parts["who"] + (f"_{parts['id']}" if "id" in parts else "")
    match = re.fullmatch(rf"(.+?)[_-]+{re.escape(stem)}([ _-]?\(?\d+\)?)?", name, re.I)
    return (match[1] if match else name).strip() or "unnamed"


# --- reading --------------------------------------------------------------------------


@dataclass
class Cell:
    """A cell as it was sent: nothing of it is trusted, and its outputs are dropped."""

    kind: str  # "code", "markdown" or "raw"
    source: str
    grade_id: str = ""
    id: str = ""


def read(path):
    """(cells, notes) of a submitted notebook; Refused says why it is none."""
    notebook = parse(load(path))
    language = declared_language(notebook)
    if language and not language.lower().startswith(("python", "ipython")):
        raise Refused(f"is written in {language[:20]}; the assignment is in Python")
    if len(notebook["cells"]) > MOST_CELLS:
        raise Refused(f"has more than {MOST_CELLS} cells")
    cells, counts = [], []
    for raw in notebook["cells"]:
        if not isinstance(raw, dict) or raw.get("cell_type") not in KINDS:
            raise Refused("is damaged: a cell has no type")
        source = raw.get("source", "")
        if isinstance(source, list) and all(isinstance(s, str) for s in source):
            source = "".join(source)
        if not isinstance(source, str):
            raise Refused("is damaged: the text of a cell is none")
        source = source.encode("utf-8", "replace").decode()
        metadata = raw.get("metadata")
        own = metadata.get("nbgrader") if isinstance(metadata, dict) else None
        name = own.get("grade_id") if isinstance(own, dict) else None
        named = [n if isinstance(n, str) else "" for n in (name, raw.get("id"))]
        cells.append(Cell(raw["cell_type"], source, *named))
        if isinstance(raw.get("execution_count"), int):
            counts.append(raw["execution_count"])
    if sum(len(cell.source) for cell in cells) > MOST_TEXT:
        raise Refused(f"has more than {MOST_TEXT:,} characters of text and code")
    if counts != sorted(counts):
        return cells, ["its cells had been run out of order; all were run from the top"]
    return cells, []


KINDS = ("code", "markdown", "raw")


def load(path):
    """The bytes of a file; Refused for what is no file, is empty or is too large."""
    try:
        # no link, and no waiting for the other end of a pipe
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Refused(f"cannot be opened: {error.strerror}") from None
    with os.fdopen(number, "rb") as file:
        about = os.fstat(number)
        if not stat.S_ISREG(about.st_mode):
            raise Refused("is no file")
        if about.st_size > MOST_BYTES:
            raise Refused(
                f"has {about.st_size / 1e6:,.0f} MB, {MOST_BYTES / 1e6:.0f} MB may be: "
                "clear its outputs"
            )
        data = file.read(MOST_BYTES)
    if not data.strip():
        raise Refused("is empty")
    return data


def parse(data):
    """The notebook in `data`: a dictionary with a list of cells; Refused."""
    try:
        notebook = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise Refused("is not valid JSON: it is no text in UTF-8") from None
    except json.JSONDecodeError as error:
        raise Refused(f"is not valid JSON: line {error.lineno}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise Refused(f"cannot be read: {type(error).__name__}") from None
    if not isinstance(notebook, dict) or "nbformat" not in notebook:
        raise Refused("is no notebook")
    if notebook["nbformat"] != 4:
        version = str(notebook["nbformat"])[:9]
        raise Refused(f"is of notebook format {version}; save it in format 4")
    if not isinstance(notebook.get("cells"), list):
        raise Refused("is damaged: it has no cells")
    return notebook


def declared_language(notebook):
    """The language that a notebook's metadata name, or ""."""
    metadata = notebook.get("metadata")
    for place, name in (("kernelspec", "language"), ("language_info", "name")):
        part = metadata.get(place) if isinstance(metadata, dict) else None
        said = part.get(name) if isinstance(part, dict) else None
        if isinstance(said, str) and said:
            return said
    return ""


# --- putting back into the frame ------------------------------------------------------


def restore(graded, blank, cells, elsewhere=None):
    """(notebook to grade, notes): the key's frame with what the student wrote in it.

    graded: the key as the grader keeps it; blank: the students' copy of it. Every cell
    of the course stands in its place, in the course's own words where it is locked.
    Cells that the student added follow the cell that they followed. A cell that is
    missing is put back, if it is the course's, and noted.

    elsewhere: assignment -> its grade_ids, to name the one that this is of. Refused if
    it is not this assignment.
    """
    notes = []
    labels = recognise(blank, cells, notes)
    refuse_others(blank, cells, labels, elsewhere or {})
    given, extra = {}, {"": []}
    place = ""
    for cell, label in zip(cells, labels, strict=True):
        if label:
            place = label
            given[label] = cell
            extra.setdefault(label, [])
        else:
            extra[place].append(cell)
    recover_answers(graded, given, extra, notes)
    out = [own_cell(cell) for cell in extra[""]]
    missing, changed, retyped = [], [], []
    for source, empty in zip(graded.cells, blank.cells, strict=True):
        name, sent = source.id, given.get(source.id)
        cell = nbformat.from_dict(json.loads(json.dumps(source)))
        open_cell = marks(source).get("solution")
        if sent is None:
            missing.append(name)
            cell.source = empty.source if open_cell else source.source
        else:
            if sent.kind != source.cell_type:
                retyped.append(name)
            if open_cell:
                cell.source = sent.source
            elif name != "setup" and squeeze(sent.source) not in (
                squeeze(empty.source),
                squeeze(source.source),
            ):
                changed.append(name)
        if not (sent is None and open_cell and source.cell_type == "code"):
            # a definition that is gone stays gone: the student may have it elsewhere
            out.append(cell)
        out += [own_cell(cell) for cell in extra.get(name, [])]
    worth = {c.id for c in graded.cells if c.cell_type == "code" or is_answer(c)}
    for what, names in (
        ("deleted", [n for n in missing if n in worth]),
        ("changed, and graded as released", [n for n in changed if n in worth]),
        ("of another cell type", retyped),
    ):
        if names:
            shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
            notes.append(f"{what}: {shown}")
    notebook = nbformat.v4.new_notebook(metadata=graded.metadata, cells=out)
    for number, cell in enumerate(cell for cell in out if not marks(cell)):
        cell.id = f"own-{number}"
    return notebook, notes


def own_cell(cell):
    """A cell that the student added, without any metadata."""
    make = {
        "code": nbformat.v4.new_code_cell,
        "markdown": nbformat.v4.new_markdown_cell,
        "raw": nbformat.v4.new_raw_cell,
    }
    return make[cell.kind](cell.source)


def squeeze(text):
    """A text without what editors change: white space at the ends of lines."""
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def recognise(blank, cells, notes):
    """For each submitted cell the name of the course's cell that it is, or "".

    By grade_id; where an editor has dropped it, by cell id, or by the text of a locked
    cell. Of two that claim a name, the first has it.
    """
    known = {cell.id: cell for cell in blank.cells}
    texts = {}
    for cell in blank.cells:
        if not marks(cell).get("solution"):
            texts.setdefault(squeeze(cell.source), []).append(cell.id)
    labels, taken, twice, found = [], set(), [], 0
    sure = {cell.grade_id for cell in cells}
    for cell in cells:
        label = cell.grade_id if cell.grade_id in known else ""
        if not label:
            same = texts.get(squeeze(cell.source), []) if cell.source.strip() else []
            guesses = [cell.id] if cell.id in known else same
            label = next((g for g in guesses if g not in taken | sure), "")
            found += bool(label)
        if label in taken:
            twice.append(label)
            label = ""
        taken |= {label} - {""}
        labels.append(label)
    if twice:
        notes.append(f"there twice: {', '.join(sorted(set(twice))[:4])}")
    if found:
        notes.append(
            f"its cells had lost their metadata; {found} were known by id or text"
        )
    return labels


def refuse_others(blank, cells, labels, elsewhere):
    """Refused, if a notebook is of another assignment or of none."""
    common = {"", "title", "setup"}
    ours = len(set(labels) - common)
    sent = {cell.grade_id for cell in cells} | {cell.id for cell in cells}
    best = max(elsewhere, key=lambda s: len(elsewhere[s] & sent - common), default=None)
    if best and len(elsewhere[best] & sent - common) > ours:
        raise Refused(f"is of another assignment: {best}")
    if ours < len(blank.cells) / 4:
        raise Refused(f"has {ours} of this assignment's {len(blank.cells)} cells")


def recover_answers(graded, given, extra, notes):
    """Free texts whose cells lost their metadata: they stand where they must stand."""
    place = ""
    for cell in graded.cells:
        if cell.id in given:
            place = cell.id
        elif is_answer(cell) and marks(cell).get("solution"):
            at = next((c for c in extra[place] if c.kind == "markdown"), None)
            if at is not None:
                extra[place].remove(at)
                given[cell.id] = at


def task_answers(notebook):
    """Task's name -> the text of what the student added below it, "" for nothing."""
    found, place = {}, None
    for cell in notebook.cells:
        if marks(cell):
            place = cell.id if marks(cell).get("task") else None
            if place:
                found[place] = ""
        elif place:
            found[place] += cell.source.strip() + "\n"
    return {name: text.strip() for name, text in found.items()}


def checks(notebook):
    """The names of a key's cells that the machine grades."""
    return [cell.id for cell in notebook.cells if is_check(cell)]
