"""The loop against plain loops: same numbers, interrupted or not; errors that help."""

import copy
import itertools
import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from torch import nn

from genlib.data import load
from genlib.live import Run
from genlib.training import (
    SGD,
    START,
    SURFACES,
    Adam,
    Checkpoint,
    EarlyStopping,
    History,
    NonFiniteError,
    digits_program,
    fit,
    get_device,
    get_profile,
    load_weights,
    mixed_surface,
    save_weights,
    seed_everything,
    surface_program,
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


# --- optimisers -----------------------------------------------------------------------

RULES = {
    "SGD": (SGD(), lambda p, lr: torch.optim.SGD(p, lr)),
    "momentum": (SGD(0.9), lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9)),
    "Adam": (Adam(), torch.optim.Adam),
    "Adam for GANs": (
        Adam((0.5, 0.99), 1e-3),
        lambda p, lr: torch.optim.Adam(p, lr, betas=(0.5, 0.99), eps=1e-3),
    ),
}


def bumpy(w):
    """A nonlinear loss that keeps every walk in place."""
    return (w.square().sum() / 20 + w.sin().sum() + (w[0] * w[1]).cos()) * w[2].tanh()


@pytest.mark.parametrize("name", RULES)
def test_an_optimizer_is_that_of_torch(name):
    ours, build = RULES[name]
    start = torch.tensor([1.3, -0.7, 2.1, 0.4], dtype=torch.float64)
    theirs = start.clone().requires_grad_()
    w, slots = start, (torch.zeros_like(start),) * ours.slots
    optimizer = build([theirs], 0.03)
    for t in range(1, 301):
        optimizer.zero_grad()
        bumpy(theirs).backward()
        optimizer.step()
        place = w.clone().requires_grad_()
        (g,) = torch.autograd.grad(bumpy(place), place)
        w, slots = ours.update(w, g, slots, t, 0.03)
        assert len(slots) == ours.slots
        torch.testing.assert_close(w, theirs.detach(), rtol=1e-9, atol=1e-9)
    assert (w - start).norm() > 0.5 and w.isfinite().all()


def test_the_rate_may_change_and_differ_between_weights():
    w, g = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -4.0])
    new, _ = SGD().update(w, g, (), 1, torch.tensor([0.1, 0.5]))
    assert torch.equal(new, torch.tensor([0.95, 4.0]))
    zeros = (torch.zeros(2),) * 2
    new, _ = Adam().update(w, g, zeros, 1, torch.tensor([0.1, 0.5]))
    torch.testing.assert_close(new, torch.tensor([0.9, 2.5]))


@pytest.mark.parametrize("lr", [0.01, 0.1, 0.3])
def test_descent_on_a_bowl_multiplies_by_one_minus_rate_times_curvature(lr):
    curvature = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)
    w = torch.ones(3, dtype=torch.float64)
    for t in range(1, 21):
        w, _ = SGD().update(w, curvature * w, (), t, lr)
        torch.testing.assert_close(w, (1 - lr * curvature) ** t)


@pytest.mark.parametrize("lr, modulus", [(0.1, 0.9**0.5), (1.5, 0.9**0.5)])
def test_momentum_on_a_bowl_has_the_characteristic_roots(lr, modulus):
    """w_t = a r^t + its conjugate, r the roots of r^2 - (1 + mu - lr) r + mu."""
    mu = 0.9
    r = complex((1 + mu - lr) / 2, math.sqrt(mu - ((1 + mu - lr) / 2) ** 2))
    assert abs(r) == pytest.approx(modulus)
    # w_0 = 1 and w_1 = 1 - lr fix the complex factor: 2 Re(a) = 1, 2 Re(a r) = 1 - lr
    a = complex(0.5, (0.5 * r.real - (1 - lr) / 2) / r.imag)
    w = torch.ones(1, dtype=torch.float64)
    slots = (torch.zeros_like(w),)
    for t in range(1, 60):
        w, slots = SGD(mu).update(w, w, slots, t, lr)
        assert w.item() == pytest.approx(2 * (a * r**t).real, abs=1e-12)


def test_momentum_converges_up_to_its_limit():
    for share, small in ((0.99, True), (1.01, False)):
        w = torch.ones(1, dtype=torch.float64)
        slots = (torch.zeros_like(w),)
        for t in range(1, 2001):
            w, slots = SGD(0.9).update(w, w, slots, t, share * 2 * 1.9)
        assert (w.abs().item() < 1e-3) == small


