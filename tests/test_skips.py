"""What a machine lacks is skipped and told at the end; GENLIB_REQUIRE makes it fail."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
def test_page(chromium):
    raise AssertionError("there is no such browser")

def test_files(require_data):
    require_data("mnist")
    raise AssertionError("there are no such files")

def test_book(served):
    raise AssertionError("there is no such site")

def test_else():
    pass
"""


@pytest.fixture
def run(tmp_path):
    """Run four tests on a machine that has nothing; (exit status, lines)."""
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_it.py").write_text(TESTS)

    def run(required):
        environment = {
            **os.environ,
            "GENLIB_CHROMIUM": "/nowhere/chromium",
            "GENLIB_DATA": str(tmp_path / "empty"),
            "GENLIB_REQUIRE": required,
        }
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c"]
        command += [os.devnull, "--rootdir", tmp_path, tmp_path]
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300
        )
        return result.returncode, [s for s in result.stdout.splitlines() if s]

    return run


def test_skips_are_told(run, tmp_path):
    status, lines = run("")
    assert status == 0
    assert "could not run here" in lines[-5]
    assert lines[-4:-1] == [
        "book: the site is not built; run `make book` (1 test)",
        "browser: GENLIB_CHROMIUM=/nowhere/chromium is no program (1 test)",
        f"data: mnist is not in {tmp_path / 'empty'} (1 test)",
    ]
    assert "1 passed, 3 skipped" in lines[-1]


def test_required_things_fail_instead(run):
    status, lines = run("browser, data")
    assert status == 1
    assert "book: the site is not built; run `make book` (1 test)" in lines
    failures = [line for line in lines if line.startswith("GENLIB_REQUIRE asks for ")]
    assert [line.split()[3] for line in failures] == ["browser,", "data,"]
    assert "1 failed, 1 passed, 1 skipped, 1 error" in lines[-1]
