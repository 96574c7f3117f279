"""The pages for teachers say what is so: numbers, links, settings, syllabi, commands.

What can drift is read off its source: points off the assignments, minutes off the
chapters, the names of live figures off the notebooks, and how a figure behaves off the
program that it runs.
"""

import json
import re
from pathlib import Path

import pytest
import yaml

from tools import install, pack

ROOT = Path(__file__).parents[1]
PAGES = {
    name: (ROOT / "book" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("teaching", "teaching_chapters", "teaching_setup")
}
NOTEBOOKS = {path.stem[3:]: path for path in sorted(ROOT.glob("notebooks/*.ipynb"))}
ASSIGNMENTS = sorted(ROOT.glob("assignments/*.ipynb"))


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def prose(path):
    return "\n\n".join(
        "".join(c["source"]) for c in cells(path) if c["cell_type"] == "markdown"
    )


def part(page, label):
    """What stands under a label of a page, up to the next."""
    found = re.search(rf"(?s)\n\({label}\)=\n(.*?)(?=\n\([\w-]+\)=\n|\Z)", page)
    assert found, f"no label {label}"
    return found[1]


def table(text):
    """The rows of the first table in a text, a list of cells each, without its head."""
    found = re.search(r"(?m)(?:^\|.*\|\n?)+", text)
    rows = found[0].strip().splitlines()[2:]
    return [[c.strip() for c in row.strip("|").split("|")] for row in rows]


def plain(cell):
    return re.sub(r"`|\{doc\}|<[^>]*>", "", cell).strip()


# --- chapters: misconceptions, questions, figures -------------------------------------


def slugs(path):
    """The anchors of a chapter's headings, as MyST makes them."""
    headings = re.findall(r"(?m)^#{1,3} (.+)$", prose(path))
    bare = [re.sub(r"\$[^$]*\$", "", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in bare}


def figures(path):
    """The titles of a chapter's live figures, as their captions begin."""
    html = "".join(
        "".join(o.get("data", {}).get("text/html", ""))
        for c in cells(path)
        for o in c.get("outputs", [])
    )
    return re.findall(r"data-widget=.*?<figcaption>([^.?]+)[.?]", html, re.DOTALL)


def chapter_problems(stem, page):
    """What is missing or leads nowhere in a chapter's part of the page."""
    text, wrong = part(page, f"teach-{stem}"), []
    if f"{{doc}}`/notebooks/{NOTEBOOKS[stem].stem}`" not in text:
        wrong.append("it does not link to its chapter")
    said = re.findall(r'(?m)^"(.+)"\n: (.+)$', text)
    if not 4 <= len(said) <= 6:
        wrong.append(f"{len(said)} misconceptions")
    for quotation, answer in said:
        links = re.findall(r"\]\(\.\./notebooks/(\d\d_(\w+))\.ipynb#([^)]+)\)", answer)
        if not links:
            wrong.append(f"{quotation!r} has no link to a section")
        for name, other, anchor in links:
            path = NOTEBOOKS.get(other)
            if path is None or path.stem != name or anchor not in slugs(path):
                wrong.append(f"{quotation!r}: {name}#{anchor} is not there")
    asked = re.findall(r"(?s):::\{dropdown\} ([^\n]+)\n(.*?)\n:::", text)
    if not 3 <= len(asked) <= 5:
        wrong.append(f"{len(asked)} questions")
    wrong += [f"no real answer to {q!r}" for q, a in asked if len(a.split()) < 30]
    outcomes = re.findall(r"(?m)^- (\w+) .+[;.]$", text.partition("**Misconc")[0])
    if not 4 <= len(outcomes) <= 6 or {"know", "understand", "learn"} & {*outcomes}:
        wrong.append(f"outcomes: {outcomes}")
    shown = text.partition("**Show**")[2]
    for title in figures(NOTEBOOKS[stem]):
        if f"*{title}" not in shown:
            wrong.append(f"it does not show {title!r}")
    if "**The assignment**" not in text:
        wrong.append("no word on the assignment")
    return wrong


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_a_chapter_has_what_a_teacher_needs(stem):
    assert not chapter_problems(stem, PAGES["teaching_chapters"])


@pytest.mark.parametrize(
    "old, new, seen",
    [
        ("#10-break-it-posterior-collapse)", "#10-broken)", "10-broken is not there"),
        ("03_vae.ipynb#8-", "03_vaes.ipynb#8-", "03_vaes#8-"),
        ("[section 8](../notebooks/03_vae.ipynb#8", "[section 8](#8", "has no link"),
        (":::{dropdown} Posterior", "Posterior", "no real answer|3 questions|"),
        ("*A map of handwritten digits.*", "The map.", "'A map of handwritten digits'"),
        ("- derive the evidence", "- know the evidence", "outcomes: "),
        ('**The assignment** "What the toll', '"What the toll', "no word on the"),
    ],
)
def test_a_fault_in_a_chapter_is_seen(old, new, seen):
    page = PAGES["teaching_chapters"]
    assert page.count(old) >= 1
    wrong = chapter_problems("vae", page.replace(old, new))
    if "|" in seen:  # one question fewer is still enough: drop two
        again = page.replace(old, new).replace(":::{dropdown} Why does the enc", "Why")
        wrong = chapter_problems("vae", again)
        assert any("2 questions" in w for w in wrong), wrong
    else:
        assert any(seen in w for w in wrong), wrong


# --- numbers of the first page --------------------------------------------------------


def minutes_of_assignments(text):
    """The sum of the column `minutes` of the table that a title cell holds."""
    head = [c.strip().lower() for c in re.search(r"(?m)^\|(.*)\|$", text)[1].split("|")]
    return sum(int(row[head.index("minutes")]) for row in table(text))


@pytest.mark.parametrize("path", ASSIGNMENTS, ids=lambda path: path.stem)
def test_the_table_of_assignments_is_right(path):
    rows = {plain(row[0]): row for row in table(part(PAGES["teaching"], "assignments"))}
    assert path.stem in rows, "a row is missing"
    found = cells(path)
    title = re.search(r"# Assignment: (.+)", "".join(found[0]["source"]))[1]
    points = {"code": 0, "markdown": 0}
    for cell in found:
        mark = cell["metadata"]["nbgrader"]
        points[cell["cell_type"]] += mark.get("points", 0)
    minutes = minutes_of_assignments("".join(found[0]["source"]))
    told = [title[0].upper() + title[1:], minutes, sum(points.values())]
    told += [points["code"], points["markdown"]]
    assert rows[path.stem][1:] == [f"{value:g}" if value != told[0] else value
                                   for value in told]  # fmt: skip
    assert 60 <= minutes <= 120
    assert 0.5 < points["code"] / sum(points.values()) < 0.7  # "about 60 %"


def test_each_chapter_has_a_row_and_each_row_a_chapter():
    page = PAGES["teaching"]
    assert [plain(r[0]) for r in table(part(page, "assignments"))] == [*NOTEBOOKS]
    linked = re.findall(r"</notebooks/\d\d_(\w+)>", part(page, "timing"))
    assert linked == [*NOTEBOOKS]
    for path in ASSIGNMENTS:
        assert path.stem in NOTEBOOKS


WORDS = {
    "about a minute": 1,
    "under a minute": 1,
    "a minute and a half": 1.5,
    "about a minute and a half": 1.5,
    "an hour": 60,
    "an hour and a half": 90,
}


def test_times_are_those_that_the_chapters_give():
    rows = table(part(PAGES["teaching"], "timing"))
    for row, (stem, path) in zip(rows, NOTEBOOKS.items(), strict=True):
        text = prose(path)
        words = re.search(
            r"\*Time:\* ([\w ]+) of computing[^.]*?[,;] ([\w ]+) of reading", text
        )
        computing, reading = (WORDS[part] for part in words.groups())
        assert [float(row[1]), float(row[2])] == [reading, computing], stem
        assert len(re.findall(r"(?m)^### Exercise \d", text)) == 6, stem


# --- the three syllabi ----------------------------------------------------------------


def handed(rows, column):
    """Assignment -> (row in which it goes out, row in which it comes in)."""
    out, back = {}, {}
    for number, row in enumerate(rows):
        for name, what in re.findall(r"`(\w+)` (out|in)", row[column]):
            (out if what == "out" else back)[name] = number
    return {name: (out.get(name), back.get(name)) for name in {*out, *back}}


def test_the_lecture_fits_its_minutes_and_shows_live_figures():
    rows = table(part(PAGES["teaching"], "lecture"))
    starts = [int(row[0]) for row in rows]
    assert starts == sorted(set(starts)) and starts[0] == 0 and starts[-1] < 90
    titles = {title for path in NOTEBOOKS.values() for title in figures(path)}
    named = re.findall(r"</notebooks/\w+>`, \*([^*]+)\*", " ".join(r[2] for r in rows))
    assert len(named) >= 3 and not set(named) - titles, set(named) - titles


def test_the_module_has_four_sessions_and_two_assignments():
    rows = table(part(PAGES["teaching"], "module"))
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    pairs = handed(rows, 4)
    assert len(pairs) == 2 and all(a < b for a, b in pairs.values())


def test_the_term_has_thirteen_weeks_and_every_assignment():
    text = part(PAGES["teaching"], "term")
    rows = table(text)
    assert [int(row[0]) for row in rows] == list(range(1, 14))
    pairs = handed(rows, 4)
    assert set(pairs) == set(NOTEBOOKS)
    assert all(a < b for a, b in pairs.values())
    read = re.findall(r"</notebooks/\d\d_(\w+)>", " ".join(row[3] for row in rows))
    assert list(dict.fromkeys(read)) == [*NOTEBOOKS]  # in the order of the book
    marks = [int(n) for n in re.findall(r"(\d+) %", text.partition("**Marks**")[2])]
    assert sum(marks) == 100


def test_five_questions_have_answers():
    text = part(PAGES["teaching"], "selftest")
    assert len(re.findall(r"(?m)^\*\*\d\.\*\*", text)) == 5
    answers = re.findall(r"(?s):::\{dropdown\} Answer\n(.*?)\n:::", text)
    assert len(answers) == 5 and all("*If not:*" in answer for answer in answers)


# --- setting up -----------------------------------------------------------------------


def blocks(kind):
    return re.findall(rf"(?s)```{kind}\n(.*?)```", PAGES["teaching_setup"])


def test_commands_are_those_of_the_book():
    page = PAGES["teaching_setup"]
    assert f'"{install.TORCH}"' in page
    assert f"{pack.NAME}-<version>.zip" in page
    using = (ROOT / "book" / "using.md").read_text(encoding="utf-8")
    size = re.search(r"writes into `_build`, (\d+ MB)", using)[1]
    assert f"<version>.zip` in `_build`, {size}." in page
    targets = re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"))
    for text in PAGES.values():
        for name in re.findall(r"(?:`|^)make ([a-z]+)", text, re.MULTILINE):
            assert name in targets, f"make {name}"
    described = {plain(row[0]) for row in table(page[page.index("| file | what") :])}
    folder = {path.name for path in (ROOT / ".binder").iterdir()}
    assert described == folder


def test_values_for_kubernetes_can_be_read():
    (text,) = blocks("yaml")
    user = yaml.safe_load(text)["singleuser"]
    assert user["extraEnv"]["OMP_NUM_THREADS"] == "1"  # a string, or helm refuses
    limit, guarantee = (float(user["memory"][k][:-1]) for k in ("limit", "guarantee"))
    assert 0.5 <= guarantee <= limit
    default, gpu = user["profileList"]
    assert default["default"] and "kubespawner_override" not in default
    asked = gpu["kubespawner_override"]["extra_resource_limits"]
    assert asked == {"nvidia.com/gpu": "1"}


def test_the_data_of_the_offline_room_are_fetched_by_code_that_runs(monkeypatch):
    from genlib import data

    called = []
    monkeypatch.setattr(data, "load", lambda *a: called.append(a))
    monkeypatch.setattr(data, "text_file", lambda *a: called.append(a))
    (code,) = re.findall(r"(?s)<<'END'\n(.*?)\nEND", PAGES["teaching_setup"])
    exec(code, {})
    files = sum(len(names) for names in data.TEXTS.values())
    assert len(set(called)) == 4 + files


@pytest.mark.parametrize("path", ASSIGNMENTS, ids=lambda path: path.stem)
def test_the_site_holds_nothing_of_a_key(site, path):
    """No line of a solution, a hidden check or a model answer is on any page."""
    from tools.course import release

    key = release.read_key(path)
    chapters = "".join(prose(p) for p in NOTEBOOKS.values()) + "".join(
        "".join(c["source"]) for p in NOTEBOOKS.values() for c in cells(p)
    )
    secret = {
        line.strip()
        for cell in key.cells
        for line in release.split_secrets(cell)[1]
        if len(line.strip()) >= 40 and line.strip() not in chapters
    }
    assert len(secret) > 20
    assert not [p for p in site.rglob("*") if "assignments" in p.parts]
    for page in site.rglob("*"):
        if page.suffix in (".html", ".ipynb", ".js", ".md"):
            text = page.read_text(encoding="utf-8")
            found = [line for line in secret if line in text]
            assert not found, f"{page.name}: {found[0]!r}"


# --- what is said of the live figures -------------------------------------------------


def last(program, steps, table=None, seed=0, **settings):
    """Metrics after so many steps of a live figure's program, by name."""
    from genlib.live import Run

    run = Run(program, seed)
    if table:
        run.choose(*table)
    metrics, _ = run.step(steps, **settings)
    return dict(zip(program.metrics, metrics[-1].tolist(), strict=True))


def said(text):
    assert text in PAGES["teaching_chapters"], text
    return [float(n.replace("−", "-")) for n in re.findall(r"−?\d+(?:\.\d+)?", text)]


def test_the_mixture_behaves_as_told():
    from genlib.data import mixture_program

    program = mixture_program()

    def score(**settings):
        return last(program, 60, **settings)["log_likelihood"]

    start, end = said("rises from −3.6 to −2.3")
    assert last(program, 1)["log_likelihood"] == pytest.approx(start, abs=0.05)
    assert score() == pytest.approx(end, abs=0.1)
    assert score(floor=0.1) == pytest.approx(said("it stays at −3.3")[0], abs=0.1)
    assert score(temperature=3.0) == pytest.approx(said("−3.6 for ever")[0], abs=0.05)
    spiral = [score(table=("target", "spiral"), seed=seed) for seed in (0, 1, 2)]
    assert spiral == pytest.approx(said("−2.40, −2.51, −2.43"), abs=0.03)


def test_the_walkers_behave_as_told():
    from genlib.training import SURFACES, surface_program

    program, names = surface_program(), [*SURFACES]
    said("Set the rate of SGD to 0.21"), said("at 0.19 it arrives")
    assert last(program, 30, lr_SGD=0.21)["SGD_height"] > 100
    assert last(program, 120, lr_SGD=0.19)["SGD_height"] < 0.01
    said("Adam is slowest of the three after 30 steps")
    heights = last(program, 30, surface=float(names.index("slanted valley")))
    assert max(heights, key=lambda k: heights[k] * k.endswith("height")) == (
        "Adam_height"
    )


def test_the_game_of_two_numbers_behaves_as_told():
    from genlib.stability import dirac_program

    program = dirac_program()
    away = last(program, 300, bilinear=1.0)
    (far,) = said("at once is 430 away")
    assert away["at_once"] == pytest.approx(far, rel=0.01)
    (circle,) = said("in turns circles at 1.2")
    assert away["in_turns"] == pytest.approx(circle, abs=0.1) and away["r1"] < 0.01
    assert away["gp"] == pytest.approx(said("WGAN-GP still 1.3 away")[0], abs=0.1)
    wider = last(program, 300, weight=1.0)
    assert wider["gp"] == pytest.approx(said("2.0 in the Dirac-GAN")[0], abs=0.1)


def test_the_recall_behaves_as_told():
    from genlib.attention import recall_program
    from genlib.live import Run

    run = Run(recall_program())
    run.step(100)
    view = run.view()
    said("After 100 steps attention answers everything, the unit 45 %")
    assert view["attention"].mean() > 0.98
    assert view["GRU"].mean() == pytest.approx(0.45, abs=0.07)


def test_the_ring_behaves_as_told():
    import torch

    from genlib.gan import toy_program
    from genlib.live import Run

    turn = torch.arange(8) * torch.pi / 4
    centres = 2 * torch.stack((turn.cos(), turn.sin()), 1)
    program, found = toy_program(), {}
    for every in (1.0, 10.0):
        run = Run(program)
        run.step(150, d_every=every)
        gap, nearest = torch.cdist(run.view()["fake"], centres).min(1)
        counts = torch.bincount(nearest[gap < 0.5], minlength=8)
        found[every] = int((counts >= 0.02 * len(gap)).sum())
    said("the rose points reach all eight clusters within 150 rounds")
    assert found[1.0] == 8 and found[10.0] <= 2
