"""Train a program by hand: start it, move its settings, watch what it learns.

The lab draws what the program's views give, in panels of a few kinds of marks: points,
lines, arrows, heat maps, images. It knows no architecture; a new model needs no new
code here.
"""

import time

import torch

from genlib.export import export_program
from genlib.live import Choice, Run, Slider, uniform_noise
from genlib.widgets.base import PageWidget, join_module, live_folder, read_styles
from genlib.widgets.poster import draw_poster

MAX_RUNS = 4  # that one widget keeps in a kernel; the oldest goes first


# --- what panels and curves are made of ---------------------------------------------


def points(value, label="", labels=None, classes=(), **options):
    """Points: a view's output (N, 2). Options: colour, size.

    With `labels`, integers (N,), and the `classes` by name, each class has a colour.
    """
    layer = {"mark": "points", "value": value, "label": label, **options}
    if labels is not None:
        from genlib.plot import PALETTE  # brings matplotlib

        layer["labels"] = [int(k) for k in labels]
        layer["classes"] = [str(name) for name in classes]
        layer["colours"] = [PALETTE[k % len(PALETTE)] for k in range(len(classes))]
    return layer


def heatmap(value, label="", range=(0, 1), **options):
    """A function of the plane: (H, W) over the panel's extent, row 0 at its bottom."""
    return {"mark": "heatmap", "value": value, "label": label, "range": list(range)} | (
        options
    )


def lines(value, label="", **options):
    """Polylines: (L, P, 2). Options: colour."""
    return {"mark": "lines", "value": value, "label": label, **options}


def arrows(value, label="", scale=1.0, **options):
    """Arrows: (N, 4), each x, y and its length in both; `scale` lengthens them."""
    return {"mark": "arrows", "value": value, "label": label, "scale": scale} | options


def trail(value, labels, **options):
    """Moving points (N, 2), one name each, with the path they took since the start."""
    return {"mark": "trail", "value": value, "labels": list(labels), **options}


def graph(value, x, label="", **options):
    """A function of one variable: (P,) over the numbers `x` (P,). Options: colour."""
    x = [round(float(v), 4) for v in x]
    return {"mark": "graph", "value": value, "x": x, "label": label, **options}


def images(value, cols, label=""):
    """Images (N, C, H, W) in 0..1, in rows of `cols`; they fill the panel."""
    return {"mark": "images", "value": value, "cols": cols, "label": label}


def text(value, table, temperature=0.7):
    """A text that the present model writes: a panel of its own.

    `value` holds the next token's probabilities at each place of a window (T, V),
    `table` names the table of that window, one row of a text (`Program.texts`). With
    each picture one token is drawn, at this temperature, and joins the window.
    """
    return {"mark": "text", "value": value, "table": table, "temperature": temperature}


def sentences(value, tokens, given, truth):
    """Sentences that a model writes: (N, T), tokens by number, under what was `given`.

    `tokens` has the bytes of each; one without any ends a sentence. A sentence that is
    its `truth` is marked as right, others as wrong.
    """
    return {"mark": "sentences", "value": value, "tokens": tokens, "label": ""} | {
        "given": list(given),
        "truth": list(truth),
    }


def alignment(value, rows, cols, tokens):
    """Weights (T, S) between two sentences, as a table with their tokens at its sides.

    `rows` (T,) and `cols` (S,) are outputs too: tokens by number. `tokens` as for
    `sentences`; the first one without bytes is shown as the end.
    """
    return {"mark": "alignment", "value": value, "tokens": tokens, "label": ""} | {
        "rows": rows,
        "cols": cols,
    }


def panel(title, *layers, extent=None, axes=("", ""), draw=None, description=""):
    """One picture: layers from the bottom up over `extent` (x0, x1, y0, y1).

    `axes` names the axes; `draw` names a table whose rows the reader may draw here;
    `description` is what a screen reader says.
    """
    return {
        "title": title,
        "layers": list(layers),
        "extent": None if extent is None else [float(v) for v in extent],
        "labels": list(axes),
        "draw": draw,
        "description": description or title,
    }


def curve(title, *series, unit="", log=False, lines=()):
    """One plot over the steps. A series is a metric's name or (name, label).

    A name may also be that of a view's output of one number. `lines` holds reference
    values, (value, label) each.
    """
    return {
        "title": title,
        "series": [s if isinstance(s, tuple) else (s, s) for s in series],
        "unit": unit,
        "log": log,
        "lines": [{"value": float(v), "label": label} for v, label in lines],
    }


# --- the widget ---------------------------------------------------------------------

