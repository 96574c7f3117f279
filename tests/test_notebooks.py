"""Every notebook has the parts, the stored form and the care that a chapter needs.

What the cells print is compared by nbval (conftest.py); this holds all the rest.
"""

import copy
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools.notebooks import METADATA, normalise, read_patterns, setup_source
from tools.sync import read_marker

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

PARTS = [
    "part-play",
    "part-build",
    "part-train",
    "part-look",
    "part-break",
    "part-measure",
    "part-real",
    "part-when",
    "part-exercises",
    "part-summary",
]
WORDS = (2500, 5000)
MAX_CELLS, MAX_LINES, MAX_BYTES = 70, 40, 500_000
EXERCISE = re.compile(r"^#+ Exercise (\d+)", re.MULTILINE)
MACHINE_PATH = re.compile(
    r"(?<![\w/.:])(?:/(?:home|Users|root|tmp|work|content|usr|opt|var|mnt|data)/"
    r"|[A-Z]:\\\\?\w)[^\s\"']*"
)
TIMING = re.compile(
    r"\b(?:wall time|cpu times?|elapsed)\b|\d+(?:\.\d+)? ?(?:ms|µs|us|sec|seconds?)\b"
    r"|\d+\.\d+ ?s\b|\bit/s\b",
    re.IGNORECASE,
)


# --- looking at cells -----------------------------------------------------------------


def tags(cell):
    return cell.metadata.get("tags", [])


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def output_texts(cell):
    """The texts of a cell's outputs, pictures left out."""
    for output in cell.outputs:
        if output.output_type == "stream":
            yield output.text
        for mime, value in output.get("data", {}).items():
            if not mime.startswith("image/") and isinstance(value, str):
                yield re.sub(r"data:image/[^\"')]*", "", value)


def pictures(cell):
    mimes = [mime for output in cell.outputs for mime in output.get("data", {})]
    return [mime for mime in mimes if mime.startswith("image/")]


def count_words(notebook):
    """Words of the prose: no code, formulas, html, link targets or directive names."""
    words = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"<!--.*?-->", " ", cell.source, flags=re.DOTALL)
            text = re.sub(
                r"^ *(`{3,}|~{3,})(?!\{).*?^ *\1", " ", text, flags=re.S | re.M
            )
            text = re.sub(
                r"\$\$.*?\$\$|\\begin\{.*?\\end\{\w+\*?\}", " ", text, flags=re.S
            )
            text = re.sub(r"\$[^$\n]+\$|<[^>]+>|\]\([^)]*\)", " ", text)
            text = re.sub(
                r"^ *[:`]{3,}.*$|^ *:\w+:.*$|^\([\w:-]+\)=$", " ", text, flags=re.M
            )
            words += len(re.findall(r"[^\W\d_][\w'’-]*", text))
    return words


def name_cell(notebook, cell):
    number = next(n for n, c in enumerate(code_cells(notebook), 1) if c is cell)
    return f"code cell {number} ({cell.source.splitlines()[0][:50]!r})"


# --- the rules: each yields what is wrong ---------------------------------------------