@pytest.mark.parametrize("g", [3.0, -1e-4, 1e5])
def test_adam_moves_by_the_rate_under_a_constant_slope(g):
    """The corrections make both averages exact, so each step is lr * sign(g)."""
    g = torch.tensor([g], dtype=torch.float64)
    w, slots = torch.zeros_like(g), (torch.zeros_like(g),) * 2
    for t in range(1, 31):
        w, slots = Adam(eps=0.0).update(w, g, slots, t, 0.01)
        torch.testing.assert_close(w, -0.01 * t * g.sign())


# --- early stopping -------------------------------------------------------------------


def stopped_at(values, patience):
    """Where a walk through the values should stop, by hand: its index, or None."""
    for k in range(len(values)):
        best = min(range(k + 1), key=lambda i: values[i])  # the first lowest
        if k - best >= patience:
            return k
    return None


def test_early_stopping_stops_and_keeps_the_best():
    for values in itertools.permutations([5.0, 3.0, 4.0, 1.0, 2.0, 3.0]):
        for patience in (1, 2, 3):
            model = nn.Linear(1, 1)
            stop, at = EarlyStopping(model, patience), None
            for k, value in enumerate(values):
                nn.init.constant_(model.weight, k)
                if stop(torch.tensor(value)):
                    at = k
                    break
            assert at == stopped_at(values, patience)
            seen = values[: len(values) if at is None else at + 1]
            stop.restore()
            assert stop.best == min(seen)
            assert model.weight.item() == seen.index(min(seen))


def test_early_stopping_and_numbers_that_are_not_finite():
    model = nn.Linear(1, 1)
    stop = EarlyStopping(model, patience=2)
    with pytest.raises(ValueError, match="no value was finite so far"):
        stop.restore()
    assert not stop(1.0)
    before = copy.deepcopy(model.state_dict())
    nn.init.constant_(model.weight, 7)
    assert not stop(float("nan")) and stop(float("nan"))
    stop.restore()
    assert torch.equal(model.weight, before["weight"])
    with pytest.raises(ValueError, match="patience is 0; it must be at least 1"):
        EarlyStopping(model, 0)


# --- surfaces and programs ------------------------------------------------------------


def curvatures(surface, place):
    hessian = torch.autograd.functional.hessian(surface, torch.tensor(place))
    return torch.linalg.eigvalsh(hessian)


@pytest.mark.parametrize("name", ["valley", "slanted valley"])
def test_valleys_have_the_curvatures_that_the_text_names(name):
    surface = SURFACES[name]
    for place in ([0.0, 0.0], list(START)):
        torch.testing.assert_close(
            curvatures(surface, place), torch.tensor([0.2, 10.0]), atol=1e-4, rtol=0
        )
    assert surface(torch.zeros(2)) == 0


def test_the_slanted_valley_is_the_valley_turned():
    turn = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]) / 2**0.5
    w = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    slanted = SURFACES["slanted valley"](w @ turn.T)
    torch.testing.assert_close(slanted, SURFACES["valley"](w))


def test_where_the_surfaces_are_lowest():
    axis = torch.linspace(-2.2, 2.2, 441)
    grid = torch.cartesian_prod(axis, axis)
    for name, lowest in (("bend", (1.0, 1.0)), ("two valleys", (1.036, 0.0))):
        heights = SURFACES[name](grid)
        at = grid[heights.argmin()]
        torch.testing.assert_close(at, torch.tensor(lowest), atol=0.01, rtol=0)
        assert abs(heights.min()) < 1e-3
        assert (curvatures(SURFACES[name], list(lowest)) > 0).all()
    found = curvatures(SURFACES["bend"], [1.0, 1.0])  # of [[8.1, -4], [-4, 2]]
    assert found.sum() == pytest.approx(10.1, rel=1e-4)
    assert found.prod() == pytest.approx(0.2, rel=1e-3)
    low, high = curvatures(SURFACES["two valleys"], [-0.0755, 0.0])  # the pass
    assert low < 0 < high
    left = SURFACES["two valleys"](torch.tensor([-0.96, 0.0]))
    assert 0.5 < left < SURFACES["two valleys"](torch.tensor([-0.0755, 0.0]))


def test_a_choice_is_one_surface():
    w = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    for k, surface in enumerate(SURFACES.values()):
        torch.testing.assert_close(mixed_surface(w, torch.tensor(float(k))), surface(w))