SHAPES = {  # what a mark takes, None being any number
    "points": (None, 2),
    "heatmap": (None, None),
    "lines": (None, None, 2),
    "arrows": (None, 4),
    "trail": (None, 2),
    "graph": (None,),
    "images": (None, None, None, None),
    "text": (None, None),
    "sentences": (None, None),
    "alignment": (None, None),
}


class TrainingLab(PageWidget):
    """A `Program` that the reader starts, steers and compares, with what it shows.

    Args:
        program: the training step and its views (`genlib.live.Program`).
        panels: pictures, each made by `panel`.
        curves: plots over the steps, each made by `curve`; by default all metrics.
        live: where the page finds the exported program, such as "gan/ring"; None
            keeps the widget in the notebook.
        title: the heading.
        seed: of the first run.
        poster_steps: how many steps the still picture has seen.

    Where the environment variable GENLIB_LIVE names a folder, `export` is called at
    once, and the page's files are written there.

    Raises ValueError, naming it, for a layer or curve that the program does not give.
    """

    module = "training_lab"
    _esm = join_module("training_lab")
    _css = read_styles("training_lab")

    def __init__(
        self,
        program,
        panels,
        curves=None,
        live=None,
        title="Train it here",
        seed=0,
        poster_steps=300,
    ):
        self.program, self._poster_steps = program, poster_steps
        curves = curves or [curve("metrics", *program.metrics)]
        super().__init__(_spec(program, panels, curves, title, seed), live)
        self._runs = {}
        if live is not None and live_folder() is not None:
            self.export(live_folder())

    def __repr__(self):
        where = f"{self.live}: " if self.live else ""
        phases = ", ".join(phase.name for phase in self.program.phases)
        return f"TrainingLab({where}{phases}; {self.program.size:,} numbers of state)"

    # --- requests of the front end ----------------------------------------------------

    def run(self, feeds, op, key, **call):
        """Answer one request about the run `key`, that of one front end."""
        if op == "reset":
            self._reset(key, call["seed"])
            return {}
        if op == "close":
            self._runs.pop(key, None)
            return {}
        if key not in self._runs:
            raise LookupError(
                "RunLost: this run is no longer in the kernel; Reset starts anew"
            )
        run = self._runs[key]
        return getattr(self, f"_do_{op}")(run, feeds, **call) or {}

    def _reset(self, key, seed):
        run = self._runs.pop(key, None) or Run(self.program)
        run.reset(int(seed))
        self._runs[key] = run
        for oldest in list(self._runs)[:-MAX_RUNS]:
            del self._runs[oldest]

    def _do_step(self, run, feeds, n, scalars, gates=None, view=False):
        gates = gates and {name: bool(value) for name, value in gates.items()}
        begun = time.perf_counter()
        metrics, ran = run.step(int(n), gates, **scalars)
        ms = 1000 * (time.perf_counter() - begun)  # by it the page chooses the next n
        outputs = {"metrics": metrics, "gates": ran, "step": _number(run.steps)}
        outputs["ms"] = _number(ms)
        return outputs | (run.view(**scalars) if view else {})

    def _do_view(self, run, feeds, scalars):
        return {"step": _number(run.steps)} | run.view(**scalars)

    def _do_choose(self, run, feeds, table, name):
        run.choose(table, name)

    def _do_table(self, run, feeds, table):
        run.replace(table, feeds["rows"])

    def _do_state(self, run, feeds):
        return {"state": run.state, "step": _number(run.steps)}

    # --- paper and page ---------------------------------------------------------------

    def export(self, folder):
        """Write <live>.json, .step.onnx and .view.onnx under `folder`, for the page."""
        page = {"widget": self.module, "spec": self.spec}
        export_program(self.program, folder / f"{self.live}.json", page)

    def describe(self):
        titles = "; ".join(p["title"].lower() for p in self.spec["panels"])
        steps = self._poster_steps
        return f"{self.spec['title']}. After {steps} training steps: {titles}."

    def poster(self):
        run = Run(self.program, self.spec["seed"])
        paths = [run.view()]  # a trail begins where the run does
        for _ in range(30):
            run.step(max(1, self._poster_steps // 30))
            paths.append(run.view())
        for p in self.spec["panels"]:
            for layer in p["layers"]:
                if layer["mark"] == "text":
                    paths[-1] |= {layer["value"]: write(run, layer, 250)}
        alt = f"After {run.steps} training steps. " + " ".join(
            p["description"].rstrip(".") + "." for p in self.spec["panels"]
        )
        return draw_poster(self.spec["panels"], paths), alt


def write(run, layer, count):
    """What a panel of text shows after `count` pictures of the present model."""
    tokens, chars, out = list(layer["prompt"]), layer["chars"], ""
    before = run.tables[layer["table"]]
    for k in range(1, count + 1):
        run.replace(layer["table"], torch.tensor([tokens]).float())
        sharp = run.view()[layer["value"]][-1].double() ** (1 / layer["temperature"])
        [u] = uniform_noise(run.seed, "written", k, 1)
        token = int((sharp.cumsum(0) > u * sharp.sum()).int().argmax())
        tokens, out = [*tokens[1:], token], out + chars[token]
    run.tables[layer["table"]] = before
    return out


def _number(value):
    return torch.tensor([float(value)])


def _spec(program, panels, curves, title, seed):
    """Return all that the module draws, as plain JSON."""
    panels = [_with_texts(program, p) for p in panels]
    prompts = {x["table"] for p in panels for x in p["layers"] if x["mark"] == "text"}
    for p in panels:
        for layer in p["layers"]:
            _check_layer(p, layer, program.outputs)
        if p["draw"] is not None and p["draw"] not in program.tables:
            raise ValueError(
                f"panel {p['title']!r} draws {p['draw']!r}; the tables are "
                f"{', '.join(program.tables) or 'none'}"
            )
    several = len(program.phases) > 1
    return {
        "title": title,
        "seed": seed,
        "controls": [
            _control(name, feed)
            for name, feed in program.feeds.items()
            if isinstance(feed, Slider | Choice)
        ],
        "tables": [
            {"name": name, "label": name, "options": list(options)}
            | {
                "draw": next(
                    (i for i, p in enumerate(panels) if p["draw"] == name), None
                )
            }
            | _vocabulary(program, name)
            for name, options in program.tables.items()
            if name not in prompts
        ],
        "phases": [phase.name for phase in program.phases] if several else [],
        "metrics": [  # the columns of a step's answer, each with its phase's number
            {"name": name, "phase": number}
            for number, names in enumerate(program.metrics_of.values())
            for name in names
        ],
        "curves": [c | {"series": _series(program, c)} for c in curves],
        "panels": list(panels),
    }


def _vocabulary(program, table):
    """Of a table of texts: its characters, and how many make a row."""
    if table not in program.texts:
        return {}
    rows = next(iter(program.tables[table].values())).rows
    return {"chars": program.texts[table], "width": rows.shape[1]}


def _with_texts(program, p):
    """A panel whose layers of text know their vocabulary and how they begin."""
    texts = [layer for layer in p["layers"] if layer["mark"] == "text"]
    if not texts:
        return p
    layer, name = texts[0], texts[0]["table"]
    if len(p["layers"]) > 1 or name not in program.texts:
        raise ValueError(
            f"panel {p['title']!r}: a text stands alone in its panel, and its table is "
            f"one of texts ({', '.join(program.texts) or 'none'}), not {name!r}"
        )
    [prompt] = next(iter(program.tables[name].values())).rows[:1].int().tolist()
    layer = layer | {"chars": program.texts[name], "prompt": prompt}
    return p | {"layers": [layer]}


def _check_layer(p, layer, outputs):
    if "fixed" in layer:
        return
    name, wanted = layer["value"], SHAPES[layer["mark"]]
    if name not in outputs:
        raise ValueError(
            f"panel {p['title']!r} shows {name!r}; the views give "
            f"{', '.join(outputs) or 'nothing'}"
        )
    shape = outputs[name]
    fits = len(shape) == len(wanted) and all(
        w in (None, s) for s, w in zip(shape, wanted, strict=True)
    )
    if not fits:
        text = ", ".join("N" if w is None else str(w) for w in wanted)
        raise ValueError(
            f"panel {p['title']!r}: {layer['mark']} take ({text}), {name} is {shape}"
        )


def _control(name, feed):
    control = {"name": name, "label": feed.label or name, "value": feed.value}
    if isinstance(feed, Choice):
        return control | {"kind": "choice", "options": list(feed.options)}
    return control | {
        "kind": "slider",
        "min": feed.low,
        "max": feed.high,
        "log": feed.log,
        "integer": feed.integer,
    }


def _series(program, curve):
    found = []
    for name, label in curve["series"]:
        if name in program.metrics:
            found.append({"metric": name, "label": label})
        elif program.outputs.get(name, (0, 0)) in ((), (1,)):
            found.append({"view": name, "label": label})
        else:
            have = [*program.metrics, *(k for k, s in program.outputs.items() if not s)]
            raise ValueError(
                f"curve {curve['title']!r} shows {name!r}; there are {', '.join(have)}"
            )
    return found
