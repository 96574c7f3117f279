"""Train a GPT by the chapter's own step, on one process or on many (Lightning Fabric).

    python tools/train_gpt.py tools/train_gpt.toml
    fabric run --accelerator cpu --devices 2 tools/train_gpt.py tools/train_gpt.toml
    fabric run --accelerator cuda --devices 8 --num-nodes 2 ... (on every node)

A setting is changed by `name=value` after the file. Started again, a run goes on from
its last checkpoint, whatever ended it. The batch is divided among the processes, so
that the loss curve is the same with any number of them.
"""

import argparse
import json
import os
import sys
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from tqdm.auto import tqdm

from genlib.data import book_text, text_file
from genlib.gpt import (
    GPT,
    Characters,
    GPTConfig,
    bits_per_character,
    evaluate,
    generate,
    make_step,
    modern,
    text_batches,
)
from genlib.training import Checkpoint, fit, seed_everything, write_safetensors


@dataclass
class Settings:
    """What the file of settings may say; train_gpt.toml explains each."""

    text: str = "tinyshakespeare"
    out: str = "runs/gpt"
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    block_size: int = 64
    dropout: float = 0.0
    modern: bool = True
    batch_size: int = 24
    max_steps: int = 2000
    lr: float = 5e-3
    muon: float = 0.02
    warmup: float = 0.1
    seed: int = 0
    look_every: int = 200
    save_every: int = 200
    precision: str = "auto"


def read_settings(file, changes=()):
    """Settings from a TOML file and `name=value` texts; ValueError names what fails."""
    try:
        found = tomllib.loads(Path(file).read_text(encoding="utf-8")) if file else {}
        for change in changes:
            name, equals, value = change.partition("=")
            if not equals:
                raise ValueError(f"{change!r} is no change; write name=value")
            try:
                found[name] = tomllib.loads(f"x = {value}")["x"]
            except tomllib.TOMLDecodeError:
                found[name] = value  # a text without its quotes
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"cannot read {file}: {error}") from error
    kinds = {field.name: field.type for field in fields(Settings)}
    for name, value in found.items():
        if name not in kinds:
            raise ValueError(f"no setting {name!r}; there are: {', '.join(kinds)}")
        if kinds[name] is float and type(value) is int:
            found[name] = float(value)
        elif type(value) is not kinds[name]:
            raise ValueError(f"{name} is {value!r}; expected {kinds[name].__name__}")
    settings = Settings(**found)
    for name in ("batch_size", "max_steps", "look_every", "save_every"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} is {getattr(settings, name)}; at least 1")
    return settings


def read_text(name):
    """A text by name, or of a file; ValueError where there is none."""
    if name == "book":
        return book_text()
    if name == "tinyshakespeare":
        name = text_file("tinyshakespeare", "input.txt")
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"text is {name!r}, no name and no text file: {error}"
        ) from error


def choose_precision(wanted):
    """Half precision where the hardware computes in it, else single."""
    able = torch.cuda.is_available() and torch.cuda.is_bf16_supported(
        including_emulation=False
    )
    if wanted == "auto":
        return "bf16-mixed" if able else "32-true"
    if wanted == "bf16-mixed" and not able:
        raise ValueError(
            "precision is bf16-mixed, which this machine has no hardware for: it "
            'would run many times slower; take "auto" or "32-true"'
        )
    if wanted not in ("bf16-mixed", "32-true"):
        raise ValueError(f'precision is {wanted!r}; "auto", "bf16-mixed" or "32-true"')
    return wanted


class SharedCheckpoint(Checkpoint):
    """A checkpoint that the first process writes and all read."""

    def __init__(self, fabric, *arguments, **objects):
        super().__init__(*arguments, **objects)
        self.fabric = fabric

    def save(self, history):
        if self.fabric.is_global_zero:
            super().save(history)
        self.fabric.barrier()


