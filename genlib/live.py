"""Training steps that run here and in the page, with the same numbers.

A static page has no Python. What it has is ONNX Runtime Web, which can run the graph
of a whole training step, losses, gradients and optimiser included, so nobody writes a
model twice. A `Program` is such a step as a pure function, made from a chapter's own
modules and losses; `Run` repeats it in PyTorch; `genlib.export` carries it to the page.
"""

import base64
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

# --- noise: the same numbers here and in the page -----------------------------------

_MASK = 0xFFFFFFFF


def _mix(x):
    """Scramble 32-bit numbers, in place of random draws (Ettinger's lowbias32)."""
    x = x ^ (x >> 16)
    x = (x * 0x21F0AAAD) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0xD35A2D97) & _MASK
    return x ^ (x >> 15)


def _key(seed, name, step):
    text = 0x811C9DC5  # FNV-1a of the name
    for byte in name.encode():
        text = ((text ^ byte) * 0x01000193) & _MASK
    return _mix((_mix(_mix(seed) ^ text) + step) & _MASK)


def uniform_noise(seed, name, step, count):
    """`count` numbers in 0..1 that depend on seed, name and step alone: float64.

    Not drawn from a stream but computed from their place, so that the page and this
    process have the same noise in every step, whatever either did before.
    """
    key = _key(seed, name, step)
    place = np.arange(count, dtype=np.uint64)
    bits = _mix(_mix((place + key) & _MASK) ^ 0x9E3779B9 ^ key)
    return (bits + 0.5) / 2**32


def normal_noise(seed, name, step, count):
    """As `uniform_noise`, standard normal (Box and Muller 1958): float64."""
    u = uniform_noise(seed, name, step, count + count % 2).reshape(-1, 2)
    radius, angle = np.sqrt(-2 * np.log(u[:, 0])), 2 * np.pi * u[:, 1]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    return pairs.reshape(-1)[:count]


# --- what a program is made of ------------------------------------------------------


@dataclass(frozen=True, init=False)
class Normal:
    """A feed of standard normal noise, fresh in each step: `Normal(256, 2)`."""

    shape: tuple

    def __init__(self, *shape):
        object.__setattr__(self, "shape", shape)


@dataclass(frozen=True)
class Rows:
    """A feed of `count` rows drawn, with return, from the chosen option of a table."""

    table: str
    count: int


@dataclass(frozen=True)
class First:
    """A feed of a table's first `count` rows, always the same: for views."""

    table: str
    count: int


@dataclass(frozen=True)
class Slider:
    """A number in low..high that the reader moves while the program trains."""

    value: float
    low: float
    high: float
    log: bool = False
    integer: bool = False
    label: str = ""

    def check(self, name, value):
        if not self.low <= value <= self.high:
            raise ValueError(
                f"{name} is {value:g}; it must be in {self.low:g}..{self.high:g}"
            )


@dataclass(frozen=True)
class Choice:
    """One of several options; a loss sees its number as a float: 0.0, 1.0, ..."""

    options: tuple
    value: int = 0
    label: str = ""

    def check(self, name, value):
        if value not in range(len(self.options)):
            choices = ", ".join(f"{i} ({o})" for i, o in enumerate(self.options))
            raise ValueError(f"{name} is {value:g}; it must be one of {choices}")


@dataclass(frozen=True)
class Phase:
    """One part of a step: which parameters move, and how.

    `loss`, a function of feeds, returns a scalar, or a dict of scalars with "loss";
    `optimizer` (of `genlib.training`) moves the parameters of `moves`, one module's
    name or several, at the rate `lr`, a number or the name of a feed. In place of loss
    and optimizer, `update`, a function of feeds, may return new values by parameter
    name, such as {"average.0.weight": ...}, or a pair: these and a dict of metrics.
    `every` names a feed: the phase runs in those steps whose number its value divides.
    """

    name: str
    moves: str | tuple
    loss: Callable | None = None
    optimizer: object | None = None
    lr: float | str = 1e-3
    every: str | None = None
    update: Callable | None = None


class _Holder(nn.Module):
    """All modules under one roof, so that one call swaps all their parameters."""

    def __init__(self, modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, function, feeds):
        return function(**feeds)


