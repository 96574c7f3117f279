"""Figures are read back: the drawn arrays, points and texts, and the PNGs by Pillow."""

import io
import itertools

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from genlib import plot
from genlib.training import History


@pytest.fixture(autouse=True)
def no_windows():
    plt.switch_backend("Agg")
    with mpl.rc_context():
        yield
    plt.close("all")


def drawn(ax):
    """What an Axes shows as an image."""
    (image,) = ax.images
    return np.asarray(image.get_array())


def luminance(colour):
    """Relative luminance of WCAG 2.2, with its piecewise sRGB curve."""
    c = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


# --- colours -------------------------------------------------------------------


def lab(rgb):
    """CIE L*a*b* (D65) of linear sRGB colours (N, 3)."""
    to_xyz = [
        [0.4124, 0.3576, 0.1805],
        [0.2126, 0.7152, 0.0722],
        [0.0193, 0.1192, 0.9505],
    ]
    t = rgb @ np.array(to_xyz).T / [0.9505, 1.0, 1.089]
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


# Full protanopia and deuteranopia: Machado, Oliveira and Fernandes 2009, table 1.
SIGHT = {
    "common": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216]]
        + [[-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413]]
        + [[-0.011820, 0.042940, 0.968881]]
    ),
}


@pytest.mark.parametrize("sight", SIGHT)
def test_palette_stays_apart(sight):
    assert len(set(plot.PALETTE)) == 10
    rgb = np.array([mpl.colors.to_rgb(c) for c in plot.PALETTE])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    colours = lab((linear @ SIGHT[sight].T).clip(0, 1))
    pairs = itertools.combinations(colours, 2)
    # about 2.3 can just be told apart side by side
    assert min(np.linalg.norm(a - b) for a, b in pairs) > 12


def test_use_style_sets_what_the_book_relies_on():
    plot.use_style()
    assert mpl.rcParams["image.interpolation"] == "nearest"
    assert mpl.rcParams["image.cmap"] == "gray"
    cycle = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    assert tuple(cycle) == plot.PALETTE


# --- images --------------------------------------------------------------------


def test_to_array_takes_tensors_and_arrays_grey_and_colour():
    grey, colour = torch.rand(5, 1, 6, 4), torch.rand(5, 3, 6, 4)
    for images, expected in [
        (grey, grey[:, 0]),
        (grey[:, 0], grey[:, 0]),
        (grey.numpy(), grey[:, 0]),
        (grey.clone().requires_grad_(), grey[:, 0]),
        (grey > 0.5, (grey[:, 0] > 0.5).float()),
        (colour, colour.permute(0, 2, 3, 1)),
        (colour.permute(0, 2, 3, 1), colour.permute(0, 2, 3, 1)),
    ]:
        np.testing.assert_array_equal(plot.to_array(images), expected.numpy())


def test_to_array_scales_bytes_and_cuts_overshoot():
    values = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    np.testing.assert_allclose(plot.to_array(values), [[[0, 0.2, 1]]])
    over = torch.tensor([-0.5, 0.5, 1.5]).view(1, 1, 1, 3)
    np.testing.assert_allclose(plot.to_array(over), [[[0, 0.5, 1]]])


@pytest.mark.parametrize("shape", [(4, 4), (2, 5, 4, 4), (1, 1, 1, 4, 4), (4,)])
def test_to_array_names_a_shape_it_cannot_draw(shape):
    with pytest.raises(ValueError, match=rf"\({shape[0]},.*expected \(N, 1, H, W\)"):
        plot.to_array(torch.zeros(shape))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("n", "cols", "gap"), [(6, 3, 1), (5, 2, 2), (7, None, 0)])
