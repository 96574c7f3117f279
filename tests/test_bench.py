"""The bench runs, measures the same thing for all, and tells when it must not be read.

Real code on made-up images; the figures themselves are `make bench`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from bench import vae as bench
from genlib.data import Images

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (300, 1, 28, 28), generator=generator)
    pixels[:, :, :, :4] = 0  # like the margin of a digit
    labels = torch.arange(300) % 10
    return Images("noise", pixels.to(torch.uint8), labels, tuple("0123456789"))


def test_peer_crosses_a_target_it_can_reach(images):
    run = bench.run_peer(images, images, 0, target=550.0, max_epochs=3, max_steps=2)
    assert 0 < run["compute"] < run["whole"]
    assert run["loss"] == 550.0
    assert run["curve"][-1][2] <= 550.0


def test_peer_that_does_not_cross_has_no_time(images):
    run = bench.run_peer(images, images, 0, target=1.0, max_epochs=1, max_steps=1)
    assert run["whole"] is run["compute"] is None
    assert run["loss"] > 1.0


@pytest.mark.parametrize("name", bench.CONTENDERS)
def test_genlib_learns(images, name):
    settings = bench.CONTENDERS[name] | {"max_steps": 4, "lr": 1e-3}
    run = bench.run_genlib(images, images, 0, **settings)
    assert 0 < run["compute"] < run["whole"]
    assert run["loss"] < 28 * 28 * 0.6931  # grey noise costs log 2 a pixel


def test_same_network_has_the_peers_weights():
    def shapes(module):
        return sorted(tuple(p.shape) for p in module.parameters())

    def count(module):
        return sum(p.numel() for p in module.parameters())

    same, peer = bench.same_network(torch.zeros(1, 28, 28)), bench.Peer()
    assert count(same) == count(peer) == 652_824
    # The library keeps mu and logvar in one layer; all else is the same.
    split = [(20, 400), (20,)] * 2
    joined = [(40, 400), (40,)]
    assert sorted([*shapes(peer), *joined]) == sorted([*shapes(same), *split])
    assert count(bench.free_network(torch.zeros(1, 28, 28))) < count(peer)


def test_peer_reads_images_as_the_library_does(images):
    x, label = bench.ImageFiles(images)[7]
    assert torch.equal(x, images.x()[7])
    assert label == 7


def test_loss_is_the_bound_of_the_whole_set(images):
    """With q = N(0, 1) and fixed logits the bound is the cross-entropy alone."""
    logits = torch.linspace(-1, 1, 784)

    def encode(x):
        return torch.zeros(len(x), 2), torch.zeros(len(x), 2)

    def decode(z):
        return logits.expand(len(z), -1)

    x = images.x().flatten(1)
    expected = F.binary_cross_entropy(logits.sigmoid().expand_as(x), x) * 784
    assert bench.test_loss(images, encode, decode) == pytest.approx(expected.item())
    shifted = bench.test_loss(
        images, lambda x: (encode(x)[0] + 2, encode(x)[1]), decode
    )
    assert shifted == pytest.approx(expected.item() + 2 * 0.5 * 2**2)


def test_crossing_is_between_the_epochs_around_it():
    curve = [(0.0, 0.0, 500.0), (10.0, 4.0, 110.0), (20.0, 8.0, 100.0)]
    found = bench.crossing(curve, 105.0)
    assert (found["whole"], found["compute"]) == (15.0, 6.0)


def result(loss=106.0, after=100.0):
    run = {"whole": 10.0, "compute": 5.0, "loss": loss}
    peer = {"whole": 100.0, "compute": 50.0, "loss": bench.TARGET}
    return {
        "machine": bench.machine(),
        "target": bench.TARGET,
        "gemm": [100.0, after],
        "runs": {"peer": [peer, peer], "same": [run, run], "free": [run, run]},
    }


def test_report_gives_ratios_and_warns():
    text = bench.report(result())
    assert "same, end to end: 10.0 times faster (10.0 to 10.0)" in text
    assert "WARNING" not in text
    assert "WARNING" in bench.report(result(after=80.0))
    assert "free, steps only: no ratio" in bench.report(result(loss=106.2))


def test_stored_result_is_of_this_bench():
    stored = json.loads(bench.RESULTS.read_text())
    assert stored["target"] == bench.TARGET
    assert list(stored["runs"]) == ["peer", *bench.CONTENDERS]
    assert bench.report(stored)


def test_without_data_the_bench_says_what_it_needs(tmp_path):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"half a file")
    result = subprocess.run(
        [sys.executable, "-m", "bench.vae"],
        cwd=ROOT,
        env={**os.environ, "GENLIB_DATA": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "the bench needs MNIST" in result.stderr
    assert "Traceback" not in result.stderr
