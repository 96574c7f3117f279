"""Install what the book needs into the Python that runs this, CPU torch first.

On Linux the registry's torch comes with gigabytes of CUDA packages. So pip is asked
what it *would* install; if that includes them, uv takes PyTorch's own CPU build.
"""

import importlib.metadata
import json
import os
import subprocess
import sys

TORCH = os.environ.get(
    "TORCH", "torch==2.13.0"
)  # what the stored outputs were made with
CUDA = ("nvidia-", "cuda-", "triton")


def run(*command, **options):
    return subprocess.run([sys.executable, "-m", *command], check=True, **options)


def brings_cuda(requirement):
    """Whether pip would install CUDA packages along with `requirement`."""
    report = run(
        "pip", "install", "--dry-run", "--quiet", "--report", "-", requirement,
        stdout=subprocess.PIPE,
    ).stdout  # fmt: skip
    names = [item["metadata"]["name"].lower() for item in json.loads(report)["install"]]
    return any(name.startswith(CUDA) for name in names)


def install_torch():
    try:
        print("torch", importlib.metadata.version("torch"), "is here and stays")
        return
    except importlib.metadata.PackageNotFoundError:
        pass
    if brings_cuda(TORCH):
        run("pip", "install", "--quiet", "uv")
        run("uv", "pip", "install", "--python", sys.executable,
            "--torch-backend", "cpu", TORCH)  # fmt: skip
    else:
        run("pip", "install", "--quiet", TORCH)


def main():
    print("Installing into", sys.prefix, "(a few minutes the first time)", flush=True)
    run("pip", "install", "--quiet", "--upgrade", "pip")
    install_torch()
    run("pip", "install", "--quiet", "-r", "requirements.txt", "-e", ".")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(map(str, error.cmd))} failed; see the message above")
