"""The install never takes CUDA packages, nor replaces a torch; the server serves."""

import importlib.metadata
import json
import socket
import struct
import subprocess
import threading
import urllib.request
from types import SimpleNamespace

import pytest

from tools import install, serve


@pytest.fixture
def commands(monkeypatch):
    """Run no command, but list them; `commands.would_install` is pip's dry answer."""
    seen = SimpleNamespace(run=[], would_install=["torch", "sympy"])

    def run(*command, **options):
        seen.run.append(" ".join(map(str, command)))
        report = {"install": [{"metadata": {"name": n}} for n in seen.would_install]}
        return SimpleNamespace(stdout=json.dumps(report))

    monkeypatch.setattr(install, "run", run)
    return seen


def without_torch(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_a_torch_that_is_there_stays(commands):
    install.install_torch()
    assert commands.run == []


def test_plain_pip_where_it_brings_no_cuda(commands, monkeypatch):
    without_torch(monkeypatch)
    install.install_torch()
    assert commands.run[-1] == f"pip install --quiet {install.TORCH}"
    assert not any("uv" in command for command in commands.run)


@pytest.mark.parametrize("package", ["nvidia-cublas-cu12", "triton", "cuda-bindings"])
def test_the_cpu_build_where_pip_would_bring_cuda(commands, monkeypatch, package):
    without_torch(monkeypatch)
    commands.would_install = ["torch", package]
    install.install_torch()
    assert "--torch-backend cpu" in commands.run[-1] and "uv" in commands.run[-1]
    assert f"pip install --quiet {install.TORCH}" not in commands.run


def test_pip_really_reports_what_it_would_install():
    try:
        assert install.brings_cuda("torch") is False  # it is here: nothing to install
    except subprocess.CalledProcessError:
        pytest.fail("pip cannot make a report: --dry-run or --report is gone")


def test_server_types_and_next_free_port(tmp_path):
    for name in ("a.mjs", "a.wasm", "a.onnx", "index.html"):
        (tmp_path / name).write_bytes(b"x")
    first = serve.open_server(8700, tmp_path)
    second = serve.open_server(first.server_port, tmp_path)
    assert second.server_port > first.server_port
    threading.Thread(target=second.serve_forever, daemon=True).start()
    try:
        base = f"http://127.0.0.1:{second.server_port}/"
        kinds = {
            name: urllib.request.urlopen(base + name).headers["Content-Type"]
            for name in ("a.mjs", "a.wasm", "index.html")
        }
    finally:
        second.shutdown()
        first.server_close()
        second.server_close()
    assert kinds["a.mjs"] == "text/javascript"
    assert kinds["a.wasm"] == "application/wasm"
    assert kinds["index.html"].startswith("text/html")


def test_a_page_that_is_left_while_it_loads_is_no_error(tmp_path, capsys):
    (tmp_path / "a.wasm").write_bytes(bytes(50_000_000))
    with serve.serving(tmp_path) as address:
        before = set(threading.enumerate())
        place = ("127.0.0.1", int(address.rstrip("/").rsplit(":", 1)[1]))
        with socket.create_connection(place) as line:
            line.sendall(b"GET /a.wasm HTTP/1.0\r\n\r\n")
            assert line.recv(1000).startswith(b"HTTP/1.0 200")
            # closed as a browser does: what is still on its way is refused
            line.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        for request in set(threading.enumerate()) - before:
            request.join(30)
    assert capsys.readouterr().err == ""
