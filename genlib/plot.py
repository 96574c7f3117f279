"""One look for every figure of the book: grids of images, curves, latent maps.

Colours are Paul Tol's "muted" scheme (Tol 2021, "Colour Schemes", technical note
SRON/EPS/TN/09-002) and ink; they stay apart in colour-blind eyes too.
"""

import io
import math

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch

PALETTE = (
    "#332288",  # indigo
    "#cc6677",  # rose
    "#117733",  # green
    "#ddcc77",  # sand
    "#88ccee",  # cyan
    "#882255",  # wine
    "#44aa99",  # teal
    "#999933",  # olive
    "#aa4499",  # purple
    "#222222",  # ink: a grey would be rose's twin in protanopia
)
INK = "#222222"

STYLE = {
    "figure.dpi": 96,
    "figure.facecolor": "white",  # a light card, readable on a dark page too
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
    "axes.prop_cycle": mpl.cycler(color=PALETTE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "font.size": 10,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "image.interpolation": "nearest",
    "image.cmap": "gray",
}


def use_style():
    """Switch matplotlib to the book's style."""
    mpl.rcParams.update(STYLE)


def to_numpy(values):
    """A tensor, from any device and with or without a gradient, or an array."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
    return np.asarray(values)


def to_array(images):
    """Turn images into a float array (N, H, W) or (N, H, W, 3) with values in 0..1.

    Accepts a tensor or array of shape (N, C, H, W), C being 1 or 3, or (N, H, W).
    Integer images are taken to be in 0..255. Values outside 0..1 are cut, since a
    model may overshoot a little; anything else than such shapes is a ValueError.
    """
    images = to_numpy(images)
    if images.ndim == 4 and images.shape[1] in (1, 3):
        images = images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)
    elif images.ndim != 3 and images.shape[3:] != (3,):
        raise ValueError(
            f"images have shape {images.shape}; expected (N, 1, H, W), (N, 3, H, W) "
            "or (N, H, W)"
        )
    if np.issubdtype(images.dtype, np.integer):
        images = images / 255
    return images.clip(0, 1)


def image_grid(images, cols=None, gap=1, background=1.0):
    """Lay images out in one array, row by row: (H', W') grey or (H', W', 3) colour.

    `cols` defaults to the nearest square; `gap` is in pixels of the images.
    """
    images = to_array(images)
    n, h, w = images.shape[:3]
    if n == 0:
        raise ValueError("there are no images to lay out")
    cols = cols or math.ceil(math.sqrt(n))
    rows = math.ceil(n / cols)
    shape = (rows * (h + gap) - gap, cols * (w + gap) - gap) + images.shape[3:]
    grid = np.full(shape, background)
    for i, image in enumerate(images):
        top, left = (i // cols) * (h + gap), (i % cols) * (w + gap)
        grid[top : top + h, left : left + w] = image
    return grid


def show_images(images, cols=None, title=None, row_labels=None, width=6.0, ax=None):
    """Draw a grid of images, pixels kept sharp; return its Axes.

    `width` is in inches; `row_labels` name the rows at their left.
    """
    images = to_array(images)
    cols = cols or math.ceil(math.sqrt(len(images)))
    sharp = max(1, 32 // images.shape[1])  # small pixels for a thin gap
    images = images.repeat(sharp, axis=1).repeat(sharp, axis=2)
    grid = image_grid(images, cols, gap=2)
    if ax is None:
        height = width * grid.shape[0] / grid.shape[1] + (0.3 if title else 0)
        _, ax = plt.subplots(figsize=(width, height))
    ax.imshow(grid, vmin=0, vmax=1)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    if row_labels is not None:
        step = images.shape[1] + 2
        centres = [i * step + (images.shape[1] - 1) / 2 for i in range(len(row_labels))]
        ax.set_yticks(centres, row_labels)
        ax.tick_params(length=0)
    if title:
        ax.set_title(title)
    return ax


def smooth(values, window):
    """Running mean over `window` values, shorter at the start."""
    total = np.cumsum(np.insert(np.asarray(values, dtype=float), 0, 0.0))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    return (total[end] - total[start]) / (end - start)


def curves(series, *names, window=1, ylabel="nats per image", title=None, ax=None):
    """Plot metrics against the training step; return the Axes.

    `series` is a History or a dict from name to values; `names` default to all.
    With `window` above 1 a running mean is drawn over the pale raw values.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(6.0, 3.0))
    for name in names or list(series.keys()):
        values = series[name]
        (line,) = ax.plot(smooth(values, window), label=name)
        if window > 1:
            ax.plot(values, color=line.get_color(), alpha=0.2, linewidth=0.8)
    ax.set(xlabel="training step", ylabel=ylabel)
    ax.legend()
    if title:
        ax.set_title(title)
    return ax


