"""The training loop of every chapter: `fit` repeats a step that the chapter wrote.

There is no Trainer. A step takes a batch, updates what it likes and returns its
metrics; `fit` repeats it, shows progress, keeps a `History`, stops at the first
number that is not finite, and can save and resume to the same numbers.
"""

import copy
import json
import math
import os
import random
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm.auto import tqdm


def seed_everything(seed):
    """Seed Python, NumPy and torch; return a CPU `torch.Generator` with that seed."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def get_device(name=None):
    """The best device here, cuda > mps > cpu, or the one named.

    The environment variable GENLIB_DEVICE names one where the code does not.
    Raises ValueError for a name that is unknown or not available here.
    """
    usable = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name is None:
        best = next(n for n, ok in usable.items() if ok)
        name = os.environ.get("GENLIB_DEVICE") or best
    if not usable.get(name, False):
        have = ", ".join(n for n, ok in usable.items() if ok)
        raise ValueError(f"device {name!r} is not available here; choose from: {have}")
    return torch.device(name)


def get_profile():
    """Which version of a chapter runs: "gpu" where CUDA is present, else "cpu".

    The environment variable GENLIB_PROFILE overrides the choice.
    """
    default = "gpu" if torch.cuda.is_available() else "cpu"
    profile = os.environ.get("GENLIB_PROFILE") or default
    if profile not in ("cpu", "gpu"):
        raise ValueError(f"GENLIB_PROFILE is {profile!r}; it must be 'cpu' or 'gpu'")
    return profile


def warmup_linear(step, max_steps, warmup=0.1):
    """Factor on the learning rate: 0 up to 1 in the first share, then down to 0.

    `warmup` is the share of `max_steps` that rises. For `LambdaLR`.
    """
    rising = max(1, round(warmup * max_steps))
    if step < rising:
        return (step + 1) / rising
    return max(0.0, (max_steps - step) / max(1, max_steps - rising))


class SGD:
    r"""Gradient descent: $v \leftarrow \mu v + g$, $w \leftarrow w - \eta v$.

    `momentum` is $\mu$; at 0 it is plain descent. As `torch.optim.SGD` (Sutskever et
    al. 2013 write it a little differently). `slots` counts the vectors that it keeps
    beside the weights, each of their shape and zero at first.
    """

    def __init__(self, momentum=0.0):
        self.momentum, self.slots = momentum, int(momentum != 0)

    def update(self, w, g, slots, t, lr):
        """Weights w, gradient g, both of one shape -> new weights and new slots."""
        if self.slots:
            g = self.momentum * slots[0] + g
        return w - lr * g, (g,) * self.slots


class Adam:
    r"""Steps of about the size $\eta$ in each weight, whatever the gradient's scale.

    $m \leftarrow \beta_1 m + (1 - \beta_1) g$,
    $s \leftarrow \beta_2 s + (1 - \beta_2) g^2$,
    $w \leftarrow w - \eta \hat m / (\sqrt{\hat s} + \epsilon)$, where
    $\hat m = m / (1 - \beta_1^t)$ and $\hat s$ likewise undo the start from zero.
    Kingma and Ba 2015, arXiv:1412.6980, algorithm 1 (their v is s here); as
    `torch.optim.Adam`.
    """

    slots = 2

    def __init__(self, betas=(0.9, 0.999), eps=1e-8):
        self.betas, self.eps = betas, eps

    def update(self, w, g, slots, t, lr):
        """As `SGD.update`; `t` counts the steps and is 1 in the first."""
        beta1, beta2 = self.betas
        m = beta1 * slots[0] + (1 - beta1) * g
        s = beta2 * slots[1] + (1 - beta2) * g.square()
        m_hat, s_hat = m / (1 - beta1**t), s / (1 - beta2**t)
        return w - lr * m_hat / (s_hat.sqrt() + self.eps), (m, s)


class EarlyStopping:
    """Watches a validation loss, keeps the weights that had the lowest.

    Called with each new value it returns True when the last `patience` of them brought
    nothing lower (Prechelt 1998, the idea behind his criteria); `restore` puts the
    weights of the lowest one back into the module. `best` is that value.

        stop = EarlyStopping(model, patience=5)
        while not stop(validation_loss()):
            train_a_little()
        stop.restore()
    """

    def __init__(self, module, patience):
        if patience < 1:
            raise ValueError(f"patience is {patience}; it must be at least 1")
        self.module, self.patience = module, patience
        self.best, self.weights, self.since = math.inf, None, 0

    def __call__(self, value):
        value = float(value)
        if value < self.best:
            self.best, self.since = value, 0
            self.weights = copy.deepcopy(self.module.state_dict())
        else:  # NaN too
            self.since += 1
        return self.since >= self.patience

    def restore(self):
        if self.weights is None:
            raise ValueError("no value was finite so far: there is nothing to restore")
        self.module.load_state_dict(self.weights)


class NonFiniteError(RuntimeError):
    """Training produced a NaN or an infinity; `history` ends just before it."""

    def __init__(self, message, history):
        super().__init__(message)
        self.history = history


class History:
    """The metrics of a run, one value a step: `history["loss"]` is a list."""

    def __init__(self, metrics=None):
        self.metrics = metrics or {}

    @property
    def steps(self):
        return max((len(values) for values in self.metrics.values()), default=0)

    def record(self, metrics):
        """Append one step's metrics (name -> float)."""
        if self.metrics and metrics.keys() != self.metrics.keys():
            raise ValueError(
                f"step {self.steps + 1} returned the metrics {sorted(metrics)}, the "
                f"steps before {sorted(self.metrics)}; return the same names each time"
            )
        for name, value in metrics.items():
            self.metrics.setdefault(name, []).append(value)

    def __getitem__(self, name):
        if name not in self.metrics:
            raise KeyError(f"no metric {name!r}; there are: {', '.join(self.metrics)}")
        return self.metrics[name]

    def keys(self):
        return self.metrics.keys()

    def mean(self, name, last=50):
        """Mean of a metric over the last steps, steadier than the last value."""
        values = self[name][-last:]
        return sum(values) / len(values)

    def plot(self, *names, **options):
        """Draw the curves; see `genlib.plot.curves` for the options."""
        from genlib.plot import curves

        return curves(self, *names, **options)


