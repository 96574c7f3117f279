"""The still picture of a training lab, drawn by matplotlib from the panels' layers."""

import io

import numpy as np


def draw_poster(panels, frames):
    """Draw panels (see `training_lab.panel`) as a small PNG; return its bytes.

    `frames` are the views at several steps, name to tensor; the last one is shown, the
    others are the path of a trail.
    """
    # Not through pyplot: a first pyplot figure inside rc_context would leave a
    # notebook's inline figures switched off.
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from genlib import plot

    with mpl.rc_context(plot.STYLE):
        fig = Figure(figsize=(3.7 * len(panels) + 0.3, 3.9))
        for n, spec in enumerate(panels):
            ax = fig.add_subplot(1, len(panels), n + 1)
            for k, layer in enumerate(spec["layers"]):
                values = [_value(layer, frame) for frame in frames]
                colour = layer.get("colour", plot.PALETTE[k % len(plot.PALETTE)])
                if layer["mark"] == "alignment":
                    layer = layer | {k: _row(frames[-1][layer[k]]) for k in SIDES}
                DRAW[layer["mark"]](ax, spec, layer, values, colour)
            _finish(ax, spec)
        return small_png(fig)


def _value(layer, frame):
    value = layer["fixed"] if "fixed" in layer else frame[layer["value"]]
    return value if isinstance(value, str) else np.asarray(value)


def _points(ax, spec, layer, values, colour):
    size = layer.get("size", 2.5)
    if "labels" not in layer:
        ax.plot(*values[-1].T, "o", ms=size, color=colour, alpha=0.8)
        return
    for k, shade in enumerate(layer["colours"]):
        own = values[-1][np.asarray(layer["labels"]) == k]
        ax.plot(*own.T, "o", ms=size, color=shade)
        ax.annotate(layer["classes"][k], np.median(own, 0), **NAME)


NAME = {  # a class's name on its points
    "ha": "center",
    "va": "center",
    "fontsize": 9,
    "fontweight": "bold",
    "bbox": {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.8},
}


def _heatmap(ax, spec, layer, values, colour):
    low, high = layer["range"]
    ax.imshow(
        values[-1],
        extent=spec["extent"],
        origin="lower",
        cmap=_heat(),
        vmin=low,
        vmax=high,
        interpolation="bilinear",
        aspect="auto",
        zorder=0,
    )
    ax.grid(False)


def _heat():
    """Orange to blue through the page's ground: what the page paints too."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("heat", ["#f0c48c", "#fcfcfa", "#93c4ea"])


def _lines(ax, spec, layer, values, colour):
    for line in values[-1]:
        ax.plot(*line.T, color=colour, lw=0.7)


def _arrows(ax, spec, layer, values, colour):
    x, y, dx, dy = (
        values[-1].T * np.array([1, 1, layer["scale"], layer["scale"]])[:, None]
    )
    ax.quiver(
        x, y, dx, dy, color=colour, angles="xy", scale_units="xy", scale=1, width=0.003
    )


def _trail(ax, spec, layer, values, colour):
    from genlib.plot import PALETTE

    path = np.stack(values)  # (frames, N, 2)
    shades = layer.get("colours", PALETTE)
    for n, label in enumerate(layer["labels"]):
        ax.plot(*path[:, n].T, "-", lw=1.4, color=shades[n])
        ax.plot(*path[-1, n], "o", ms=6, color=shades[n], label=label)
    ax.legend(loc="upper right", fontsize=8)


def _graph(ax, spec, layer, values, colour):
    ax.plot(layer["x"], values[-1], color=colour, label=layer["label"])
    if layer["label"]:
        ax.legend(loc="upper right", fontsize=8)


def _text(ax, spec, layer, values, colour):
    import textwrap

    lines = textwrap.wrap(" ".join(values[-1].split()), 42)[-16:]
    style = {"va": "top", "family": "monospace", "size": 9}
    ax.spines[:].set_visible(False)
    ax.text(0.02, 0.97, "\n".join(lines), transform=ax.transAxes, **style)


def _images(ax, spec, layer, values, colour):
    from genlib.plot import image_grid

    ax.imshow(
        image_grid(values[-1], layer["cols"], gap=1, background=0.35), vmin=0, vmax=1
    )


SIDES = ("rows", "cols")


def _row(tokens):
    return [round(float(k)) for k in tokens]


def _pieces(numbers, tokens):
    """The text of each token, up to the first that is none."""
    found = []
    for k in numbers:
        if not tokens[k]:
            break
        found.append(bytes(tokens[k]).decode(errors="replace"))
    return found


def _sentences(ax, spec, layer, values, colour):
    for n, numbers in enumerate(values[-1]):
        text = "".join(_pieces(_row(numbers), layer["tokens"]))
        sign = "✓" if text == layer["truth"][n] else "✗"
        y, style = 1 - (n + 0.35) / len(values[-1]), {"transform": ax.transAxes}
        ax.text(0.03, y, layer["given"][n], size=8, color="#595959", **style)
        ax.text(0.03, y - 0.05, f"{sign} {text}", size=9.5, **style)


def _alignment(ax, spec, layer, values, colour):
    rows, cols = (_pieces(layer[k], layer["tokens"]) + ["end"] for k in SIDES)
    ax.imshow(values[-1][: len(rows), : len(cols)], cmap="Purples", vmin=0, vmax=1)
    ax.set_xticks(range(len(cols)), [c.strip() or "␣" for c in cols], rotation=45)
    ax.set_yticks(range(len(rows)), rows)
    ax.grid(False)


DRAW = {
    "points": _points,
    "heatmap": _heatmap,
    "lines": _lines,
    "arrows": _arrows,
    "trail": _trail,
    "graph": _graph,
    "images": _images,
    "text": _text,
    "sentences": _sentences,
    "alignment": _alignment,
}


def _finish(ax, spec):
    ax.set_title(spec["title"])
    if spec["extent"] is None:
        if all(layer["mark"] != "alignment" for layer in spec["layers"]):
            ax.set(xticks=[], yticks=[])
        ax.grid(False)
        return
    x0, x1, y0, y1 = spec["extent"]
    ax.set(xlim=(x0, x1), ylim=(y0, y1), box_aspect=1)
    ax.set(xlabel=spec["labels"][0], ylabel=spec["labels"][1])


def small_png(fig):
    """Save a figure as a PNG of 128 colours: a third of the size."""
    from PIL import Image

    file = io.BytesIO()
    fig.savefig(file, dpi=96, metadata={"Software": None})
    image = Image.open(file).convert("RGB").quantize(128, kmeans=1, dither=0)
    small = io.BytesIO()
    image.save(small, "PNG", optimize=True)
    return small.getvalue()