def readable_on(colour):
    """Black or white, whichever has more contrast on the colour (as WCAG 2 has it)."""
    linear = np.power(mpl.colors.to_rgb(colour), 2.2)
    return "black" if linear @ (0.2126, 0.7152, 0.0722) > 0.179 else "white"


def latent_map(z, labels, classes, title=None, ax=None):
    """Scatter latent points (N, 2) coloured by class, each class named at its median.

    The name, not the colour alone, tells the classes apart.
    """
    z, labels = to_numpy(z), to_numpy(labels)
    if z.ndim != 2 or z.shape[1] != 2:
        raise ValueError(f"latent points have shape {z.shape}; a map needs (N, 2)")
    if len(labels) != len(z):
        raise ValueError(f"{len(z)} latent points but {len(labels)} labels")
    if ax is None:
        _, ax = plt.subplots(figsize=(5.0, 5.0))
    for k, name in enumerate(classes):
        points = z[labels == k]
        if not len(points):
            continue
        colour = PALETTE[k % len(PALETTE)]
        ax.scatter(*points.T, s=7, color=colour, alpha=0.6, linewidths=0)
        ax.annotate(
            name,
            np.median(points, axis=0),
            color=readable_on(colour),
            weight="bold",
            ha="center",
            va="center",
            bbox={"boxstyle": "circle,pad=0.2", "facecolor": colour, "linewidth": 0},
        )
    ax.set(xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
    if title:
        ax.set_title(title)
    return ax


def png_bytes(array, scale=1):
    """Encode a grey (H, W) or colour (H, W, 3) array in 0..1 as a PNG.

    Each pixel becomes a square of `scale` pixels, so nothing is blurred.
    """
    array = np.asarray(array).clip(0, 1)
    array = array.repeat(scale, axis=0).repeat(scale, axis=1)
    file = io.BytesIO()
    plt.imsave(file, array, cmap="gray", vmin=0, vmax=1, metadata={"Software": None})
    return file.getvalue()


def diagram(boxes, arrows, width=7.0, height=2.2):
    """Draw a block diagram; return its Axes.

    `boxes` maps a name to (x, y, text, colour), centres in inches; `arrows` are
    (from, to, label). A text on several lines makes its box higher.
    """
    _, ax = plt.subplots(figsize=(width, height))
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.axis("off")
    drawn = {}
    for name, (x, y, text, colour) in boxes.items():
        style = {"boxstyle": "round,pad=0.5", "facecolor": "white", "linewidth": 1.6}
        style["edgecolor"] = colour
        drawn[name] = ax.text(x, y, text, ha="center", va="center", bbox=style)
    for start, end, label in arrows:
        (x0, y0), (x1, y1) = (drawn[k].get_position() for k in (start, end))
        style = {"arrowstyle": "-|>", "color": INK, "shrinkA": 2, "shrinkB": 4}
        style |= {"patchA": drawn[start].get_bbox_patch(), "linewidth": 1.2}
        style |= {"patchB": drawn[end].get_bbox_patch()}
        ax.annotate("", (x1, y1), (x0, y0), arrowprops=style)
        ax.annotate(
            label,
            ((x0 + x1) / 2, (y0 + y1) / 2),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            va="bottom",
            size=9,
        )
    return ax
