"""What the benches share: a clock, a probe of the machine, a report's last lines."""

import datetime
import json
import platform
import statistics
import time
from pathlib import Path

import torch


class Clock:
    """CPU seconds of this process, summed over `with` blocks."""

    def __init__(self):
        self.seconds = 0.0

    def __enter__(self):
        self.start = time.process_time()

    def __exit__(self, *error):
        self.seconds += time.process_time() - self.start


def gemm_probe(size=512, repeats=40):
    """GFLOP/s of the best of several matrix products: how fast the machine is now."""
    a = torch.randn(size, size)
    best = float("inf")
    for _ in range(repeats):
        with (clock := Clock()):
            a @ a
        best = min(best, clock.seconds)
    return 2 * size**3 / best / 1e9


def machine():
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [s for s in info.read_text().splitlines() if s.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


# --- the table ------------------------------------------------------------------------


def gemm_lines(result):
    """How fast the machine was before and after, and a warning where that differs."""
    before, after = result["gemm"]
    lines = [f"matrix product: {before:.0f} GFLOP/s before, {after:.0f} after"]
    if abs(after / before - 1) > 0.15:
        lines.append(
            "WARNING: they differ by more than 15 %; repeat on a quiet machine"
        )
    return lines


def spread(values, digits=2):
    """Median (least to most)."""
    middle, *ends = statistics.median(values), min(values), max(values)
    return "{:.{n}f} ({:.{n}f} to {:.{n}f})".format(middle, *ends, n=digits)


def store(result, text, path):
    """Print a bench's report and keep its result as JSON."""
    print(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rounded(result), indent=1) + "\n")


def rounded(value):
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, list):
        return [rounded(v) for v in value]
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return value