def fit(step, batches, max_steps, *, checkpoint=None, progress=True):
    """Call `step(batch)` until `max_steps` steps are done; return their `History`.

    `step` returns a dict of metrics, 0-d tensors or floats. `batches` is any iterable
    of batches, usually endless. With a `Checkpoint` the run saves itself now and then
    and, started again, goes on where the last save left it, to the same numbers.

    Raises NonFiniteError, naming metric and step, when a metric is not finite, and
    ValueError when the batches end too soon, TypeError for a step that returns no dict.
    """
    batches, history = iter(batches), History()
    if checkpoint is not None and checkpoint.path.exists():
        history = checkpoint.history()
        next(islice(batches, history.steps, history.steps), None)  # skip what was seen
        checkpoint.restore()
    pending = []
    # tqdm's notebook bar does not look at TQDM_DISABLE by itself.
    quiet = not progress or os.environ.get("TQDM_DISABLE", "0") != "0"
    with tqdm(total=max_steps, initial=history.steps, disable=quiet) as bar:
        for number in range(history.steps + 1, max_steps + 1):
            metrics = step(next_batch(batches, number, max_steps))
            check_metrics(metrics)
            pending.append({k: torch.as_tensor(v).detach() for k, v in metrics.items()})
            save = checkpoint is not None and number % checkpoint.every == 0
            # Reading a number makes a GPU wait for it, so read several at once.
            if len(pending) == 20 or save or number == max_steps:
                record(pending, history)
                bar.update(len(pending))
                bar.set_postfix({k: f"{v[-1]:.4g}" for k, v in history.metrics.items()})
                pending = []
            if save or (checkpoint is not None and number == max_steps):
                checkpoint.save(history)
    return history


