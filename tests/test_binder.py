"""The image for a class, by repo2docker's conventions: what can be told without Docker.

`problems` reads a folder `.binder` beside the notebooks and says what is wrong; at the
end each of its checks is given a fault that it has to see.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SCRIPTS = ("postBuild", "start")
# repo2docker takes these before requirements.txt, or looks into a folder before ours.
STRONGER = ("environment.yml", "Pipfile", "Pipfile.lock", "Dockerfile")
ELSEWHERE = {"nbgitpuller"}  # serves a hub and nobody else
BY_POSTBUILD = {"torch", "genlib"}
IMPORTED_AS = {"sklearn": "scikit-learn", "PIL": "matplotlib"}


def requirements(text):
    """Name to bounds of a requirements file's lines, or of a list in pyproject.toml."""
    lines = text.splitlines() if isinstance(text, str) else text
    plain = [line.split(" #")[0].strip() for line in lines]
    found = [Requirement(line) for line in plain if line and line[0] != "#"]
    return {canonicalize_name(r.name): r.specifier for r in found}


def known():
    """Everything that the book asks for anywhere, name to bounds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    every = [(ROOT / "requirements.txt").read_text("utf-8"), project["dependencies"]]
    every += project["optional-dependencies"].values()
    return {k: v for part in every for k, v in requirements(part).items()}


def imports(folder):
    """The packages that the notebooks of a folder import, by the name of the module."""
    names = set()
    for path in folder.glob("*.ipynb"):
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                code = re.sub(r"(?m)^(\s*)[%!].*", r"\1pass", "".join(cell["source"]))
                for node in ast.walk(ast.parse(code)):
                    if isinstance(node, ast.Import):
                        names |= {a.name.partition(".")[0] for a in node.names}
                    elif isinstance(node, ast.ImportFrom) and not node.level:
                        names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names


def problems(root):
    """What is wrong with `.binder` in a checkout, a line for each fault."""
    folder, wrong = root / ".binder", []
    if (root / "binder").exists():
        wrong.append("a folder binder/ would be read instead of .binder/")
    wrong += [f"{n} would be read first" for n in STRONGER if (folder / n).exists()]

    said = (folder / "runtime.txt").read_text("utf-8").strip()
    version = re.fullmatch(r"python-(3\.\d+)", said)
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    supported = SpecifierSet(project["requires-python"]) & SpecifierSet("<3.14")
    if not version or version[1] not in supported:
        wrong.append(f"runtime.txt says {said!r}; the book runs on {supported}")

    listed = requirements((folder / "requirements.txt").read_text("utf-8"))
    for name, bounds in listed.items():
        if name not in ELSEWHERE and known().get(name) != bounds:
            wrong.append(f"{name}{bounds} is not what the book asks for elsewhere")
    needed = set(requirements(project["dependencies"]))
    needed |= {IMPORTED_AS.get(name, name) for name in imports(root / "notebooks")}
    missing = needed - set(listed) - BY_POSTBUILD
    wrong += [f"{name} is needed and not listed" for name in sorted(missing)]
    wrong += [f"{name} is for postBuild" for name in BY_POSTBUILD & set(listed)]

    for name in SCRIPTS:
        path = folder / name
        if not os.access(path, os.X_OK):
            wrong.append(f"{name} is not executable")
        if not path.read_text("utf-8").startswith("#!/usr/bin/env bash\n"):
            wrong.append(f"{name} does not begin with #!/usr/bin/env bash")
        checked = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
        if checked.returncode:
            wrong.append(f"{name}: {checked.stderr.strip()}")
    return wrong


@pytest.fixture
def checkout(tmp_path):
    """A copy of what the checks read."""
    shutil.copytree(ROOT / ".binder", tmp_path / ".binder")
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_folder_keeps_the_conventions():
    assert not problems(ROOT)


def test_git_keeps_the_executable_bits():
    names = [f".binder/{name}" for name in SCRIPTS]
    listed = subprocess.run(
        ["git", "ls-files", "-s", *names], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("git: this is no git checkout, so its modes cannot be read")
    assert [line[:6] for line in listed.stdout.splitlines()] == ["100755"] * 2


def logged(folder, script, *arguments, **variables):
    """Run a script with a `python` that only tells how it was called; its lines."""
    tools = folder / "tools-for-the-test"
    tools.mkdir()
    (tools / "python").write_text('#!/bin/sh\necho "python $*"\n')
    (tools / "python").chmod(0o755)
    environment = {"PATH": f"{tools}:{os.defpath}", **variables}
    run = subprocess.run(
        [folder / ".binder" / script, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_postbuild_installs_torch_by_our_rule_and_genlib_into_the_image(checkout):
    torch, genlib = logged(checkout, "postBuild")
    assert "install_torch()" in torch
    # not editable: a hub lays the student's disk over the folder of the checkout
    assert genlib == "python -m pip install --quiet --no-deps ."


def test_start_sets_one_thread_and_passes_everything_on(checkout):
    lines = logged(
        checkout, "start", "sh", "-c", 'echo "$OMP_NUM_THREADS $1"', "-", "x"
    )
    assert lines == ["1 x"]
    shutil.rmtree(checkout / "tools-for-the-test")
    asked = ("sh", "-c", 'echo "$OMP_NUM_THREADS"')
    assert logged(checkout, "start", *asked, OMP_NUM_THREADS="4") == ["4"]


def add_cell(root):
    path = root / "notebooks" / "03_vae.ipynb"
    book = json.loads(path.read_text("utf-8"))
    book["cells"].append({"cell_type": "code", "source": ["import einops as e"]})
    path.write_text(json.dumps(book))


def edit(name, old, new):
    def change(root):
        path = root / ".binder" / name
        text = path.read_text("utf-8")
        assert old in text
        path.write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    "plant, seen",
    [
        (lambda root: (root / ".binder" / "start").chmod(0o644), "start is not exec"),
        (lambda root: (root / "binder").mkdir(), "would be read instead"),
        (
            lambda root: (root / ".binder" / "environment.yml").touch(),
            "environment.yml would be read first",
        ),
        (edit("runtime.txt", "3.12", "3.10"), "runtime.txt says 'python-3.10'"),
        (edit("runtime.txt", "python-", ""), "runtime.txt says"),
        (edit("requirements.txt", "numpy>=1.26", "numpy>=1.20"), "numpy>=1.20 is not"),
        (edit("requirements.txt", "tqdm>=4.66", "einops"), "einops is not"),
        (edit("requirements.txt", "tokenizers>=0.20", ""), "tokenizers is needed"),
        (edit("requirements.txt", "tqdm>=4.66", "torch>=2.6"), "torch is for postBu"),
        (edit("postBuild", "rm -rf", "if rm -rf"), "postBuild: "),
        (edit("postBuild", "#!/usr/bin/env bash", "#!/bin/bash -e"), "does not begin"),
        (add_cell, "einops is needed and not listed"),
    ],
)
def test_a_fault_is_seen(checkout, plant, seen):
    plant(checkout)
    assert any(seen in problem for problem in problems(checkout))
