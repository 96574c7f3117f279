"""The GPT's step on several processes: one curve for any number, and nothing lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from conftest import require_or_skip
from genlib.training import read_safetensors
from tools.train_gpt import Log, Settings, choose_precision, read_settings, share, train

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools" / "train_gpt.py"
SMALL = {
    "text": "book",
    "max_steps": 160,
    "n_layer": 2,
    "n_embd": 32,
    "block_size": 16,
    "batch_size": 8,
    "dropout": 0.0,
    "look_every": 80,
    "save_every": 5,
}
STEPS = SMALL["max_steps"]


@pytest.fixture(scope="module", autouse=True)
def fabric():
    try:
        import lightning_fabric  # noqa: F401
    except ImportError:
        require_or_skip(
            "scale", "Lightning Fabric is missing; pip install genlib[scale]"
        )


def command(out, processes, **changes):
    fabric = Path(sys.executable).with_name("fabric")
    several = [fabric, "run", "--accelerator", "cpu", "--devices", str(processes)]
    said = [f"{k}={json.dumps(v)}" for k, v in (SMALL | changes).items()]
    file = ROOT / "tools" / "train_gpt.toml"
    begin = several if processes > 1 else [sys.executable]
    return [*map(str, (*begin, SCRIPT, file)), *said, f"out={out}"]


def environment():
    own = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT)}
    return os.environ | own


def run(out, processes, **changes):
    done = subprocess.run(
        command(out, processes, **changes),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def losses(out):
    meta = read_safetensors(out / "run.safetensors")[1]
    return torch.tensor(json.loads(meta["history"])["loss"])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run on one process that nothing interrupts."""
    out = tmp_path_factory.mktemp("alone")
    said = run(out, 1)
    assert "1 x cpu, 32-true: steps 0 to 160" in said
    return out


def test_a_run_leaves_its_log_samples_and_weights(alone):
    looks = [json.loads(line) for line in (alone / "log.jsonl").open()]
    assert [look["step"] for look in looks] == [80, STEPS]
    first, last = (look["val"] for look in looks)
    assert last < first < 4.2 and len(looks[-1]["sample"]) == 101
    weights, meta = read_safetensors(alone / "gpt.safetensors")
    config = json.loads(meta["config"])
    assert (config["n_layer"], config["n_embd"]) == (2, 32)
    assert weights["wte.weight"].shape == (len(meta["chars"]), 32)
    assert losses(alone)[-20:].mean() < losses(alone)[:20].mean() - 0.5


def children(pid):
    """The processes that `pid` has started."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True)
    pairs = [map(int, line.split()) for line in listed.stdout.splitlines()]
    return [child for child, parent in pairs if parent == pid]


def saved_steps(out):
    try:
        return len(losses(out))
    except FileNotFoundError:
        return 0


def test_two_processes_train_what_one_does_though_one_is_killed(alone, tmp_path):
    process = subprocess.Popen(
        command(tmp_path, 2),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 200
    while saved_steps(tmp_path) < 20 and time.monotonic() < until:
        assert process.poll() is None, process.stderr.read()[-2000:]
        time.sleep(0.02)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    process.communicate(timeout=120)  # the others end too: none waits for ever
    assert process.returncode != 0
    before = losses(tmp_path)
    assert 20 <= len(before) < STEPS, "killed on the way"

    said = run(tmp_path, 2)
    assert f"2 x cpu, 32-true: steps {len(before)} to {STEPS}" in said
    after = losses(tmp_path)
    torch.testing.assert_close(after[: len(before)], before, rtol=0, atol=0)
    torch.testing.assert_close(after, losses(alone), rtol=2e-3, atol=2e-3)
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").open()]
    assert steps == [80, STEPS], "each look once"


def test_each_process_takes_its_own_rows():
    rows = torch.arange(12).view(6, 2)
    parts = []
    for rank in range(3):
        fabric = SimpleNamespace(global_rank=rank, world_size=3, to_device=lambda x: x)
        parts += [idx for idx, _ in share([(rows, rows)], fabric)]
    assert [len(part) for part in parts] == [2, 2, 2]
    torch.testing.assert_close(torch.cat(parts).sort(0).values, rows)


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    done = subprocess.run(
        command(tmp_path, 2, batch_size=9),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "batch_size is 9; 2 processes cannot share it equally" in done.stderr


def test_dropout_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch):
    """Though the random state in the file is another's: the first process's, say."""
    seed_by = torch.manual_seed
    monkeypatch.setattr("genlib.training.set_random_state", lambda _: seed_by(99))
    settings = {**SMALL, "dropout": 0.2, "max_steps": 12, "save_every": 12}
    whole = train(Settings(**settings, out=str(tmp_path / "a")))
    parts = {**settings, "save_every": 6, "out": str(tmp_path / "b")}
    step = {"count": 0}
    real = torch.nn.utils.clip_grad_norm_

    def stop(*arguments):
        step["count"] += 1
        if step["count"] == 9:
            raise KeyboardInterrupt
        return real(*arguments)

    torch.nn.utils.clip_grad_norm_ = stop
    try:
        with pytest.raises(KeyboardInterrupt):
            train(Settings(**parts))
    finally:
        torch.nn.utils.clip_grad_norm_ = real
    resumed = train(Settings(**parts))
    assert resumed.metrics["loss"] == whole.metrics["loss"]


def test_settings_are_read_and_checked(tmp_path):
    file = ROOT / "tools" / "train_gpt.toml"
    assert read_settings(file) == Settings(), "the file shows what holds without it"
    changed = read_settings(file, ["lr=1", "text=book", "modern=false", 'out="a b"'])
    assert (changed.lr, changed.text, changed.modern) == (1.0, "book", False)
    assert changed.out == "a b"
    wrong = {
        "layers=3": "no setting 'layers'; there are: text, out, n_layer",
        "n_layer=2.5": "n_layer is 2.5; expected int",
        "max_steps=0": "max_steps is 0; at least 1",
        "modern": "'modern' is no change; write name=value",
        "lr=fast": "lr is 'fast'; expected float",
    }
    for change, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            read_settings(file, [change])
    with pytest.raises(ValueError, match="cannot read .*none.toml"):
        read_settings(tmp_path / "none.toml")
    with pytest.raises(ValueError, match="text is 'shakespear', no name and no text"):
        train(Settings(text="shakespear", out=str(tmp_path)))


def test_half_precision_only_where_the_hardware_has_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_precision("auto") == "32-true"
    with pytest.raises(ValueError, match="no hardware for"):
        choose_precision("bf16-mixed")
    with pytest.raises(ValueError, match="precision is '8-true'"):
        choose_precision("8-true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert choose_precision("auto") == "bf16-mixed"


def test_a_log_forgets_what_was_not_saved(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 10}\n{"step": 20}\n{"step": 30}\n')
    log = Log(path, 20)
    log.add(step=30, val=1.0)
    found = [json.loads(line) for line in path.open()]
    assert found == [{"step": 10}, {"step": 20}, {"step": 30, "val": 1.0}]
