"""The loop against plain loops: same numbers, interrupted or not; errors that help."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from torch import nn

from genlib.training import (
    Checkpoint,
    History,
    NonFiniteError,
    fit,
    get_device,
    get_profile,
    load_weights,
    save_weights,
    seed_everything,
    warmup_linear,
)


def regression(seed=0):
    """A small noisy run: model, optimiser, step, endless batches."""
    seed_everything(seed)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def step(x):
        noise = torch.randn(len(x), 1)  # from torch's own random state
        loss = (model(x) - x.sum(1, keepdim=True) - 0.1 * noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss, "weight": model[0].weight.norm()}

    def batches():
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield torch.randn(16, 3, generator=generator)

    return model, optimizer, step, batches()


def test_fit_equals_a_plain_loop():
    _, _, step, batches = regression()
    plain = [step(next(batches))["loss"].item() for _ in range(50)]
    _, _, step, batches = regression()
    assert fit(step, batches, 50, progress=False)["loss"] == plain


def test_resume_goes_on_to_the_same_numbers(tmp_path):
    _, _, step, batches = regression()
    whole = fit(step, batches, 60, progress=False)
    for stop in (20, 35):  # at a save and between two
        path = tmp_path / f"{stop}.safetensors"
        model, optimizer, step, batches = regression()
        fit(
            step,
            batches,
            stop,
            progress=False,
            checkpoint=Checkpoint(path, every=10, model=model, optimizer=optimizer),
        )
        model, optimizer, step, batches = regression(seed=0)
        torch.manual_seed(99)  # a fresh process has another random state
        resumed = fit(
            step,
            batches,
            60,
            progress=False,
            checkpoint=Checkpoint(path, 10, model=model, optimizer=optimizer),
        )
        assert resumed.metrics == whole.metrics


def test_a_killed_run_resumes_to_the_same_numbers(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(f"""
        import json, sys, time
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_training import regression
        from genlib.training import Checkpoint, fit
        model, optimizer, step, batches = regression()
        slow = float(sys.argv[2])
        def slowly(x):
            time.sleep(slow)
            return step(x)
        history = fit(slowly, batches, 80, progress=False,
                      checkpoint=Checkpoint(sys.argv[1], 5, m=model, o=optimizer))
        print(json.dumps(history.metrics))
    """)
    )

    def run(path, slow):
        return subprocess.Popen(
            [sys.executable, script, path, slow], stdout=subprocess.PIPE, text=True
        )

    whole = run(tmp_path / "whole.safetensors", "0").communicate()[0]
    path = tmp_path / "killed.safetensors"
    process = run(path, "0.02")
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
    assert run(path, "0").communicate()[0] == whole
    assert whole.startswith("{")


def test_generators_and_schedulers_are_saved(tmp_path):
    path = tmp_path / "run.safetensors"

    def build():
        weight = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(weight.parameters(), 1.0, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda k: warmup_linear(k, 10)
        )
        return dict(m=weight, o=optimizer, s=scheduler, g=torch.Generator())

    objects = build()
    objects["g"].manual_seed(3)
    step = lambda b: (objects["o"].step(), objects["s"].step(), {"a": 0.0})[-1]  # noqa: E731
    fit(step, range(9), 4, checkpoint=Checkpoint(path, **objects), progress=False)
    fresh = build()
    Checkpoint(path, **fresh).restore()
    assert torch.equal(fresh["g"].get_state(), objects["g"].get_state())
    assert fresh["o"].param_groups[0]["lr"] == objects["o"].param_groups[0]["lr"]
    assert fresh["s"].last_epoch == 4
    for key, value in objects["m"].state_dict().items():
        assert torch.equal(fresh["m"].state_dict()[key], value)


def test_a_failed_save_keeps_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    model = nn.Linear(2, 2)
    Checkpoint(path, model=model).save(History({"loss": [1.0]}))
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("genlib.training.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        Checkpoint(path, model=model).save(History({"loss": [1.0, 2.0]}))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("bad", [1, 7, 20, 33])
def test_stops_at_the_first_non_finite_metric(value, bad):
    count = iter(range(1, 100))

    def step(_):
        return {"loss": value if next(count) >= bad else 1.0, "kl": 0.5}

    with pytest.raises(
        NonFiniteError, match=rf"loss is {value} at step {bad}:"
    ) as info:
        fit(step, iter(int, 1), 40, progress=False)
    assert info.value.history.metrics.get("loss", []) == [1.0] * (bad - 1)


def test_batches_that_end_too_soon():
    with pytest.raises(ValueError, match="ended after 3 of 5 steps"):
        fit(lambda b: {"a": b}, [1.0, 2.0, 3.0], 5, progress=False)


def test_history_refuses_changing_metrics_and_unknown_names():
    history = History()
    history.record({"loss": 1.0})
    with pytest.raises(ValueError, match=r"step 2 returned the metrics \['kl'\]"):
        history.record({"kl": 1.0})
    with pytest.raises(KeyError, match="no metric 'elbo'; there are: loss"):
        history["elbo"]
    history.record({"loss": 3.0})
    assert history.steps == 2 and history.mean("loss") == 2.0


def test_weights_round_trip_and_another_model(tmp_path):
    path = tmp_path / "weights.safetensors"
    seed_everything(0)
    a, b, other = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 4)
    save_weights(a, path, data="digits")
    assert load_weights(b, path) == {"class": "Linear", "data": "digits"}
    assert torch.equal(a.weight, b.weight)
    before = other.weight.clone()
    with pytest.raises(
        ValueError, match=r"another model: bias is \(2,\) there and \(4,\)"
    ):
        load_weights(other, path)
    assert torch.equal(other.weight, before)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_weights(b, path)


def test_checkpoint_of_another_run_changes_nothing(tmp_path):
    path = tmp_path / "run.safetensors"
    Checkpoint(path, a=nn.Linear(3, 2)).save(History())
    with pytest.raises(ValueError, match=r"holds \['a'\], this run \['b'\]"):
        Checkpoint(path, b=nn.Linear(3, 2)).restore()
    model = nn.Linear(3, 4)
    before = model.weight.clone()
    with pytest.raises(ValueError, match="another model"):
        Checkpoint(path, a=model).restore()
    assert torch.equal(model.weight, before)
    with pytest.raises(ValueError, match="needs what to save"):
        Checkpoint(path)
    with pytest.raises(ValueError, match="under the name 'random'"):
        Checkpoint(path, random=torch.Generator())


def test_a_checkpoint_that_fits_in_part_changes_nothing(tmp_path):
    path = tmp_path / "run.safetensors"
    model = nn.Linear(3, 2)
    run = {"m": model, "o": torch.optim.Adam(model.parameters())}
    Checkpoint(path, **run).save(History())
    other = nn.Linear(3, 2)
    before = other.weight.clone()
    optimizer = torch.optim.Adam([other.weight])  # one parameter of the two
    with pytest.raises(ValueError, match="run.safetensors does not fit this run"):
        Checkpoint(path, m=other, o=optimizer).restore()
    assert torch.equal(other.weight, before)


def test_weights_are_no_checkpoint(tmp_path):
    path = tmp_path / "weights.safetensors"
    model = nn.Linear(3, 2)
    save_weights(model, path)
    with pytest.raises(ValueError, match="weights.safetensors holds no run"):
        fit(lambda b: {"a": b}, [1.0], 1, checkpoint=Checkpoint(path, m=model))


def test_weights_in_another_memory_format_are_saved(tmp_path):
    path = tmp_path / "weights.safetensors"
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    other = nn.Conv2d(3, 4, 3)
    save_weights(model, path)
    load_weights(other, path)
    assert torch.equal(other.weight, model.weight)


def test_a_step_must_return_its_metrics():
    with pytest.raises(TypeError, match="the step returned a NoneType; return a dict"):
        fit(lambda b: None, [1.0], 1, progress=False)


def test_seeds_devices_profiles(monkeypatch):
    first = (torch.rand(2, generator=seed_everything(5)), torch.rand(2))
    again = (torch.rand(2, generator=seed_everything(5)), torch.rand(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert get_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device 'tpu' is not available here; .*cpu"):
        get_device("tpu")
    monkeypatch.setenv("GENLIB_PROFILE", "gpu")
    assert get_profile() == "gpu"
    monkeypatch.setenv("GENLIB_PROFILE", "huge")
    with pytest.raises(ValueError, match="'huge'; it must be 'cpu' or 'gpu'"):
        get_profile()


def test_warmup_linear_has_its_corners():
    factors = [warmup_linear(k, 100, warmup=0.1) for k in range(101)]
    assert factors[0] == 0.1 and factors[9] == factors[10] == 1.0
    assert factors[100] == 0.0 and factors[55] == pytest.approx(0.5)


def test_a_metric_is_one_number():
    with pytest.raises(
        ValueError, match=r"kl has shape \(3,\); a metric is one number"
    ):
        fit(lambda b: {"kl": torch.zeros(3)}, iter(int, 1), 2, progress=False)


def test_saved_files_can_be_read_by_others(tmp_path):
    mask = os.umask(0o022)
    try:
        save_weights(nn.Linear(2, 2), tmp_path / "weights.safetensors")
    finally:
        os.umask(mask)
    assert (tmp_path / "weights.safetensors").stat().st_mode & 0o777 == 0o644


def test_the_environment_may_name_the_device(monkeypatch):
    monkeypatch.setenv("GENLIB_DEVICE", "cpu")
    assert get_device() == torch.device("cpu")
    monkeypatch.setenv("GENLIB_DEVICE", "abacus")
    with pytest.raises(ValueError, match="device 'abacus' is not available here"):
        get_device()
    assert get_device("cpu") == torch.device("cpu")
