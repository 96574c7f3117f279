"""A student's feedback: one page of HTML that needs nothing else."""

import re
from html import escape

import nbformat

from tools.course.release import is_check, marks

STYLE = """
:root { color-scheme: light dark; }
body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem;
  font: 1.05rem/1.55 system-ui, sans-serif; overflow-wrap: break-word;
  color: #1c1c22; background: #fff; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; width: 100%; }
caption { text-align: left; padding: .5rem 0; }
small { font-weight: normal; }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem;
  border-bottom: 1px solid #7a7a85; }
td.n, th.n { text-align: right; white-space: nowrap; }
pre { overflow-x: auto; padding: .8rem; border: 1px solid #7a7a85; border-radius: 4px;
  font-size: .9rem; white-space: pre-wrap; }
.total { font-size: 1.4rem; font-weight: 600; }
@media (prefers-color-scheme: dark) {
  body { color: #e9e9ee; background: #17171c; } }
"""


def page(key, row, parts, result):
    """The page, from a row of grades.csv, the rows of parts.csv and what was run.

    Of the key it shows the headings and, for an answer that a person has graded, the
    rubric: nothing else.
    """
    title = f"{row['assignment']}: feedback for {row['student']}"
    body = [f"<h1>{escape(title)}</h1>"]
    if row["status"] == "failed":
        body.append(
            "<p>The grader could not finish. Nothing is lost; ask your teacher.</p>"
        )
    else:
        body.append(
            f'<p class="total">{escape(row["score"])} of {escape(row["max"])} '
            "points</p>"
        )
    if row["manual_pending"] != "0":
        body.append(
            f"<p>Answers worth {escape(row['manual_pending'])} points wait for a "
            "person; they are not in the total yet.</p>"
        )
    if row["status"] == "tampered":
        body.append("<p>A person will look at this submission before it counts.</p>")
    noted = [
        n for n in row["reason"].split("; ") if n and not n.startswith("no points")
    ]
    if noted:
        body.append(f"<p>Noted: {escape('; '.join(noted))}.</p>")
    if parts:
        body += table(key, parts)
        body += own_work(key, parts, result)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        "<main>\n" + "\n".join(body) + "\n</main>\n</body>\n</html>\n"
    )


def headings(key):
    """Cell's name -> the heading that it stands under."""
    found, heading = {}, ""
    for cell in key.cells:
        if cell.cell_type == "markdown" and not marks(cell).get("solution"):
            if match := re.search(r"^##\s+(.+)$", cell.source, re.MULTILINE):
                heading = match[1].strip()
        found[cell.id] = heading
    return found


def kind_of(part):
    if part["kind"] == "manual":
        return "your answer"
    return "hidden checks" if part["cell"].endswith("-hidden") else "checks"


def table(key, parts):
    under = headings(key)
    yield "<table>\n<caption>Points by part</caption>\n<thead><tr>"
    yield '<th scope="col">Part</th>'
    yield '<th scope="col" class="n">Points</th><th scope="col">What was found</th>'
    yield "</tr></thead>\n<tbody>"
    for part in parts:
        full = part["score"] == part["max"]
        said = part["message"] or ("Right." if full and part["kind"] == "auto" else "")
        if part["score"] == "":
            said = "Waits for a person."
        score = part["score"] or "–"
        name = re.sub("-(check|hidden)$", "", part["cell"])
        yield (
            f'<tr><th scope="row">{escape(under[part["cell"]])}'
            f"<br><small>{escape(name)}: {kind_of(part)}</small></th>"
            f'<td class="n">{escape(score)} of {escape(part["max"])}</td>'
            f"<td>{escape(said or '–')}</td></tr>"
        )
    yield "</tbody>\n</table>"


def own_work(key, parts, result):
    """What the student wrote, cell by cell, with what went wrong in it."""
    under, shown = headings(key), None
    graded = {part["cell"]: part for part in parts}
    sources = {cell.id: cell.source for cell in key.cells}
    place = ""
    yield "<h2>Your work</h2>"
    for cell in nbformat.reads(result["notebook"], as_version=4).cells:
        place = cell.id if marks(cell) else place
        if (marks(cell) and not marks(cell).get("solution")) or is_check(cell):
            continue
        if not cell.source.strip():
            continue
        heading = under.get(place) or "At the beginning"
        if heading != shown:
            shown = heading
            yield f"<h3>{escape(heading)}</h3>"
        label = f"what you wrote in {cell.id}"
        yield (
            f'<pre tabindex="0" role="region" aria-label="{escape(label)}">'
            f"<code>{escape(cell.source)}</code></pre>"
        )
        if message := result["messages"].get(cell.id):
            yield f"<p>This cell stopped: {escape(message)}</p>"
        part = graded.get(cell.id)
        if part and part["kind"] == "manual" and part["score"] != "":
            _, found, rubric = sources[cell.id].partition("**Rubric**")
            if found and part["message"] != "No answer.":
                yield f"<p>Rubric:</p>\n<pre>{escape(rubric.strip())}</pre>"
