"""What `make colab` asks for fits what genlib asks for, and a replacement is seen."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from tools.colab import PINS, replaced

ROOT = Path(__file__).parents[1]


def requirements(lines):
    stripped = (line.partition("#")[0].strip() for line in lines)
    return [Requirement(text) for text in stripped if text]


def test_genlib_takes_what_colab_ships():
    pins = {r.name: str(r.specifier)[2:] for r in requirements(PINS.open())}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {r.name: r.specifier for r in requirements(project["dependencies"])}
    assert "2.11.0" in asked.pop("torch"), "tools/colab.txt leaves torch to TORCH"
    assert asked.keys() <= pins.keys()
    for name, specifier in asked.items():
        assert pins[name] in specifier, f"{name}: Colab has {pins[name]}"


def test_a_replaced_package_is_named():
    before = {"torch": "2.11.0", "numpy": "2.1.3", "wheel": "0.45"}
    assert replaced(before, before | {"genlib": "0.1.0"}) == []
    after = {"torch": "2.13.0", "numpy": "2.1.3", "triton": "3.7"}
    assert replaced(before, after) == [
        "torch: 2.11.0 -> 2.13.0",
        "triton: not there -> 3.7",
        "wheel: 0.45 -> gone",
    ]