def test_image_grid_puts_each_image_in_its_place(channels, n, cols, gap):
    images = torch.rand(n, channels, 3, 4)
    grid = plot.image_grid(images, cols, gap, background=0.25)
    cols = cols or 3  # 7 images: the nearest square is 3 x 3
    rows = -(-n // cols)
    size = (rows * 3 + (rows - 1) * gap, cols * 4 + (cols - 1) * gap)
    assert grid.shape == (size if channels == 1 else (*size, 3))
    seen = np.zeros(size, dtype=bool)
    for i, image in enumerate(plot.to_array(images)):
        row, col = divmod(i, cols)
        place = np.s_[row * (3 + gap) :, col * (4 + gap) :]
        np.testing.assert_array_equal(grid[place][:3, :4], image)
        seen[place][:3, :4] = True
    assert (grid[~seen] == 0.25).all()  # gaps and empty places


@pytest.mark.parametrize("draw", [plot.image_grid, plot.show_images])
def test_no_images_is_an_error(draw):
    with pytest.raises(ValueError, match="no images"):
        draw(torch.zeros(0, 1, 4, 4))


def test_show_images_draws_the_grid_sharp_and_on_the_full_scale():
    images = torch.rand(6, 1, 3, 4) / 2  # dim images must stay dim
    plot.use_style()
    ax = plot.show_images(images, cols=3, title="Six", row_labels=["first", "second"])
    large = images.repeat_interleave(10, 2).repeat_interleave(10, 3)  # 32 // 3 = 10
    np.testing.assert_allclose(drawn(ax), plot.image_grid(large, 3, gap=2))
    (image,) = ax.images
    assert image.get_clim() == (0, 1)
    assert image.get_interpolation() == "nearest" and image.get_cmap().name == "gray"
    assert ax.get_title(loc="left") == "Six"
    assert [t.get_text() for t in ax.get_yticklabels()] == ["first", "second"]
    # a label stands at the middle of its row: rows 0-29 and 32-61, a gap between
    assert ax.get_yticks().tolist() == [14.5, 46.5]
    assert len(ax.get_xticks()) == 0


def test_show_images_draws_where_it_is_told_and_takes_colour():
    images = torch.rand(2, 3, 4, 4)
    _, ax = plt.subplots()
    assert plot.show_images(images, ax=ax) is ax
    assert drawn(ax).shape == (32, 66, 3)
    assert plot.show_images(images, width=3.0).figure.get_figwidth() == 3.0


# --- curves, maps, diagrams ----------------------------------------------------


@pytest.mark.parametrize("window", [1, 3, 10, 100])
def test_smooth_is_the_mean_of_the_last_values(window):
    values = np.random.default_rng(0).normal(size=20).tolist()
    expected = [np.mean(values[max(0, i + 1 - window) : i + 1]) for i in range(20)]
    np.testing.assert_allclose(plot.smooth(values, window), expected, atol=1e-12)


def test_curves_draws_the_named_metrics():
    history = History(
        {"loss": [3.0, 2.0, 1.0], "recon": [-2.0, -1.0, 0.0], "kl": [1.0] * 3}
    )
    ax = plot.curves(history, "loss", "recon", title="Run")
    assert [line.get_ydata().tolist() for line in ax.lines] == [
        [3.0, 2.0, 1.0],
        [-2.0, -1.0, 0.0],
    ]
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts == ["loss", "recon"]
    assert ax.get_xlabel() == "training step" and ax.get_ylabel() == "nats per image"
    assert len(plot.curves(history).lines) == 3
    assert len(plot.curves({"a": [1.0, 2.0]}, ax=ax).lines) == 3  # added to the two
    assert len(history.plot("kl").lines) == 1
    with pytest.raises(KeyError, match="no metric 'los'; there are: loss, recon, kl"):
        plot.curves(history, "los")


def test_curves_with_a_window_keeps_the_raw_values_behind():
    values = [4.0, 2.0, 0.0, 2.0]
    ax = plot.curves({"loss": values}, window=2)
    mean, raw = ax.lines
    assert mean.get_ydata().tolist() == [4.0, 3.0, 1.0, 1.0]
    assert raw.get_ydata().tolist() == values
    assert raw.get_color() == mean.get_color() and raw.get_alpha() < 1
    assert len(ax.get_legend().get_texts()) == 1  # one entry for the two


def test_latent_map_colours_points_by_class_and_names_them_at_the_median():
    torch.manual_seed(0)
    z, labels = torch.randn(90, 2), torch.randint(0, 2, (90,)) * 2
    classes = ("zero", "one", "two")  # there is no "one" here
    ax = plot.latent_map(z.requires_grad_(), labels, classes, title="Map")
    assert [t.get_text() for t in ax.texts] == ["zero", "two"]
    for k, points, text in zip((0, 2), ax.collections, ax.texts, strict=True):
        mine = z.detach()[labels == k].numpy()
        np.testing.assert_allclose(points.get_offsets(), mine)
        colour = mpl.colors.to_hex(points.get_facecolor()[0])
        assert colour == plot.PALETTE[k]
        assert mpl.colors.to_hex(text.get_bbox_patch().get_facecolor()) == colour
        assert text.xy == pytest.approx(np.median(mine, axis=0))
    assert ax.get_aspect() == 1.0


def test_class_names_can_be_read_on_every_colour():
    z, labels = torch.randn(10, 2), torch.arange(10)
    ax = plot.latent_map(z, labels, [str(k) for k in range(10)])
    assert len(ax.texts) == 10
    for text in ax.texts:  # WCAG 2.2, 1.4.3 asks for 4.5
        assert contrast(text.get_color(), text.get_bbox_patch().get_facecolor()) > 4.5


def test_latent_map_names_what_does_not_fit():
    with pytest.raises(ValueError, match=r"shape \(5, 3\); a map needs \(N, 2\)"):
        plot.latent_map(torch.zeros(5, 3), torch.zeros(5), ["a"])
    with pytest.raises(ValueError, match="5 latent points but 4 labels"):
        plot.latent_map(torch.zeros(5, 2), torch.zeros(4), ["a"])


def test_diagram_draws_boxes_and_arrows_from_one_to_the_other():
    boxes = {"x": (1.0, 1.0, "image", "#332288"), "z": (5.0, 1.5, "latent", "#cc6677")}
    ax = plot.diagram(boxes, [("x", "z", "encode")])
    texts = {t.get_text(): t for t in ax.texts}
    assert {"image", "latent", "encode"} <= texts.keys()
    assert texts["image"].get_position() == (1.0, 1.0)
    edge = texts["latent"].get_bbox_patch().get_edgecolor()
    assert mpl.colors.to_hex(edge) == "#cc6677"
    (arrow,) = [t for t in ax.texts if getattr(t, "arrow_patch", None)]
    assert arrow.get_position() == (1.0, 1.0) and arrow.xy == (5.0, 1.5)
    ax.figure.canvas.draw()  # lays out without an error


# --- PNG -----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 3)])
def test_png_bytes_holds_each_pixel_as_a_square(shape):
    from PIL import Image

    array = np.random.default_rng(0).random(shape)
    array[0, 0], array[0, 1] = -0.5, 1.5  # cut, not wrapped round
    png = plot.png_bytes(array, scale=5)
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG" and image.size == (20, 15)
        pixels = np.asarray(image.convert("RGB")).astype(float)
    expected = 255 * (array if array.ndim == 3 else array[..., None]).clip(0, 1)
    blocks = pixels.reshape(3, 5, 4, 5, 3)
    assert np.abs(blocks - expected[:, None, :, None]).max() <= 1
    assert png == plot.png_bytes(array, scale=5)  # the same bytes each time


def test_png_bytes_keeps_dim_pictures_dim():
    from PIL import Image

    with Image.open(io.BytesIO(plot.png_bytes(np.full((2, 2), 0.2)))) as image:
        assert image.size == (2, 2)
        assert np.asarray(image.convert("L")).tolist() == [[51, 51], [51, 51]]