def next_batch(batches, number, max_steps):
    """The batch of step `number`; ValueError when the batches have ended."""
    try:
        return next(batches)
    except StopIteration:
        raise ValueError(
            f"the batches ended after {number - 1} of {max_steps} steps; pass an "
            "endless iterator, as genlib.data.batches gives, or fewer steps"
        ) from None


def check_metrics(metrics):
    """TypeError unless a step returned a dict."""
    if not isinstance(metrics, dict):
        raise TypeError(
            f"the step returned a {type(metrics).__name__}; return a dict of its "
            'metrics, such as {"loss": loss}'
        )


def record(pending, history):
    """Move pending metrics into the history; stop at the first that is not finite."""
    for metrics in pending:
        for name, value in metrics.items():
            if value.numel() != 1:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}; a metric is one number, "
                    "such as a mean"
                )
        values = {name: float(value) for name, value in metrics.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"{name} is {value} at step {history.steps + 1}: the run diverged. "
                    "Lower the learning rate, or look at that batch; the history so "
                    "far is in the error's `.history`",
                    history,
                )
        history.record(values)


class Checkpoint:
    """Saves a run, and brings it back to the same numbers.

    `objects` are what changes while training: modules, optimisers, schedulers,
    generators, by any name. torch's own random state (CPU and CUDA) goes along. All
    is one safetensors file, replaced in one move, so that a run killed while saving
    leaves the save before; nothing is pickled.

        run = Checkpoint("run.safetensors", vae=vae, optimizer=optimizer)
        history = fit(step, data, 2000, checkpoint=run)
    """

    def __init__(self, path, every=200, **objects):
        self.path, self.every, self.objects = Path(path), every, objects
        if not objects:
            raise ValueError(
                "a checkpoint needs what to save: Checkpoint(path, vae=vae)"
            )
        if "random" in objects:
            raise ValueError(
                "torch's random state is saved under the name 'random'; give your "
                "object another one"
            )
        if every < 1:
            raise ValueError(f"every is {every}; it is a number of steps, at least 1")

    def save(self, history):
        state = {name: get_state(thing) for name, thing in self.objects.items()}
        state["random"] = random_state()
        tensors = {}
        meta = {"state": pack(state, tensors, ""), "history": history.metrics}
        write_safetensors(
            tensors, self.path, {k: json.dumps(v) for k, v in meta.items()}
        )

    def history(self):
        """The history in the file, without touching any object."""
        return History(json.loads(self.read()[1]["history"]))

    def read(self):
        """Tensors and metadata of the file; ValueError if it holds no run."""
        tensors, meta = read_safetensors(self.path)
        if not {"state", "history"} <= meta.keys():
            raise ValueError(
                f"{self.path} holds no run that could go on, weights perhaps. Give "
                "another path, or delete the file"
            )
        return tensors, meta

    def restore(self):
        """Put the saved state into the objects; all of them fit, or none is touched."""
        tensors, meta = self.read()
        state = unpack(json.loads(meta["state"]), tensors)
        saved_random = state.pop("random")
        if state.keys() != self.objects.keys():
            raise ValueError(
                f"{self.path} holds {sorted(state)}, this run {sorted(self.objects)}: "
                "it is of another run. Give another path, or delete the file"
            )
        for name, thing in self.objects.items():
            if isinstance(thing, nn.Module):
                check_fits(thing, state[name], f"{name!r} in {self.path}")
        before = copy.deepcopy({k: get_state(v) for k, v in self.objects.items()})
        try:
            for name, thing in self.objects.items():
                set_state(thing, state[name])
        except Exception as error:
            for name, thing in self.objects.items():
                set_state(thing, before[name])
            raise ValueError(f"{self.path} does not fit this run: {error}") from error
        set_random_state(saved_random)


def get_state(thing):
    if isinstance(thing, torch.Generator):
        return thing.get_state()
    return thing.state_dict()


def set_state(thing, state):
    if isinstance(thing, torch.Generator):
        thing.set_state(state)
    else:
        thing.load_state_dict(state)


def random_state():
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state):
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])


