"""Explore a latent space by hand: drag z on the map of the data, see it decoded.

The map shows encoded data points (B, Z) coloured by class, as in Kingma and Welling
(2014), figure 4; the picture beside it is the decoder's mean image at z.
"""

import torch
from torch import nn

from genlib.widgets.base import PageWidget, join_module, live_folder, read_styles
from genlib.widgets.poster import small_png

MAX_POINTS = 2000  # what the map draws; more only overlap


class LatentExplorer(PageWidget):
    """A pad over the latent plane, sliders for every dimension, and the decoded image.

    Args:
        decoder: takes z (B, Z), returns images (B, C, H, W) in 0..1, C being 1 or 3;
            a module, or any function where `live` is None.
        points: encoded data (N, Z), Z at least 2; the map of the latent space.
        labels: the class of each point, integers (N,).
        classes: the name of each class.
        image_shape: (C, H, W), needed only when the decoder returns (B, C*H*W).
        live: where the page finds the exported decoder, such as "vae/digits"; None
            keeps the widget in the notebook.
        title: the heading.
        dims: the two dimensions that the pad shows at first.

    Where the environment variable GENLIB_LIVE names a folder, `export` is called at
    once, and the page's files are written there.

    Raises ValueError, naming the value, for points, labels, dims or images that do not
    fit, and TypeError for a `live` decoder that is no module.
    """

    module = "latent_explorer"
    _esm = join_module("latent_explorer")
    _css = read_styles("latent_explorer")

    def __init__(
        self,
        decoder,
        points,
        labels,
        classes,
        image_shape=None,
        live=None,
        title="Explore the latent space",
        dims=(0, 1),
    ):
        points = torch.as_tensor(points).detach()
        self._device = points.device
        self._decoder = decoder
        self._image_shape = None if image_shape is None else tuple(image_shape)
        points = points.float().cpu()
        labels = torch.as_tensor(labels).cpu().long()
        classes = [str(name) for name in classes]
        _check(points, labels, classes, dims)
        if live is not None and not isinstance(decoder, nn.Module):
            raise TypeError(
                f"live={live!r} needs the decoder as a torch.nn.Module, to store its "
                "weights: for a decoder of logits, nn.Sequential(decoder, nn.Sigmoid())"
            )
        self._points = len(points)
        step = -(-len(points) // MAX_POINTS)
        points, labels = points[::step], labels[::step]
        shape = self._decode(points[:2]).shape[1:]
        super().__init__(
            _spec(points, labels, classes, list(shape), list(dims), title), live
        )
        if live is not None and live_folder() is not None:
            self.export(live_folder())

    def __repr__(self):
        z = len(self.spec["ranges"])
        where = f"{self.live}: " if self.live else ""
        return f"LatentExplorer({where}{z} latent dimensions, {self._points} points)"

    def run(self, feeds):
        return {"x": self._decode(feeds["z"])}

    @torch.no_grad()
    def _decode(self, z):
        """Decode z (B, Z) to images (B, C, H, W) in 0..1, or say what is wrong."""
        module = self._decoder if isinstance(self._decoder, nn.Module) else None
        training = module is not None and module.training
        if training:
            module.eval()
        try:
            x = self._decoder(z.to(_device(self._decoder, self._device)))
        finally:
            if training:
                module.train()
        if not isinstance(x, torch.Tensor):
            raise ValueError(f"the decoder returns a {type(x).__name__}, not a tensor")
        if self._image_shape is not None and x[0].numel() == _size(self._image_shape):
            x = x.reshape(len(x), *self._image_shape)
        if x.ndim != 4 or len(x) != len(z) or x.shape[1] not in (1, 3):
            raise ValueError(
                f"the decoder turns z {tuple(z.shape)} into {tuple(x.shape)}; expected "
                f"({len(z)}, C, H, W), C being 1 or 3 (or give image_shape)"
            )
        if self._image_shape is not None and tuple(x.shape[1:]) != self._image_shape:
            raise ValueError(
                f"the decoder returns images {tuple(x.shape[1:])}, but image_shape is "
                f"{self._image_shape}"
            )
        low, high = float(x.min()), float(x.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also catches NaN
            raise ValueError(
                f"the decoder returns values in {low:.3g}..{high:.3g}; images must be "
                "in 0..1 (logits need a sigmoid)"
            )
        return x

    def export(self, folder):
        """Write <live>.onnx, .json and .safetensors under `folder`, for the page."""
        example = {"z": torch.tensor([self.spec["start"], self.spec["a"]])}
        advice = "use a smaller decoder or fewer points"
        self.write_page(folder, self._decoder, example, ["x"], self._decoder, advice)

    def describe(self):
        return (
            f"{self.spec['title']}. Left, the data in the latent plane, coloured by "
            "class; right, what a grid of points in that plane decodes to."
        )

    def poster(self):
        # Not through pyplot: a first pyplot figure inside rc_context would leave a
        # notebook's inline figures switched off.
        import matplotlib as mpl
        from matplotlib.figure import Figure

        from genlib import plot

        spec = self.spec
        n = 12 if self._decode(torch.tensor([spec["start"]])).shape[-1] <= 16 else 7
        i, j = spec["dims"]
        (x0, x1), (y0, y1) = spec["ranges"][i], spec["ranges"][j]
        z = torch.tensor(spec["start"]).repeat(n * n, 1)
        if len(spec["ranges"]) > 2:
            z.zero_()
        rows, cols = torch.linspace(y1, y0, n), torch.linspace(x0, x1, n)
        z[:, j], z[:, i] = rows.repeat_interleave(n), cols.repeat(n)
        points = torch.tensor(spec["points"])[:, [i, j]]
        with mpl.rc_context(plot.STYLE):
            fig = Figure(figsize=(7.2, 3.6))
            left, right = fig.subplots(1, 2)
            plot.latent_map(points, spec["labels"], spec["classes"], ax=left)
            left.set(xlim=(x0, x1), ylim=(y0, y1))
            left.set(xlabel=f"$z_{{{i + 1}}}$", ylabel=f"$z_{{{j + 1}}}$")
            grid = plot.image_grid(self._decode(z), n, gap=1, background=0.35)
            right.imshow(grid, extent=(x0, x1, y0, y1), vmin=0, vmax=1)
            right.set(xlabel=f"$z_{{{i + 1}}}$")
            right.grid(False)
            png = small_png(fig)
        names = ", ".join(spec["classes"])
        return png, (
            f"Two panels over the same latent plane. Left: {len(points)} data points, "
            f"coloured by class ({names}). Right: the images that a grid of "
            f"{n} by {n} points decodes to."
        )


def _device(decoder, otherwise):
    """Where the decoder is now: a module may have moved since the last request."""
    if isinstance(decoder, nn.Module):
        for parameter in decoder.parameters():
            return parameter.device
    return otherwise


def _size(shape):
    return torch.Size(shape).numel()


def _check(points, labels, classes, dims):
    if points.ndim != 2 or points.shape[1] < 2 or len(points) == 0:
        raise ValueError(
            f"points have shape {tuple(points.shape)}; expected (N, Z), Z at least 2"
        )
    if not points.isfinite().all():
        bad = int((~points.isfinite()).any(dim=1).sum())
        raise ValueError(f"{bad} of {len(points)} points are not finite")
    if labels.shape != (len(points),):
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}; expected ({len(points)},), one "
            "for each point"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(classes):
        raise ValueError(
            f"labels lie in {low}..{high}, but there are {len(classes)} classes"
        )
    z = points.shape[1]
    if len(set(dims)) != 2 or not all(0 <= d < z for d in dims):
        raise ValueError(f"dims={tuple(dims)}; expected two of 0..{z - 1}")


def _spec(points, labels, classes, image, dims, title):
    """Return all that the module draws, as plain JSON."""
    from genlib.plot import PALETTE  # brings matplotlib

    low, high = points.amin(dim=0), points.amax(dim=0)
    half = 1.05 * float((high - low).max()) / 2 or 1.0  # one scale: distances are true
    centre = (low + high) / 2
    typical = {k: _typical(points[labels == k]) for k in labels.unique().tolist()}
    first, *others = typical.values()
    far = max(others or [first], key=lambda z: float((z - first).norm()))
    start = list(typical.values())[len(typical) // 2]
    return {
        "title": title,
        "classes": classes,
        "colours": [PALETTE[k % len(PALETTE)] for k in range(len(classes))],
        "points": _rounded(points),
        "labels": labels.tolist(),
        "ranges": _rounded(torch.stack([centre - half, centre + half], dim=1), 2),
        "image": image,
        "dims": dims,
        "start": _rounded(start),
        "a": _rounded(first),
        "b": _rounded(far),
    }


def _typical(points):
    """Return the point whose distance from the class's median is the usual one."""
    distance = (points - points.median(dim=0).values).norm(dim=1)
    return points[(distance - distance.median()).abs().argmin()]


def _rounded(x, decimals=3):
    if x.ndim > 1:
        return [_rounded(row, decimals) for row in x]
    return [round(value, decimals) for value in x.tolist()]