@pytest.mark.parametrize("number, name", list(enumerate(SURFACES)))
def test_walkers_of_the_program_walk_as_torch_does(number, name):
    run = Run(surface_program(), seed=3)
    places = {k: torch.tensor(START, requires_grad=True) for k in RULES}
    optimizers = {k: RULES[k][1]([w], 0.02) for k, w in places.items()}
    rates = {f"lr_{k}": 0.02 for k in list(RULES)[:3]}
    for step in range(1, 31):
        eps = run.draw(step)["eps"]
        metrics, _ = run.step(surface=number, noise=0.5, **rates)
        heights = dict(zip(run.program.metrics, metrics[0].tolist(), strict=True))
        for k in list(RULES)[:3]:
            height = SURFACES[name](places[k])
            assert heights[f"{k}_height"] == pytest.approx(height.item(), rel=1e-3)
            places[k].grad = torch.autograd.grad(height, places[k])[0] + 0.5 * eps
            optimizers[k].step()
    wanted = torch.stack([places[k].detach() for k in list(RULES)[:3]])
    torch.testing.assert_close(run.view()["places"], wanted, rtol=1e-3, atol=1e-3)
    assert (wanted - torch.tensor(START)).norm(dim=1).min() > 0.2


def test_the_map_shows_the_surface_with_its_first_row_at_the_bottom():
    run = Run(surface_program(width=2.2, points=45))
    axis = torch.linspace(-2.2, 2.2, 45)
    for number, (name, x, y) in enumerate(
        [("valley", 0, 0), ("slanted valley", 0, 0), ("bend", 1, 1)]
    ):
        heat = run.view(surface=number)["heat"]
        assert heat.shape == (45, 45) and heat.min() >= 0
        assert heat.max() == pytest.approx(1.0, abs=0.02)
        row, column = ((axis - at).abs().argmin() for at in (y, x))
        assert heat[row, column] < heat.min() + 0.01  # on the lowest terrace
        # terraces never turn the order of two heights round by more than rounding
        heights = SURFACES[name](torch.cartesian_prod(axis, axis)).view(45, 45).T
        ordered = heat.flatten()[heights.flatten().argsort()]
        assert (ordered.diff() > -1e-4).all()


def test_the_digits_program_trains_as_torch_does():
    program = digits_program(hidden=8)
    run = Run(program, seed=1)
    clean, few = (run.program.tables["data"][k].rows for k in program.tables["data"])
    wrong = (few[:, -1] != clean[:100, -1]).nonzero().flatten()
    assert wrong.tolist() == list(range(20)) and len(clean) == 1200
    assert few[:, -1].unique().numel() == 10
    parameters = program.parameters(run.state)
    model = copy.deepcopy(program.modules["classifier"])
    model.load_state_dict(
        {k.partition(".")[2]: v.clone() for k, v in parameters.items()}
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.15, momentum=0.9)
    for step in range(1, 6):
        rows = run.draw(step)["rows"]
        loss = nn.functional.cross_entropy(model(rows[:, :64]), rows[:, 64].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        metrics, _ = run.step()
        assert metrics.item() == pytest.approx(loss.item(), rel=1e-4)
    held = program.tables["held out"]["validation"].rows
    assert torch.equal(held[:, :64], load("digits").x().flatten(1)[1200:])
    assert torch.equal(clean[:, :64], load("digits").x().flatten(1)[:1200])
    logits, labels = model(held[:, :64]).detach(), held[:, 64].long()
    view = run.view()
    loss = nn.functional.cross_entropy(logits, labels).item()
    assert view["validation"].item() == pytest.approx(loss, rel=1e-4)
    error = 100 * (logits.argmax(1) != labels).float().mean().item()
    assert view["error"].item() == pytest.approx(error, abs=0.34)
    assert view["weights"].shape == (8, 1, 8, 8)
    assert view["weights"].min() >= 0 and view["weights"].max() <= 1


def test_the_few_digits_are_overfitted_and_the_many_are_not():
    program = digits_program()
    errors = {}
    for option in program.tables["data"]:
        run = Run(program)
        run.choose("data", option)
        run.step(400)
        errors[option] = run.view()["error"].item()
    many, few = errors.values()
    assert many < 6 and few > 20


def test_the_still_picture_s_trails_begin_at_the_start(monkeypatch):
    from genlib.widgets import training_lab

    seen = []
    monkeypatch.setattr(
        training_lab, "draw_poster", lambda p, paths: seen.append(paths)
    )
    walkers = training_lab.trail("places", ("SGD", "momentum", "Adam"))
    panels = [training_lab.panel("Walkers", walkers, extent=(-2, 2, -2, 2))]
    lab = training_lab.TrainingLab(surface_program(), panels, poster_steps=30)
    if not seen:
        lab.poster()
    first, *_, last = (view["places"] for view in seen[0])
    assert first.tolist() == [pytest.approx(START)] * 3
    assert not torch.allclose(last, first)