class Log:
    """One JSON line a look, of which those after `step` are forgotten."""

    def __init__(self, path, step):
        self.path = path
        old = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in old if json.loads(line)["step"] <= step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def add(self, **entry):
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def share(batches, fabric):
    """This process's rows of each batch, on its device."""
    mine = slice(fabric.global_rank, None, fabric.world_size)
    for idx, targets in batches:
        yield fabric.to_device((idx[mine], targets[mine]))


def make_config(settings, vocab_size):
    names = ("n_layer", "n_head", "n_embd", "block_size", "dropout")
    sizes = {name: getattr(settings, name) for name in names}
    return (modern if settings.modern else GPTConfig)(vocab_size=vocab_size, **sizes)


def train(settings):
    """Train, or go on training; returns the `History` of the whole run."""
    from lightning_fabric import Fabric

    precision = choose_precision(settings.precision)
    alone = {} if "LT_CLI_USED" in os.environ else {"devices": 1}  # no `fabric run`
    fabric = Fabric(precision=precision, **alone)
    if settings.batch_size % fabric.world_size:
        raise ValueError(
            f"batch_size is {settings.batch_size}; {fabric.world_size} processes "
            "cannot share it equally"
        )
    text = read_text(settings.text)
    chars = Characters(text)
    idx = torch.tensor(chars.encode(text))
    cut = len(idx) * 9 // 10
    seed_everything(settings.seed)
    plain = GPT(make_config(settings, len(chars)))
    gpt = fabric.setup_module(plain)
    step = make_step(
        gpt, settings.max_steps, settings.lr, settings.muon or None, settings.warmup
    )
    out = Path(settings.out)
    checkpoint = SharedCheckpoint(
        fabric, out / "run.safetensors", settings.save_every, gpt=plain, **step.objects
    )
    done = checkpoint.history().steps if checkpoint.path.exists() else 0
    if fabric.is_global_zero:
        out.mkdir(parents=True, exist_ok=True)
        log = Log(out / "log.jsonl", done)
        where = f"{fabric.world_size} x {fabric.device.type}, {precision}"
        tqdm.write(f"{where}: steps {done} to {settings.max_steps} in {out}")

    dice = torch.Generator(fabric.device)

    def look(number):
        plain.eval()
        nats = evaluate(plain, idx[cut:])
        prompt = torch.zeros(1, 1, dtype=torch.long, device=fabric.device)
        drawn = generate(plain, prompt, 100, generator=dice.manual_seed(0))
        plain.train()
        written = chars.decode(drawn[0].tolist())
        log.add(step=number, val=nats, bits=bits_per_character(nats), sample=written)
        tqdm.write(f"step {number}: {nats:.3f} nats on unseen text\n{written}\n")

    def watched(batch):
        nonlocal done
        done += 1
        # A step's dropout depends on its number and process alone, as in a run that
        # was never interrupted
        place = done * fabric.world_size + fabric.global_rank
        torch.manual_seed((settings.seed << 40) + place)
        metrics = step(batch)
        metrics = {k: fabric.all_reduce(v.detach()) for k, v in metrics.items()}
        last = done == settings.max_steps
        if fabric.is_global_zero and (done % settings.look_every == 0 or last):
            look(done)
        return metrics

    batches = text_batches(
        idx[:cut], settings.block_size, settings.batch_size, settings.seed
    )
    history = fit(
        watched,
        share(batches, fabric),
        settings.max_steps,
        checkpoint=checkpoint,
        progress=fabric.is_global_zero,
    )
    if fabric.is_global_zero:
        meta = {"config": json.dumps(asdict(plain.config)), "chars": chars.chars}
        weights = plain.state_dict()
        write_safetensors(weights, out / "gpt.safetensors", meta)
    return history


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("settings", help="a TOML file, such as tools/train_gpt.toml")
    parser.add_argument("changes", nargs="*", help="name=value")
    arguments = parser.parse_args()
    try:
        train(read_settings(arguments.settings, arguments.changes))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
