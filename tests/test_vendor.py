"""The third-party files of the site: copied whole, or one clear error."""

import subprocess

import pytest

from tools import vendor


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose node_modules is complete, as `npm ci` leaves it."""
    (tmp_path / "package-lock.json").write_text("{}")
    for name in ("ROOT", "MODULES", "VENDOR"):
        path = {"MODULES": "node_modules", "VENDOR": "static/vendor"}.get(name, "")
        monkeypatch.setattr(vendor, name, tmp_path / path)
    (tmp_path / "static").mkdir()

    def fake_npm(*args, **kwargs):
        for folder, patterns in vendor.FILES.values():
            for pattern in patterns:
                file = tmp_path / "node_modules" / folder / pattern.replace("*", "a")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(pattern)
        calls.append(args)
        return subprocess.CompletedProcess(args, 0, "", "")

    calls = []
    monkeypatch.setattr(vendor, "find_npm", lambda: ("npm", {}))
    monkeypatch.setattr(vendor.subprocess, "run", fake_npm)
    return tmp_path, calls


def test_npm_runs_when_the_lock_file_has_changed_and_only_then(project):
    root, calls = project
    vendor.main()
    vendor.main()
    assert len(calls) == 1
    assert (root / "static/vendor/ort/ort.wasm.min.mjs").is_file()
    (root / "package-lock.json").write_text('{"changed": 1}')
    vendor.main()
    assert len(calls) == 2


def test_a_missing_file_is_named_and_nothing_half_copied(project):
    root, _ = project
    vendor.main()
    (root / "node_modules/onnxruntime-web/dist/ort.wasm.min.mjs").unlink()
    (root / "static/vendor" / vendor.STAMP).unlink()
    with pytest.raises(SystemExit, match="ort.wasm.min.mjs is missing"):
        vendor.main()
    assert (root / "static/vendor/ort/ort.wasm.min.mjs").is_file(), "the old copy stays"


def test_without_network_the_error_says_what_to_do(project, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "npm error code EAI_AGAIN")
    monkeypatch.setattr(vendor.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(SystemExit, match="Without a network it needs its cache"):
        vendor.main()


def test_without_node_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr(vendor.shutil, "which", lambda *a, **k: None)
    with pytest.raises(SystemExit, match="no Node >= 18"):
        vendor.find_npm()
