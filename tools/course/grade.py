"""Grade a folder of submissions: `make grade SUBMISSIONS=folder A=vae OUT=folder`.

    python -m tools.course.grade submissions --assignment vae --out graded

Which file is whose is told in submissions.py. Each submission is graded in a process of
its own, its code in a sandbox (sandbox.py, checks.py); a submission that cannot be
graded gets a row with a reason. Written into the folder OUT:

    grades.csv           a row for each student, for the LMS
    parts.csv            a row for each student and graded cell
    manual.csv           what waits for a person: enter points, a comment, run again
    feedback/*.html      a page for each student
    executed/*.ipynb     what was run, with outputs, for the person who grades by hand
    gradebook.db         the same scores in nbgrader's form
    results/*.json       what is done: a run that is interrupted goes on from here

Nothing is graded twice: only what is new, or has changed, or what was graded under
other limits or by another key.

The status of a row: `graded` (final), `manual` (an answer waits for a person, whose
points are missing from the score), `tampered` (the machine's points are in doubt, see
the reason; a person decides), `refused` (not this assignment's notebook; score 0),
`failed` (the grader's own failure, no score; run again).
"""

import argparse
import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
import re
import resource
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import nbformat

from tools.course import release, submissions
from tools.course.release import is_answer, is_check, marks
from tools.course.sandbox import Limits, SandboxError, check_sandbox, font_list
from tools.notebooks import write_text

ROOT = Path(__file__).resolve().parents[2]
GRADER_MEMORY = 6 << 30  # bytes of address space for the process that reads a file
GRADES = (
    "student assignment score max auto_score auto_max manual_pending status reason "
    "seconds"
).split()
PARTS = "student assignment cell kind score max message".split()
MANUAL = "student cell max points comment answer where".split()


# --- one submission, in a process of its own ------------------------------------------


def grade_one(job):
    """Grade one submission: a dictionary, as it is stored in results/.

    job: the submission's "path"; "graded" and "blank", the key as the grader and the
    student have it; "limits", "sandboxed", "elsewhere", "fonts".
    """
    from tools.course.checks import Run

    start = time.monotonic()
    graded, blank = (nbformat.reads(job[n], as_version=4) for n in ("graded", "blank"))
    try:
        cells, notes = submissions.read(Path(job["path"]))
        elsewhere = {stem: set(names) for stem, names in job["elsewhere"].items()}
        notebook, more = submissions.restore(graded, blank, cells, elsewhere)
    except submissions.Refused as reason:
        return {"refused": str(reason), "seconds": time.monotonic() - start}
    fonts = Path(job["fonts"]) if job["fonts"] else None
    run = Run(notebook, Limits(**job["limits"]), job["sandboxed"], fonts).go()
    return {
        "refused": "",
        "passed": run.passed,
        "messages": run.messages,
        "tampered": run.tampered,
        "notes": notes + more,
        "notebook": nbformat.writes(notebook),
        "seconds": time.monotonic() - start,
    }


def run_job():
    """What the process does: a job from stdin, its result to stdout."""
    with contextlib.suppress(ValueError, OSError):  # not everywhere
        resource.setrlimit(resource.RLIMIT_AS, (GRADER_MEMORY, GRADER_MEMORY))
    job = json.load(sys.stdin)
    sys.stdin.close()
    print(json.dumps(grade_one(job)))


# jsonschema, which nbformat loads, would build a grammar of addresses: a second each
JOB = """
import sys
sys.modules["rfc3987_syntax"] = None
from tools.course.grade import run_job
run_job()
"""


