"""Write the library's code into the cells that show it: `make sync`.

    python -m tools.sync            write
    python -m tools.sync --check    only say where a notebook differs

A cell whose first line is `# genlib/vae.py: reparameterize, VAE` holds exactly those
definitions of that module, word for word, with the comments directly above them. The
cell tagged "setup" is written too. Nothing else in a notebook is touched.
"""

import argparse
import ast
import re
import sys
from functools import cache

import nbformat

from tools.notebooks import ROOT, repository_url, setup_source, write_text

MARKER = re.compile(r"# (genlib/[\w/]*\.py)(?:: *(.*))?$")
DEFINITION = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class SyncError(Exception):
    """A marker names something that is not there, or a rule of sharing is broken."""


# --- the library ----------------------------------------------------------------------


def definitions(text):
    """Top-level definitions of a module's text: {name: its lines, as one text}.

    Functions, classes and assigned names, each with its decorators and the comment
    lines directly above.
    """
    lines = text.splitlines()
    found = {}
    for node in ast.parse(text).body:
        first = min([node.lineno, *(d.lineno for d in decorators(node))])
        while first > 1 and lines[first - 2].startswith("#"):
            first -= 1
        for name in names_of(node):
            found[name] = "\n".join(lines[first - 1 : node.end_lineno])
    return found


def decorators(node):
    return getattr(node, "decorator_list", [])


def names_of(node):
    """The names that a statement defines; imports define none that a cell may show."""
    if isinstance(node, DEFINITION):
        return [node.name]
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    else:
        return []
    return [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]


@cache
def read_module(file):
    """The definitions of `genlib/vae.py`; SyncError if there is no such file."""
    path = ROOT / file
    if not path.is_file():
        have = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("genlib/**/*.py"))
        raise SyncError(f"there is no {file}; there are: {', '.join(have)}")
    return definitions(path.read_text(encoding="utf-8"))


@cache
def library_names():
    """Where each function and class of genlib is defined: {name: file}."""
    names = {}
    for path in sorted(ROOT.glob("genlib/**/*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, DEFINITION):
                names.setdefault(node.name, str(path.relative_to(ROOT)))
    return names


# --- cells ----------------------------------------------------------------------------


def read_marker(source):
    """(file, names) of a cell that shows library code, or None."""
    found = MARKER.match(source.partition("\n")[0].rstrip())
    if not found:
        return None
    names = [name.strip() for name in (found[2] or "").split(",")]
    if not all(names):
        raise SyncError(f"write the marker as `# {found[1]}: name, Other`")
    return found[1], names


def library_cell(file, names):
    """The text of a cell that shows these definitions."""
    module = read_module(file)
    for name in names:
        if name not in module:
            raise SyncError(
                f"{file} defines no {name!r}; it defines: {', '.join(module)}"
            )
    marker = f"# {file}: {', '.join(names)}"
    return marker + "\n" + "\n\n\n".join(module[name] for name in names)


def wanted_source(cell):
    """What a code cell must hold, or None where that is the author's."""
    if "setup" in cell.metadata.get("tags", []):
        return setup_source(repository_url())
    marker = read_marker(cell.source)
    return marker and library_cell(*marker)


def first_difference(have, want):
    """The first line that differs, told in a few words."""
    have, want = have.splitlines(), want.splitlines()
    for number in range(max(len(have), len(want))):
        old = have[number] if number < len(have) else "(nothing)"
        new = want[number] if number < len(want) else "(nothing)"
        if old != new:
            return f"line {number + 1} is {old.strip()!r}, expected {new.strip()!r}"
    return "they differ in line ends only"


# --- rules of sharing -----------------------------------------------------------------


def own_definitions(source):
    """Functions and classes that a cell defines at top level: {name: its tree}."""
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        tree = ast.parse(TransformerManager().transform_cell(source))
    except SyntaxError:  # ruff, or the cell's execution, tells more about it
        return {}
    return {n.name: ast.dump(n) for n in tree.body if isinstance(n, DEFINITION)}


def pasted(notebooks):
    """What is defined in the wrong place, as messages.

    `notebooks` maps names to notebooks. No cell may define a name of the library's
    without its marker, and no definition may stand in two notebooks.
    """
    problems, shown, own = [], {}, {}
    for name, notebook in notebooks.items():
        for where, cell in code_cells(name, notebook):
            if marker := read_marker(cell.source):
                for definition in marker[1]:
                    first = shown.setdefault((marker[0], definition), (name, where))
                    if first[0] != name:
                        problems.append(
                            f"{where}: {definition} of {marker[0]} is shown by "
                            f"{first[1]} already; import it"
                        )
                continue
            for definition, tree in own_definitions(cell.source).items():
                if definition in library_names():
                    file = library_names()[definition]
                    problems.append(
                        f"{where}: {definition} is a name of {file}. Show the "
                        f"library's with `# {file}: {definition}`, import it, or "
                        "give this one another name"
                    )
                first = own.setdefault((definition, tree), (name, where))
                if first[0] != name:
                    problems.append(
                        f"{where}: {definition} is the same as in {first[1]}; move it "
                        "to the library and import it"
                    )
    return problems


def code_cells(name, notebook):
    """(place as a reader counts it, cell) of each code cell."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [(f"{name}, code cell {n}", cell) for n, cell in enumerate(code, 1)]


# --- command --------------------------------------------------------------------------


def sync(notebooks):
    """Bring the cells up to date, in place; return messages of what differed."""
    problems = []
    for name, notebook in notebooks.items():
        for where, cell in code_cells(name, notebook):
            try:
                wanted = wanted_source(cell)
            except SyncError as error:
                raise SyncError(f"{where}: {error}") from None
            if wanted is not None and cell.source != wanted:
                what = first_difference(cell.source, wanted)
                problems.append(f"{where} ({wanted.splitlines()[0]}): {what}")
                cell.source = wanted
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    paths = {p.name: p for p in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    notebooks = {n: nbformat.read(p, as_version=4) for n, p in paths.items()}
    try:
        changed = sync(notebooks)
        problems = pasted(notebooks)
    except SyncError as error:
        sys.exit(f"sync: {error}")
    if arguments.check:
        if changed:
            problems += [*changed, "`make sync` writes these cells from the library"]
    else:
        for name, path in paths.items():
            if any(message.startswith(f"{name},") for message in changed):
                write_text(path, nbformat.writes(notebooks[name]) + "\n")
        for message in changed:
            print(f"wrote {message.partition(': ')[0]}")
    if problems:
        sys.exit("\n".join(problems))
    if arguments.check or not changed:
        print(f"sync: {len(paths)} notebooks agree with the library")


if __name__ == "__main__":
    main()