class Program:
    """A training step as a pure function: (state, feeds) -> (state, metrics).

    The losses are a chapter's own functions over the chapter's own modules; while a
    loss runs, the parameters inside the modules are replaced by those of `state`, one
    flat vector (S,) that also holds what the optimisers keep. So one step can run here,
    and in the page as an ONNX graph, and the modules themselves are never changed.

    Args:
        modules: name to module, on the CPU, without buffers that change.
        phases: the parts of a step, in order (see `Phase`).
        feeds: name to `Normal`, `Rows`, `First`, `Slider` or `Choice`; a loss gets
            those that its parameters name, and so does the function of the views.
        views: function of feeds -> {name: tensor}, what pictures need of the state.
        tables: name to {option: rows (N, ...)}; the first option is chosen at first.
        texts: name of a table to the characters that its rows number, in order: such
            rows are whole numbers below `len(characters)`.

    Raises ValueError, naming it, for what does not fit together.
    """

    def __init__(self, modules, phases, feeds, views=None, tables=None, texts=None):
        self.modules, self.phases = dict(modules), tuple(phases)
        self.feeds, self.views = dict(feeds), views or dict
        self._holder = _Holder(modules)
        self.tables = {
            name: {option: _Table(rows) for option, rows in options.items()}
            for name, options in (tables or {}).items()
        }
        self.texts = dict(texts or {})
        self._groups = {phase.name: self._group(phase) for phase in self.phases}
        self._parameters = dict(self._holder.named_parameters())
        self._check()
        run = Run(self)
        self.metrics_of = self._metric_names(run)  # phase name to names
        self.metrics = sum(self.metrics_of.values(), [])
        self.outputs = {k: tuple(v.shape) for k, v in run.view().items()}

    # --- the packed state ---------------------------------------------------------

    def _group(self, phase):
        """The names and shapes of what a phase moves, and its number of slots."""
        moved = (phase.moves,) if isinstance(phase.moves, str) else phase.moves
        for name in moved:
            if name not in self.modules:
                raise ValueError(
                    f"phase {phase.name} moves {name!r}; the modules are "
                    f"{', '.join(self.modules)}"
                )
        shapes = {
            f"{name}.{key}": value.shape
            for name in moved
            for key, value in self.modules[name].named_parameters()
        }
        if (phase.loss is None) == (phase.update is None):
            raise ValueError(f"phase {phase.name} needs either a loss or an update")
        if phase.loss is not None and phase.optimizer is None:
            raise ValueError(f"phase {phase.name} needs an optimizer, such as Adam()")
        slots = 0 if phase.update else phase.optimizer.slots
        return shapes, slots

    @property
    def size(self):
        """How many numbers the state has."""
        return sum(sum(self._sizes(name)) for name in self._groups)

    def _sizes(self, name):
        shapes, slots = self._groups[name]
        return [sum(s.numel() for s in shapes.values())] * (1 + slots) + [1]

    def unpack(self, state):
        """State (S,) -> phase name to [weights, *slots, steps so far], all flat."""
        sizes = [n for name in self._groups for n in self._sizes(name)]
        parts = iter(state.split(sizes))
        return {name: [next(parts) for _ in self._sizes(name)] for name in self._groups}

    def pack(self, groups):
        """What `unpack` gives -> state (S,)."""
        return torch.cat([part for parts in groups.values() for part in parts])

    def _tensors(self, name, weights):
        shapes, _ = self._groups[name]
        parts = weights.split([s.numel() for s in shapes.values()])
        return {k: p.view(s) for (k, s), p in zip(shapes.items(), parts, strict=True)}

    def parameters(self, state):
        """State (S,) -> every moved parameter by name, "G.0.weight" and so on."""
        return self._all_tensors(self.unpack(state))

    def _all_tensors(self, groups):
        return {
            key: value
            for name, (weights, *_) in groups.items()
            for key, value in self._tensors(name, weights).items()
        }

    def starts(self):
        """Where in the state each parameter stands and how it starts.

        Two lists: `init`, drawn by the seed ({"name", "at", "size", "kind", "scale"}),
        and `values`, as the modules have them ({"at", "value"}). All else is zero.
        """
        init, values, at = [], [], 0
        for name, (shapes, _) in self._groups.items():
            place = at
            for key, shape in shapes.items():
                kind, scale = _initial(self._holder, key)
                entry = {"name": key, "at": place, "size": shape.numel()}
                if kind:
                    init.append(entry | {"kind": kind, "scale": scale})
                else:
                    value = self._parameters[key].detach().flatten().tolist()
                    values.append({"at": place, "value": value})
                place += shape.numel()
            at += sum(self._sizes(name))
        return init, values

    def initial(self, seed=0):
        """The state (S,) at the start: drawn by `seed`, as torch's layers draw theirs.

        Linear layers: uniform within 1/sqrt(fan-in); embeddings: standard normal; a
        parameter with a number `init_std`: normal with this deviation; every other
        starts where the module has it.
        """
        state = torch.zeros(self.size)
        init, values = self.starts()
        for entry in init:
            place = (seed, f"init:{entry['name']}", 0, entry["size"])
            if entry["kind"] == "uniform":
                noise = 2 * uniform_noise(*place) - 1
            else:
                noise = normal_noise(*place)
            part = slice(entry["at"], entry["at"] + entry["size"])
            state[part] = torch.from_numpy(entry["scale"] * noise)
        for entry in values:
            value = torch.tensor(entry["value"])
            state[entry["at"] : entry["at"] + len(value)] = value
        return state

    # --- one step -------------------------------------------------------------------

    def run_phase(self, groups, phase, feeds):
        """One phase: `groups` as `unpack` gives -> its own, new, and its metrics.

        The metrics are a dict of scalars.
        """
        weights, *slots, count = groups[phase.name]
        count = count + 1
        everything = self._all_tensors(groups)
        if phase.update is not None:
            with torch.no_grad():
                new = self._call(phase.update, everything, feeds)
            new, metrics = new if isinstance(new, tuple) else (new, {})
            own = self._tensors(phase.name, weights)
            for key in new.keys() - own.keys():
                raise ValueError(
                    f"the update of phase {phase.name} returns {key!r}, which it does "
                    f"not move; it moves {', '.join(own)}"
                )
            own = own | new
            weights = torch.cat([v.reshape(-1) for v in own.values()])
        else:
            metrics, g = self._gradient(phase, everything, feeds)
            lr = feeds[phase.lr] if isinstance(phase.lr, str) else phase.lr
            weights, slots = phase.optimizer.update(weights, g, slots, count, lr)
        return [weights, *slots, count], metrics

    def _gradient(self, phase, everything, feeds):
        own = {k: everything[k].detach().requires_grad_() for k in self._own(phase)}
        with torch.enable_grad():
            metrics = self._call(phase.loss, everything | own, feeds)
            if not isinstance(metrics, dict):
                metrics = {"loss": metrics}
            if not metrics["loss"].requires_grad:
                raise ValueError(
                    f"the loss of phase {phase.name} does not depend on what it moves: "
                    f"{', '.join(own)}"
                )
            grads = torch.autograd.grad(
                metrics["loss"], own.values(), allow_unused=True
            )
        grads = [
            torch.zeros_like(w) if g is None else g
            for w, g in zip(own.values(), grads, strict=True)
        ]
        return (
            {name: value.detach() for name, value in metrics.items()},
            torch.cat([g.reshape(-1) for g in grads]),
        )

    def _call(self, function, parameters, feeds):
        """Call a loss or a view while the modules hold `parameters`."""
        named = {name: feeds[name] for name in _named(function) if name in feeds}
        return functional_call(self._holder, parameters, (function, named))

    def _own(self, phase):
        return self._groups[phase.name][0]

    def step(self, state, feeds, gates=None):
        """All phases once: state (S,) -> new state (S,) and metrics, (M,).

        `gates` maps a phase's name to False: it is left out, its metrics are 0.
        """
        groups, rows = self.unpack(state), []
        for phase in self.phases:
            if gates and not gates.get(phase.name, True):
                rows += [torch.zeros(())] * len(self.metrics_of[phase.name])
                continue
            groups[phase.name], metrics = self.run_phase(groups, phase, feeds)
            rows += [value.reshape(()) for value in metrics.values()]
        return self.pack(groups), torch.stack(rows) if rows else torch.zeros(0)

    def view(self, state, feeds):
        """What pictures need: name to tensor."""
        with torch.enable_grad():
            outputs = self._call(self.views, self.parameters(state), feeds)
        return {name: value.detach().float() for name, value in outputs.items()}

    # --- checks ---------------------------------------------------------------------

    def _check(self):
        seen = {}
        for phase in self.phases:
            for key in self._own(phase):
                if key in seen:
                    raise ValueError(
                        f"{key} is moved by the phases {seen[key]} and {phase.name}; "
                        "a parameter belongs to one"
                    )
                seen[key] = phase.name
            for name in (phase.lr, phase.every):
                if isinstance(name, str) and name not in self.feeds:
                    raise ValueError(f"phase {phase.name} asks for no feed: {name!r}")
        for function in (*(p.loss or p.update for p in self.phases), self.views):
            for name, parameter in _named(function).items():
                if name not in self.feeds and parameter.default is parameter.empty:
                    who = getattr(function, "__name__", "the view")
                    have = ", ".join(self.feeds)
                    raise ValueError(f"{who} asks for no feed: {name!r}; have {have}")
        for key, value in self._parameters.items():
            if value.device.type != "cpu":
                raise ValueError(
                    f"{key} is on {value.device}; a program runs on the CPU, as the "
                    "page does: build its modules there"
                )
        for name, feed in self.feeds.items():
            if isinstance(feed, Rows | First) and feed.table not in self.tables:
                raise ValueError(
                    f"feed {name} takes rows of {feed.table!r}; the tables are "
                    f"{', '.join(self.tables) or 'none'}"
                )

        for name in self.texts:
            if name not in self.tables:
                raise ValueError(f"texts names {name!r}, which is no table")
            for table in self.tables[name].values():
                self.check_rows(name, table.rows)

    def check_rows(self, table, rows):
        """ValueError for rows (N, ...) that the table of this name cannot hold."""
        shape = next(iter(self.tables[table].values())).rows.shape[1:]
        if len(rows) == 0 or rows.shape[1:] != shape or not rows.isfinite().all():
            raise ValueError(
                f"rows of {table} have shape {tuple(rows.shape)}; expected finite "
                f"(N, {', '.join(map(str, shape))}) with N at least 1"
            )
        if table not in self.texts:
            return
        most, rows = len(self.texts[table]) - 1, rows.float()
        if not (rows.eq(rows.round()) & (rows >= 0) & (rows <= most)).all():
            raise ValueError(
                f"rows of {table} hold {rows.min():g}..{rows.max():g}; they number the "
                f"characters of its vocabulary: whole numbers in 0..{most}"
            )

    def _metric_names(self, run):
        """Run one step to learn the metrics' names and to find buffers that change."""
        before = {k: v.clone() for k, v in self._holder.named_buffers()}
        groups, found, feeds = self.unpack(run.state), {}, run.draw(1)
        for phase in self.phases:
            _, metrics = self.run_phase(groups, phase, feeds)
            prefix = f"{phase.name}_" if len(self.phases) > 1 else ""
            found[phase.name] = [prefix + name for name in metrics]
            for name, value in metrics.items():
                if value.numel() != 1:
                    raise ValueError(
                        f"{name} of phase {phase.name} has shape {tuple(value.shape)}; "
                        "a metric is one number"
                    )
        for key, value in self._holder.named_buffers():
            if not torch.equal(value, before[key]):
                raise ValueError(
                    f"the buffer {key} changes in a step; a program's state is its "
                    "parameters: use a layer without running statistics"
                )
        return found

    @property
    def step_feeds(self):
        """The names of the feeds that a training step takes, in order."""
        used = {p.lr for p in self.phases} | {p.every for p in self.phases}
        for phase in self.phases:
            used |= _named(phase.loss or phase.update).keys()
        return [name for name in self.feeds if name in used]

    @property
    def view_feeds(self):
        """The names of the feeds that the views take, in order."""
        return [name for name in self.feeds if name in _named(self.views)]

    @property
    def scalars(self):
        """Name to present value of every slider and choice, as they start."""
        controls = {
            k: f for k, f in self.feeds.items() if isinstance(f, Slider | Choice)
        }
        return {name: float(feed.value) for name, feed in controls.items()}