def stored_form(notebook):
    """One run in order, in the normal form, with no error and no warning."""
    counts = [cell.execution_count for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are {counts}: not one run in order"
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "error" and "raises-exception" not in tags(cell):
                yield f"{name_cell(notebook, cell)} stores an error: {output.ename}"
            if output.get("name") == "stderr":
                yield f"{name_cell(notebook, cell)} stores a warning: {output.text!r}"
    if dict(notebook.metadata) != METADATA:
        yield f"metadata are {dict(notebook.metadata)}"
    if normalise(copy.deepcopy(notebook), read_patterns()) != notebook:
        yield "it is not in the stored form; `make notebooks` writes it"


def machine_traces(notebook):
    """No path, address or duration of the machine that executed it."""
    for cell in code_cells(notebook):
        for text in output_texts(cell):
            for what, pattern in (("a path", MACHINE_PATH), ("a duration", TIMING)):
                if found := pattern.search(text):
                    yield f"{name_cell(notebook, cell)} prints {what}: {found[0]!r}"
        if found := MACHINE_PATH.search(cell.source):
            yield f"{name_cell(notebook, cell)} holds a path: {found[0]!r}"


def size(notebook):
    """Cells that fit a screen, as many as a reader can follow, and enough prose."""
    for cell in code_cells(notebook):
        lines = cell.source.count("\n") + 1 - bool(read_marker(cell.source))
        if lines > MAX_LINES:
            yield f"{name_cell(notebook, cell)} has {lines} lines, over {MAX_LINES}"
    if len(notebook.cells) > MAX_CELLS:
        yield f"{len(notebook.cells)} cells, over {MAX_CELLS}"
    words = count_words(notebook)
    if not WORDS[0] <= words <= WORDS[1]:
        yield f"{words} words, outside {WORDS[0]}..{WORDS[1]}"
    stored = len(nbformat.writes(notebook).encode())
    if stored > MAX_BYTES:
        yield f"{stored} bytes, over {MAX_BYTES}"


def parts(notebook):
    """A title, then the ten parts of a chapter in order, each tagged where it opens."""
    first = notebook.cells[0]
    if first.cell_type != "markdown" or not re.search(r"^# \S", first.source, re.M):
        yield "the first cell has no `# Title`"
    titles = sum(
        len(re.findall(r"^# \S", cell.source, re.MULTILINE))
        for cell in notebook.cells
        if cell.cell_type == "markdown"
    )
    if titles != 1:
        yield f"{titles} titles of the first level, not one"
    found = [tag for cell in notebook.cells for tag in tags(cell) if tag in PARTS]
    if found != PARTS:
        missing = [part for part in PARTS if part not in found]
        yield f"parts are {found}; missing {missing}, expected the order of {PARTS}"
    for cell in notebook.cells:
        if cell.cell_type != "markdown" and set(tags(cell)) & set(PARTS):
            yield f"{name_cell(notebook, cell)} is code and opens a part"


def setup_cell(notebook):
    """The set-up cell stands before all other code and is the book's."""
    marked = [n for n, c in enumerate(code_cells(notebook), 1) if "setup" in tags(c)]
    if marked != [1]:
        yield f"set-up cells are the code cells {marked}; it must be the first, alone"
    elif not code_cells(notebook)[0].source.endswith(setup_source()):
        yield "the set-up cell is not the book's; `make sync` writes it"


def alternative_texts(notebook):
    """Each picture is described for those who do not see it."""
    for cell in code_cells(notebook):
        if pictures(cell):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            if len(alt) < 20:
                yield f"{name_cell(notebook, cell)} has a picture and the alt {alt!r}"
        for text in output_texts(cell):
            for image in re.findall(r"<img\b[^>]*>", text):
                if not re.search(r"alt=[\"'][^\"']{20,}", image):
                    yield f"{name_cell(notebook, cell)} has an <img> without alt"


def exercises(notebook):
    """At least six, numbered, each with a folded solution that runs."""
    numbers, solved = [], set()
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            numbers += [int(n) for n in EXERCISE.findall(cell.source)]
        elif numbers and {"hide-cell", "hide-input"} & set(tags(cell)):
            solved.add(numbers[-1])
    if len(numbers) < 6:
        yield f"{len(numbers)} exercises, under 6"
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"exercises are numbered {numbers}"
    for number in numbers:
        if number not in solved:
            yield f"exercise {number} has no folded solution"


def unchecked_outputs(notebook):
    """An output that is not compared is followed by a cell that checks it."""
    cells = [*code_cells(notebook), None]
    for cell, check in zip(cells, cells[1:], strict=False):
        if "nbval-skip" in tags(cell):
            yield f"{name_cell(notebook, cell)} is skipped; execute it"
        if re.search(r"^\s*#\s*(NBVAL|PYTEST_VALIDATE)_\w+\s*$", cell.source, re.M):
            yield f"{name_cell(notebook, cell)} has a marker in a comment; use a tag"
        if "nbval-ignore-output" in tags(cell):
            if (
                check is None
                or not check.outputs
                or "nbval-ignore-output" in tags(check)
            ):
                yield f"{name_cell(notebook, cell)} is not checked by the next cell"


def bare_widgets(notebook):
    """A widget without an html form is dead on the page: its output is not shown."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            data = output.get("data", {})
            bare = re.match(
                r"[A-Za-z]+\(.*(value|children)=", data.get("text/plain", "")
            )
            if bare and "text/html" not in data and "remove-output" not in tags(cell):
                yield f"{name_cell(notebook, cell)} shows {bare[0][:30]!r} on the page"


RULES = [
    stored_form,
    machine_traces,
    size,
    parts,
    setup_cell,
    alternative_texts,
    exercises,
    unchecked_outputs,
    bare_widgets,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, rule):
    problems = list(rule(nbformat.read(path, as_version=4)))
    assert not problems, f"{path.name}: " + "\n".join(problems)


def test_there_are_notebooks():
    assert NOTEBOOKS


# --- each rule finds what it is for ---------------------------------------------------

ALT = {"mystnb": {"image": {"alt": "Ten digits drawn from the model"}}}
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJ"
    "RU5ErkJggg=="
)


def chapter():
    """A small notebook that breaks no rule."""
    sentence = "A model that samples also says what it holds for likely. "  # 11 words
    cells = [new_markdown_cell("# A chapter\n\n" + 250 * sentence)]
    cells[0].metadata.tags = ["part-play"]
    cells += [new_code_cell(setup_source(), metadata={"tags": ["setup"]})]
    for part in PARTS[1:-2]:
        cells += [new_markdown_cell(f"## {part}", metadata={"tags": [part]})]
    show = new_output("display_data", {"image/png": PNG, "text/plain": "<Figure>"})
    cells += [new_code_cell("show()", outputs=[show], metadata=ALT)]
    for text in ("3.14", "True"):
        stream = new_output("stream", text=text + "\n")
        cells += [new_code_cell(f"print({text})", outputs=[stream])]
    cells[-2].metadata.tags = ["nbval-ignore-output"]
    cells += [new_markdown_cell("## Exercises", metadata={"tags": [PARTS[-2]]})]
    for n in range(1, 7):
        cells += [new_markdown_cell(f"### Exercise {n}: count")]
        cells += [new_code_cell(f"solution({n})", metadata={"tags": ["hide-cell"]})]
    cells += [new_markdown_cell("## Summary", metadata={"tags": [PARTS[-1]]})]
    return normalise(new_notebook(cells=cells))


def say(cell, text, name="stdout"):
    cell.outputs = [new_output("stream", text=text, name=name)]


def plant(notebook, fault):
    code = code_cells(notebook)
    match fault:
        case "stored_form: never run":
            code[2].execution_count = None
        case "stored_form: two runs":
            code[2].execution_count = 9
        case "stored_form: error":
            code[2].outputs = [new_output("error", ename="E", evalue="", traceback=[])]
        case "stored_form: warning":
            say(code[2], "UserWarning", "stderr")
        case "stored_form: kernel":
            notebook.metadata.kernelspec.name = "mine"
        case "stored_form: timing metadata":
            code[2].metadata.execution = {"iopub.status.busy": "2026"}
        case "stored_form: widget view":
            code[1].outputs[0].data["application/vnd.jupyter.widget-view+json"] = {}
        case "machine_traces: path":
            say(code[3], "saved in /home/ada/run")
        case "machine_traces: duration":
            say(code[3], "took 3.2 s")
        case "machine_traces: source":
            code[3].source += "\nopen('/tmp/x')"
        case "size: long cell":
            code[3].source += "\n" * 40 + "x"
        case "size: many cells":
            notebook.cells += [new_code_cell("1") for _ in range(50)]
        case "size: few words":
            notebook.cells[0].source = "# A chapter"
        case "size: many words":
            notebook.cells[0].source += " word" * 3000
        case "size: bytes":
            say(code[3], "x" * 500_000)
        case "parts: missing":
            notebook.cells[3].metadata.tags = []
        case "parts: order":
            a, b = notebook.cells[2].metadata, notebook.cells[3].metadata
            a.tags, b.tags = b.tags, a.tags
        case "parts: two titles":
            notebook.cells[2].source = "# Another"
        case "setup_cell: changed":
            code[0].source = "import torch\n" + setup_source() + "\n1"
        case "setup_cell: missing":
            code[0].metadata.tags = []
        case "alternative_texts: missing":
            code[1].metadata.pop("mystnb")
        case "alternative_texts: html":
            html = '<img src="data:image/png;base64,AAAA" alt="">'
            code[3].outputs = [new_output("display_data", {"text/html": html})]
        case "exercises: five":
            del notebook.cells[-3:-1]
        case "exercises: unfolded":
            code[-1].metadata.tags = []
        case "unchecked_outputs: last":
            code[-1].metadata.tags = ["nbval-ignore-output"]
        case "unchecked_outputs: twice":
            code[3].metadata.tags = ["nbval-ignore-output"]
        case "unchecked_outputs: comment":
            code[3].source += "\n# NBVAL_IGNORE_OUTPUT"
        case "unchecked_outputs: skip":
            code[3].metadata.tags = ["nbval-skip"]
        case "bare_widgets: slider":
            data = {"text/plain": "IntSlider(value=3)"}
            code[3].outputs = [new_output("display_data", data)]
        case _:
            raise AssertionError(f"no such fault: {fault}")


FAULTS = re.findall(
    r'^        case "(.*)":', Path(__file__).read_text(encoding="utf-8"), re.MULTILINE
)


def test_the_small_chapter_breaks_no_rule():
    assert {r.__name__: list(r(chapter())) for r in RULES if list(r(chapter()))} == {}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(fault):
    notebook = chapter()
    plant(notebook, fault)
    rule = next(r for r in RULES if r.__name__ == fault.partition(":")[0])
    assert list(rule(notebook))


def test_words_are_those_of_the_prose():
    text = """# Two words

    (a-label)=
    The loss $x^2 + y$ of {term}`latent space`, see [the paper](https://a.b/c-d).
    ```python
    code = "not counted"
    ```
    $$ \\log p(x) $$
    """
    cell = new_markdown_cell(re.sub("^ {4}", "", text, flags=re.MULTILINE))
    # Two words | The loss of term latent space see the paper
    assert count_words(new_notebook(cells=[cell])) == 11