def pack(value, tensors, path):
    """Nested state -> JSON; tensors move into `tensors`, under their path.

    A dict becomes a list of pairs: an optimiser's keys are integers, which JSON
    would turn into texts.
    """
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().cpu().clone().contiguous()
        return {"tensor": path}
    if isinstance(value, dict):
        return {
            "dict": [[k, pack(v, tensors, f"{path}/{k}")] for k, v in value.items()]
        }
    if isinstance(value, list | tuple):
        return [pack(v, tensors, f"{path}/{i}") for i, v in enumerate(value)]
    return value


def unpack(value, tensors):
    if isinstance(value, list):
        return [unpack(v, tensors) for v in value]
    if isinstance(value, dict) and "tensor" in value:
        return tensors[value["tensor"]]
    if isinstance(value, dict):
        return {k: unpack(v, tensors) for k, v in value["dict"]}
    return value


def write_safetensors(tensors, path, meta):
    """Write beside the file, then replace it in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    os.close(handle)
    try:
        save_file(tensors, partial, metadata=meta)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(partial, 0o666 & ~mask)  # mkstemp's file is its owner's alone
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def read_safetensors(path):
    """Tensors and metadata of a file; ValueError if it is not a whole one."""
    try:
        with safe_open(path, "pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); delete it"
        ) from None


def save_weights(module, path, **meta):
    """Save a module's weights as safetensors, with `meta` (texts) in its header."""
    meta = {"class": type(module).__name__} | {k: str(v) for k, v in meta.items()}
    write_safetensors(
        {
            k: v.detach().cpu().clone(memory_format=torch.contiguous_format)
            for k, v in module.state_dict().items()
        },
        Path(path),
        meta,
    )


def load_weights(module, path):
    """Load weights that `save_weights` wrote; return the file's metadata.

    Raises ValueError, before anything is changed, if they are of another model.
    """
    tensors, meta = read_safetensors(path)
    check_fits(module, tensors, path)
    module.load_state_dict(tensors)
    return meta


def check_fits(module, tensors, source):
    """ValueError, naming the first difference, unless names and shapes agree."""
    have = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    got = {k: tuple(v.shape) for k, v in tensors.items()}
    for name in sorted(have.keys() | got.keys()):
        if have.get(name) != got.get(name):
            raise ValueError(
                f"{source} is of another model: {name} is {got.get(name, 'missing')} "
                f"there and {have.get(name, 'missing')} in this "
                f"{type(module).__name__}. Build the model with the saved sizes"
            )


# --- surfaces to walk on --------------------------------------------------------------


def valley(w):
    """Height of a long valley at points w (..., 2): (...). Curvatures 0.2 and 10."""
    x, y = w.unbind(-1)
    return 0.1 * x.square() + 5 * y.square()


def slanted_valley(w):
    """The same valley, turned by 45 degrees: (..., 2) -> (...)."""
    x, y = w.unbind(-1)
    return 0.05 * (x - y).square() + 2.5 * (x + y).square()


def bend(w):
    """A curved valley that ends in (1, 1), after Rosenbrock 1960: (..., 2) -> (...)."""
    x, y = w.unbind(-1)
    return 0.05 * (1 - x).square() + (y - x.square()).square()


def two_valleys(w):
    """Two valleys with a pass between; the right one is deeper: (..., 2) -> (...)."""
    x, y = w.unbind(-1)
    return (x.square() - 1).square() - 0.3 * x + 2 * y.square() + 0.30543


SURFACES = {
    "valley": valley,
    "slanted valley": slanted_valley,
    "bend": bend,
    "two valleys": two_valleys,
}
START = (-1.8, 1.4)  # where every walk begins


def mixed_surface(w, choice):
    """The surface of number `choice` (a float), as a sum that needs no branch."""
    weights = [torch.relu(1 - (choice - k).abs()) for k in range(len(SURFACES))]
    heights = [surface(w) for surface in SURFACES.values()]
    return sum(a * h for a, h in zip(weights, heights, strict=True))


class Walker(nn.Module):
    """A model with two weights: a place (2,) on a surface."""

    def __init__(self, start=START):
        super().__init__()
        self.place = nn.Parameter(torch.tensor(start))