class Run:
    """One run of a program in PyTorch: its seed, its state, the steps done."""

    def __init__(self, program, seed=0):
        self.program = program
        self.tables = {
            name: next(iter(options.values())).rows
            for name, options in program.tables.items()
        }
        self.reset(seed)

    def reset(self, seed=0):
        """Start again from the state that `seed` draws."""
        if not 0 <= seed <= _MASK:
            raise ValueError(f"seed is {seed}; it must be in 0..{_MASK}")
        self.seed, self.steps = seed, 0
        self.state = self.program.initial(seed)

    def draw(self, step, view=False, **scalars):
        """The feeds of a step, name to tensor; a view's noise is always the same."""
        feeds, program = {}, self.program
        for name, value in scalars.items():
            if name not in program.scalars:
                have = ", ".join(program.scalars) or "none"
                raise ValueError(f"no slider {name!r}; there are: {have}")
            program.feeds[name].check(name, value)
        for name in program.view_feeds if view else program.step_feeds:
            feed = program.feeds[name]
            place = (self.seed, f"view:{name}", 0) if view else (self.seed, name, step)
            if isinstance(feed, Normal):
                noise = normal_noise(*place, math.prod(feed.shape))
                feeds[name] = torch.from_numpy(noise).float().reshape(feed.shape)
            elif isinstance(feed, Rows):
                rows = self.tables[feed.table]
                index = uniform_noise(*place, feed.count) * len(rows)
                feeds[name] = rows[torch.from_numpy(index).long()]
            elif isinstance(feed, First):
                rows = self.tables[feed.table]
                feeds[name] = rows[torch.arange(feed.count) % len(rows)]
            else:
                feeds[name] = torch.tensor(float(scalars.get(name, feed.value)))
        return feeds

    def gates(self, step, feeds):
        """Which phases run in a step: phase name to bool."""
        return {
            phase.name: phase.every is None
            or step % max(1, round(float(feeds[phase.every]))) == 0
            for phase in self.program.phases
        }

    def step(self, count=1, gates=None, **scalars):
        """Do `count` steps; return metrics (count, M) and gates (count, phases).

        `scalars` are the sliders' values, by name; `gates` says which phases run in
        place of their own rhythm.
        """
        metrics, ran = [], []
        for _ in range(count):
            feeds = self.draw(self.steps + 1, **scalars)
            open_gates = gates or self.gates(self.steps + 1, feeds)
            self.state, row = self.program.step(self.state, feeds, open_gates)
            self.steps += 1
            metrics.append(row)
            names = [phase.name for phase in self.program.phases]
            ran.append(torch.tensor([float(open_gates.get(n, True)) for n in names]))
        return torch.stack(metrics), torch.stack(ran)

    def view(self, **scalars):
        """The program's view of the present state."""
        return self.program.view(self.state, self.draw(0, view=True, **scalars))

    def choose(self, table, option):
        """Take another option of a table as the data, from the next step on."""
        options = self.program.tables[table]
        if option not in options:
            raise ValueError(
                f"{table} has no option {option!r}; choose from: {', '.join(options)}"
            )
        self.tables[table] = options[option].rows

    def replace(self, table, rows):
        """Take rows of one's own (N, ...) as the data, such as a drawing, or a text."""
        self.program.check_rows(table, rows)
        self.tables[table] = rows.float()