class Pool:
    """Runs jobs, each in a process of its own, several at a time."""

    def __init__(self, jobs):
        self.threads = ThreadPoolExecutor(jobs)
        self.running, self.lock, self.stopped = set(), threading.Lock(), False

    def submit(self, job):
        return self.threads.submit(self.run, job)

    def run(self, job):
        """A job's result; a failure of the process becomes {"failed": reason}."""
        with self.lock:
            if self.stopped:
                return {"failed": "stopped"}
            process = subprocess.Popen(
                [sys.executable, "-c", JOB],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            self.running.add(process)
        # beside the cells: kernels that start, a large file that is read
        limit = job["limits"]["total"] + 240
        try:
            out, err = process.communicate(json.dumps(job), timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return {"failed": f"the grader was not done after {limit:g} s"}
        finally:
            with self.lock:
                self.running.discard(process)
        if process.returncode:
            last = (err.strip().splitlines() or [f"status {process.returncode}"])[-1]
            return {"failed": f"the grader stopped: {last[:200]}"}
        return json.loads(out)

    def stop(self):
        """End all that runs; kernels end with the process that started them."""
        with self.lock:
            self.stopped = True
            for process in self.running:
                process.kill()
        self.threads.shutdown(wait=True, cancel_futures=True)


# --- what is done already -------------------------------------------------------------


def fingerprint(path, common):
    """What a result follows from: the file, and what is common to all."""
    digest = hashlib.sha256(common)
    try:
        digest.update(submissions.load(path))
    except submissions.Refused as reason:
        digest.update(str(reason).encode())
    return digest.hexdigest()


def common_part(key_text, limits, sandboxed):
    """What every result follows from: key, limits, the grader and the library."""
    files = [Path(__file__).with_name(f"{n}.py") for n in CODE]
    files += sorted((ROOT / "genlib").rglob("*.py"))
    parts = [
        key_text,
        json.dumps(dataclasses.asdict(limits)),
        str(sandboxed),
        sys.version,
    ]
    parts += [path.read_text("utf-8") for path in files]
    return hashlib.sha256("\0".join(parts).encode()).digest()


CODE = ("checks", "grade", "guard", "release", "sandbox", "submissions")


def file_names(students):
    """Student -> a name for their files: safe everywhere, and no two alike."""
    names, seen = {}, {}
    for student in students:
        seen.setdefault(student.casefold(), []).append(student)
    for student in students:
        name = re.sub(r"[^\w-]+", "-", student).strip("-_")[:60]
        if name != student or len(seen[student.casefold()]) > 1:
            name += "-" + hashlib.sha256(student.encode()).hexdigest()[:8]
        names[student] = name
    return names


# --- points ---------------------------------------------------------------------------


def answers(notebook):
    """Hand-graded cell -> the student's text, "" where there is none."""
    tasks = submissions.task_answers(notebook)
    found = {}
    for cell in notebook.cells:
        if marks(cell) and is_answer(cell):
            if marks(cell).get("task"):
                found[cell.id] = tasks[cell.id]
            else:
                found[cell.id] = cell.source
    return found


def short_hash(text):
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def read_manual(path, key):
    """(student, cell) -> {"points", "comment", "answer"} from a table; SystemExit.

    points: a number, or None where there is none yet. answer: which text it is for.
    """
    most = {c.id: marks(c)["points"] for c in key.cells if is_answer(c)}
    given = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            where = f"{path.name}, line {number}"
            row = {k: unguarded((row[k] or "").strip()) for k in row if k in MANUAL}
            if missing := [n for n in MANUAL[:4] if n not in row]:
                raise SystemExit(f"{where}: there is no column {missing[0]!r}")
            if row["cell"] not in most:
                raise SystemExit(f"{where}: no hand-graded cell {row['cell']!r}")
            try:
                points = float(row["points"].replace(",", ".") or "0")
            except ValueError:
                points = -1.0
            if not 0 <= points <= most[row["cell"]]:
                raise SystemExit(
                    f"{where}: {row['points']!r} is no number from 0 to "
                    f"{most[row['cell']]:g}"
                )
            given[row["student"], row["cell"]] = {
                "points": points if row["points"] else None,
                "comment": row.get("comment", ""),
                "answer": row.get("answer", ""),
            }
    return given


class Book:
    """nbgrader's gradebook for one assignment, made anew."""

    def __init__(self, path, stem, key):
        from nbgrader.api import Gradebook
        from nbgrader.preprocessors import SaveCells
        from sqlalchemy import Engine, event

        # it is made anew each time: no need to wait for the disk at every point
        @event.listens_for(Engine, "connect")
        def hurry(connection, _):
            connection.execute("PRAGMA synchronous = OFF")

        path.unlink(missing_ok=True)
        programs = str(Path(sys.executable).parent)  # nbgrader calls alembic
        os.environ["PATH"] = programs + os.pathsep + os.environ.get("PATH", "")
        self.stem, self.url = stem, f"sqlite:///{path}"
        with Gradebook(self.url) as book:
            book.add_assignment(stem)
        SaveCells().preprocess(release.graded_copy(key), self.resources(""))
        self.book = Gradebook(self.url)

    def resources(self, student):
        return {
            "nbgrader": {
                "assignment": self.stem,
                "notebook": self.stem,
                "student": student,
                "db_url": self.url,
            }
        }

    def enter(self, student, notebook, passed, manual):
        """Enter one submission; cell -> nbgrader's grade, a dictionary.

        notebook: as it was run. passed: the names of the checks that count.
        manual: cell -> points.
        """
        from nbgrader.preprocessors import SaveAutoGrades

        self.book.add_student(student)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Object of type <Submitted")
            self.book.add_submission(self.stem, student)
        # nbgrader reads points off outputs, and students write those
        evidence = nbformat.from_dict(json.loads(json.dumps(notebook)))
        for cell in evidence.cells:
            if is_check(cell):
                failed = nbformat.v4.new_output("error", ename="failed", evalue="")
                cell.outputs = [] if cell.id in passed else [failed]
        SaveAutoGrades().preprocess(evidence, self.resources(student))
        self.book.db.expire_all()
        texts = answers(notebook)
        grades = {}
        for cell in notebook.cells:
            if is_check(cell) or (marks(cell) and is_answer(cell)):
                grade = self.book.find_grade(cell.id, self.stem, self.stem, student)
                if cell.id in texts and marks(cell).get("task") and not texts[cell.id]:
                    grade.auto_score, grade.needs_manual_grade = 0.0, False
                if cell.id in manual:
                    grade.manual_score = manual[cell.id]
                    grade.needs_manual_grade = False
                self.book.db.commit()
                grades[cell.id] = grade.to_dict()
        return grades

    def close(self):
        self.book.close()


# --- the tables -----------------------------------------------------------------------


def guarded(text):
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def unguarded(text):
    return text[1:] if re.match(r"'[=+\-@]", text) else text


def write_table(path, columns, rows):
    file = io.StringIO(newline="")
    table = csv.DictWriter(file, columns, lineterminator="\n")
    table.writeheader()
    for row in rows:
        cells = {k: guarded(v) if isinstance(v, str) else v for k, v in row.items()}
        table.writerow(cells)
    write_text(path, file.getvalue())


def number(value):
    """A score without needless digits."""
    return f"{round(value, 4):g}"


NOTHING = {"points": None, "comment": "", "answer": ""}


class Report:
    """All that is written, from the results of all submissions."""

    def __init__(self, out, stem, key, manual):
        self.out, self.stem, self.key = out, stem, key
        self.given, self.grades, self.parts, self.manual = manual, [], [], []
        self.most = {
            c.id: marks(c)["points"] for c in key.cells if is_check(c) or is_answer(c)
        }
        self.auto = sum(marks(c)["points"] for c in key.cells if is_check(c))
        self.book = Book(out / "gradebook.db", stem, key)

    def add(self, found, name, result):
        from tools.course.feedback import page

        row = {
            "student": found.student,
            "assignment": self.stem,
            "score": "0",
            "max": number(sum(self.most.values())),
            "auto_score": "0",
            "auto_max": number(self.auto),
            "manual_pending": "0",
            "status": "graded",
            "seconds": f"{result.get('seconds', 0):.1f}",
        }
        notes = list(result.get("notes", []))
        if found.others:
            name_of = submissions.plain(found.path.name)
            notes.append(f"{name_of} counts, not {', '.join(found.others[:3])}")
        parts = []
        if result.get("failed"):
            row |= {"status": "failed", "score": "", "auto_score": ""}
            notes.insert(0, result["failed"])
        elif result["refused"]:
            row["status"] = "refused"
            what = f"{submissions.plain(found.path.name)} " if found.path else ""
            notes.insert(0, what + result["refused"])
        else:
            parts = self.add_graded(found.student, name, result, row, notes)
        row["reason"] = "; ".join(n.replace("\n", " ") for n in notes)
        self.grades.append(row)
        path = self.out / "feedback" / f"{name}.html"
        write_text(path, page(self.key, row, parts, result))

    def add_graded(self, student, name, result, row, notes):
        """Enter a submission that was run; its parts, for the feedback."""
        notebook = nbformat.reads(result["notebook"], as_version=4)
        where = self.out / "executed" / f"{name}.ipynb"
        write_text(where, result["notebook"] + "\n")
        texts, manual, comments = answers(notebook), {}, {}
        for cell, text in texts.items():
            entry = self.given.pop((student, cell), NOTHING)
            comments[cell] = entry["comment"]
            if entry["points"] is None:
                continue
            if entry["answer"] in ("", short_hash(text)):
                manual[cell] = entry
            else:
                notes.append(f"{cell} has changed since it was graded by hand")
                was = f"[{number(entry['points'])} points for an earlier answer]"
                comments[cell] = f"{was} {entry['comment']}".strip()
        points = {cell: entry["points"] for cell, entry in manual.items()}
        grades = self.book.enter(student, notebook, result["passed"], points)
        parts, pending = [], 0
        for cell, grade in grades.items():
            waits, entry = bool(grade["needs_manual_grade"]), manual.get(cell)
            value = grade["manual_score"]
            value = grade["auto_score"] if value is None else value
            pending += self.most[cell] * waits
            message = result["messages"].get(cell, "")
            kind = "manual" if cell in texts else "auto"
            if kind == "manual":
                message = entry["comment"] if entry else "" if waits else "No answer."
            part = {
                "student": student,
                "assignment": self.stem,
                "cell": cell,
                "kind": kind,
                "score": "" if waits else number(value or 0),
                "max": number(self.most[cell]),
                "message": message,
            }
            parts.append(part)
            if waits or entry:
                self.manual.append(
                    {
                        "student": student,
                        "cell": cell,
                        "max": part["max"],
                        "points": number(entry["points"]) if entry else "",
                        "comment": comments[cell],
                        "answer": short_hash(texts[cell]),
                        "where": str(where.relative_to(self.out)),
                    }
                )
        self.parts += parts
        scores = [(p["kind"], float(p["score"] or 0)) for p in parts]
        row["score"] = number(sum(s for _, s in scores))
        row["auto_score"] = number(sum(s for kind, s in scores if kind == "auto"))
        row["manual_pending"] = number(pending)
        if pending:
            row["status"] = "manual"
        if result["tampered"]:
            row["status"] = "tampered"
            notes.insert(0, result["tampered"])
        elif any(p["kind"] == "auto" and p["score"] == "0" for p in parts):
            worst = [
                p["cell"] for p in parts if p["kind"] == "auto" and p["score"] == "0"
            ]
            shown = ", ".join(worst[:4]) + (", ..." if len(worst) > 4 else "")
            notes.append(f"no points for {shown}")
        return parts

    def write(self):
        self.book.close()
        for (student, cell), entry in self.given.items():  # a person's work stays
            points = entry["points"]
            self.manual.append(
                entry
                | {"student": student, "cell": cell, "max": number(self.most[cell])}
                | {"points": "" if points is None else number(points), "where": ""}
            )
        write_table(self.out / "grades.csv", GRADES, self.grades)
        write_table(self.out / "parts.csv", PARTS, self.parts)
        write_table(self.out / "manual.csv", MANUAL, self.manual)


# --- the command ----------------------------------------------------------------------


def arguments_of(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m tools.course.grade", description=__doc__.partition("\n")[0]
    )
    plain = Limits()
    parser.add_argument("submissions", type=Path, help="the folder of submissions")
    parser.add_argument("--assignment", required=True, metavar="STEM", help="vae, ...")
    parser.add_argument("--out", required=True, type=Path, help="where results go")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    parser.add_argument("--jobs", type=int, default=cores, help="so many at a time")
    parser.add_argument("--manual", type=Path, help="points by hand; OUT/manual.csv")
    for option, kind, default, unit, use in (
        ("--cell-timeout", float, plain.cell, "S", "for one cell"),
        ("--timeout", float, plain.total, "S", "for a whole notebook"),
        ("--memory", int, plain.memory, "MiB", "for one submission"),
    ):
        parser.add_argument(option, type=kind, default=default, metavar=unit, help=use)
    parser.add_argument(
        "--no-sandbox", action="store_true", help="for submissions that you trust"
    )
    arguments = parser.parse_args(argv)
    if arguments.jobs < 1 or arguments.cell_timeout <= 0 or arguments.timeout <= 0:
        parser.error("jobs and timeouts must be positive")
    return arguments


def main(argv=None):
    arguments = arguments_of(argv)
    stem, out = arguments.assignment, arguments.out
    if stem not in release.stems():
        have = ", ".join(release.stems()) or "none"
        raise SystemExit(f"no assignment {stem!r}; there are: {have}")
    if not arguments.submissions.is_dir():
        raise SystemExit(f"{arguments.submissions} is no folder")
    limits = Limits(
        cell=arguments.cell_timeout, total=arguments.timeout, memory=arguments.memory
    )
    sandboxed = not arguments.no_sandbox
    try:
        key = release.read_key(release.ASSIGNMENTS / f"{stem}.ipynb")
        release.student_copy(key)
        if sandboxed:
            check_sandbox(limits)
    except (release.ReleaseError, SandboxError) as error:
        raise SystemExit(str(error)) from None
    manual_path = arguments.manual or out / "manual.csv"
    if arguments.manual and not manual_path.is_file():
        raise SystemExit(f"{manual_path} is no file")
    manual = read_manual(manual_path, key) if manual_path.is_file() else {}
    for part in ("feedback", "executed", "results"):
        (out / part).mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    every = submissions.find(arguments.submissions, stem)
    if not every:
        raise SystemExit(f"{arguments.submissions} has no submissions")
    names = file_names([found.student for found in every])
    results = grade_all(every, names, key, stem, limits, sandboxed, out, arguments.jobs)
    report = Report(out, stem, key, manual)
    for found in every:
        report.add(found, names[found.student], results[found.student])
    report.write()
    waiting = sum(row["status"] in ("manual", "tampered") for row in report.grades)
    seconds = time.monotonic() - start
    print(
        f"{len(every)} submissions in {seconds:.0f} s; {waiting} wait for a person. "
        f"See {out / 'grades.csv'}"
    )


def grade_all(every, names, key, stem, limits, sandboxed, out, jobs):
    """Student -> result, graded now or before; each is stored as it is done."""
    graded = nbformat.writes(release.graded_copy(key))
    blank = nbformat.writes(release.student_copy(key))
    common = common_part(nbformat.writes(key), limits, sandboxed)
    elsewhere = {
        other: sorted(cell.id for cell in release.read_key(path).cells)
        for path in sorted(release.ASSIGNMENTS.glob("*.ipynb"))
        if (other := path.stem) != stem
    }
    fonts = font_list()
    results, waiting, pool = {}, {}, Pool(jobs)
    width = len(str(len(every)))

    def tell(student, result, how):
        line = result.get("failed") or result["refused"] or result["tampered"]
        if not line:
            total = sum(map(is_check, key.cells))
            line = f"{len(result['passed'])} of {total} checks"
        count = f"{len(results):{width}}/{len(every)}"
        print(f"{count} {student}: {line} ({how})", flush=True)

    try:
        for found in every:
            if not found.path:
                results[found.student] = {"refused": found.reason, "seconds": 0}
                tell(found.student, results[found.student], "0.0 s")
                continue
            stamp = fingerprint(found.path, common)
            store = out / "results" / f"{names[found.student]}.json"
            known = read_result(store)
            if known.get("fingerprint") == stamp:
                results[found.student] = known
                tell(found.student, known, "as before")
                continue
            job = {
                "path": str(found.path.absolute()),
                "graded": graded,
                "blank": blank,
                "limits": dataclasses.asdict(limits),
                "sandboxed": sandboxed,
                "elsewhere": elsewhere,
                "fonts": str(fonts or ""),
            }
            waiting[pool.submit(job)] = found.student, store, stamp
        for future in as_completed(waiting):
            student, store, stamp = waiting[future]
            result = results[student] = future.result()
            if not result.get("failed"):
                write_text(store, json.dumps(result | {"fingerprint": stamp}))
            tell(student, result, f"{result.get('seconds', 0):.1f} s")
    except KeyboardInterrupt:
        raise SystemExit(
            f"\nInterrupted; {len(results)} of {len(every)} are done and kept. "
            "Run it again to go on."
        ) from None
    finally:
        pool.stop()
    return results


def read_result(path):
    """A stored result, {} where there is none."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


if __name__ == "__main__":
    main()