def walk_loss(walker):
    """The loss of one walker, for a `genlib.live.Phase`."""

    def loss(surface, noise, eps):
        height = mixed_surface(walker.place, surface)
        push = noise * (eps * walker.place).sum()  # adds noise * eps to the gradient
        return {"loss": height + push, "height": height.clamp(min=1e-9)}

    return loss


def surface_program(width=2.2, points=72):
    """Three walkers race down one surface, by SGD, momentum and Adam.

    A `genlib.live.Program`. All get the same noise in their gradients. The views are
    `places` (3, 2) and `heat` (points, points): the surface over -width..width in
    terraces, 0 the lowest and 1 the highest.
    """
    from genlib.live import Choice, Normal, Phase, Program, Slider

    optimizers = {"SGD": SGD(), "momentum": SGD(0.9), "Adam": Adam()}
    walkers = {name: Walker() for name in optimizers}
    axis = torch.linspace(-width, width, points)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)  # (y, x, 2)

    def views(surface):
        heat = (1 + 10 * mixed_surface(grid, surface)).log()
        heat = heat / heat.amax((0, 1))
        for _ in range(2):  # towards 12 terraces, without a jump
            heat = heat - (2 * math.pi * 12 * heat).sin() / (2 * math.pi * 12)
        places = torch.stack([walker.place for walker in walkers.values()])
        return {"places": places, "heat": heat}

    phases = [
        Phase(name, name, walk_loss(walker), optimizers[name], lr=f"lr_{name}")
        for name, walker in walkers.items()
    ]
    feeds = {
        "surface": Choice(tuple(SURFACES), label="surface"),
        "noise": Slider(0.0, 0.0, 3.0, label="noise in the gradient"),
        "eps": Normal(2),
    }
    for name in walkers:
        feeds[f"lr_{name}"] = Slider(
            0.05, 0.002, 0.4, log=True, label=f"rate of {name}"
        )
    return Program(walkers, phases, feeds, views)


def digits_program(hidden=64, batch=32, wrong=20):
    """A classifier of digits in training, with clean data or few and partly wrong ones.

    A `genlib.live.Program`, moved by momentum. The table `data` holds 1,200 digits, or
    100 of which `wrong` bear another digit's label; each row is 64 pixels and a label.
    The views are the loss and the errors (%) on 300 other digits, and the hidden units'
    weights as images (hidden, 1, 8, 8).
    """
    from genlib.data import load
    from genlib.live import First, Phase, Program, Rows, Slider

    data = load("digits")
    rows = torch.cat([data.x().flatten(1), data.labels[:, None].float()], 1)  # (N, 65)
    few = rows[:100].clone()
    few[:wrong, -1] = (few[:wrong, -1] + 1 + torch.arange(wrong) % 9) % 10
    tables = {
        "data": {"1,200 digits": rows[:1200], f"100, {wrong} wrong": few},
        "held out": {"validation": rows[1200:1500]},
    }
    model = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    def surprise(rows):
        log_p = model(rows[:, :64]).log_softmax(1)  # (B, 10)
        right = (rows[:, 64:] == torch.arange(10)).float()
        return -(right * log_p).sum(1), log_p, right

    def views(held_out):
        loss, log_p, right = surprise(held_out)
        wrong = (log_p.amax(1) > (right * log_p).sum(1)).float()
        weight = model[0].weight / model[0].weight.abs().amax(1, keepdim=True)
        images = (0.5 + 0.5 * weight).view(hidden, 1, 8, 8)
        return {
            "validation": loss.mean(),
            "error": 100 * wrong.mean(),
            "weights": images,
        }

    def loss(rows):
        return surprise(rows)[0].mean()

    feeds = {
        "rows": Rows("data", batch),
        "held_out": First("held out", 300),
        "lr": Slider(0.15, 0.001, 2.0, log=True, label="learning rate"),
    }
    phase = Phase("classifier", "classifier", loss, SGD(0.9), lr="lr")
    return Program({"classifier": model}, [phase], feeds, views, tables)