class _Table:
    """Rows (N, ...) in the few bytes in which a page loads them."""

    def __init__(self, rows):
        rows = torch.as_tensor(rows).detach().cpu().float()
        if len(rows) == 0 or not rows.isfinite().all():
            raise ValueError(
                f"a table of shape {tuple(rows.shape)}: expected finite rows"
            )
        self.shape = tuple(rows.shape)
        for levels in (1, 16, 255):  # exact in a byte: grey levels
            scaled = rows * levels
            whole = bool(scaled.eq(scaled.round()).all())
            if whole and rows.min() >= 0 and scaled.max() <= 255:
                self.dtype, self.scale = "u1", 1 / levels
                break
        else:
            self.dtype, self.scale = "i2", float(rows.abs().max()) / 32767
        self.codes = (rows / self.scale).round().numpy().astype(f"<{self.dtype}")
        # What is trained on here is what the page trains on, rounding included
        self.rows = torch.from_numpy(self.codes.astype(np.float64) * self.scale).float()

    def manifest(self):
        return {
            "dtype": self.dtype,
            "shape": list(self.shape),
            "scale": self.scale,
            "base64": base64.b64encode(self.codes.tobytes()).decode(),
        }


def _named(function):
    """The parameters that a function names, by name: the feeds that it takes."""
    if function is dict:  # no views
        return {}
    parameters = inspect.signature(function).parameters
    return {k: p for k, p in parameters.items() if p.kind is not p.VAR_KEYWORD}


def _initial(holder, key):
    """How a parameter starts: ("uniform" or "normal", scale) or (None, None)."""
    std = getattr(holder.get_parameter(key), "init_std", None)
    if std is not None:
        return "normal", std
    owner, _, _ = key.rpartition(".")
    module = holder.get_submodule(owner)
    if isinstance(module, nn.Linear):
        return "uniform", module.in_features**-0.5
    if isinstance(module, nn.Embedding):
        return "normal", 1.0
    return None, None
