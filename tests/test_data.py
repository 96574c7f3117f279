"""genlib.data against references of others, and every bad input it can meet."""

import errno
import functools
import gzip
import hashlib
import http.server
import math
import shutil
import threading
from itertools import islice

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity as SklearnKernelDensity

from genlib import data
from genlib.data import (
    TEXTS,
    DataError,
    Dequantized,
    Gaussian,
    Images,
    IndependentPixels,
    KernelDensity,
    MixtureOfGaussians,
    available,
    batches,
    bits_per_dimension,
    book_text,
    dequantize,
    digits,
    gaussian_log_prob,
    glyphs,
    kmeans,
    load,
    mixture_program,
    plane_draw,
    plane_log_prob,
    plane_root,
    quantize,
    render_glyphs,
    text_file,
    to_levels,
    toy2d,
    toy2d_log_prob,
)
from genlib.live import Run


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def close(a, b, tol=1e-6):
    return torch.testing.assert_close(
        torch.as_tensor(a).double(), torch.as_tensor(b).double(), atol=tol, rtol=tol
    )


# --- Images and batches ---------------------------------------------------------------


def few(n=10):
    images = torch.arange(n * 4).reshape(n, 1, 2, 2).to(torch.uint8)
    factors = {"tenfold": torch.arange(n) * 10}
    return Images("few", images, torch.arange(n), tuple("abcdefghij")[:n], 255, factors)


def test_images_can_be_chosen_by_anything_that_indexes():
    data = few()
    assert len(data) == 10 and data.shape == (1, 2, 2)
    three = torch.tensor(3)
    for index in (3, three, slice(3, 4), three[None], data.labels == 3, [3]):
        one = data[index]
        assert one.labels.tolist() == [3] and one.factors["tenfold"].tolist() == [30]
        assert one.images.flatten().tolist() == [12, 13, 14, 15]


def test_x_is_scaled_by_the_largest_possible_value():
    data = few()
    assert data.x().dtype == torch.float32
    close(data.x([9])[0, 0, 1, 1], 39 / 255)
    assert digits().x().max() == 1 and digits().images.max() == 16


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": torch.zeros(10, 1, 2, 2)}, "torch.float32 of shape"),
        ({"images": torch.zeros(10, 4, dtype=torch.uint8)}, r"shape \(10, 4\)"),
        ({"max_value": 16}, "up to 39, above max_value=16"),
        ({"labels": torch.arange(9)}, r"labels has shape \(9,\)"),
        ({"factors": {"size": torch.zeros(3)}}, r"size has shape \(3,\)"),
    ],
)
def test_images_that_do_not_fit_together(change, message):
    parts = {name: getattr(few(), name) for name in Images.__dataclass_fields__}
    with pytest.raises(ValueError, match=message):
        Images(**(parts | change))


def test_batch_k_is_a_function_of_seed_and_k():
    data = digits()
    first = list(islice(batches(data, 64, seed=3), 60))
    later = next(islice(batches(data, 64, seed=3), 59, None))
    assert torch.equal(first[59][0], later[0]) and torch.equal(first[59][1], later[1])
    torch.manual_seed(99)  # the global state plays no part
    assert torch.equal(next(batches(data, 64, seed=3))[0], first[0][0])
    assert not torch.equal(next(batches(data, 64, seed=4))[0], first[0][0])


def test_an_epoch_shows_every_example_once_and_drops_the_rest():
    x = torch.arange(10.0)
    two_epochs = torch.stack(list(islice(batches(x, 3), 6))).reshape(2, 9)
    assert all(len(set(epoch.tolist())) == 9 for epoch in two_epochs)
    assert not torch.equal(two_epochs[0], two_epochs[1])
    assert {len(b) for b in islice(batches(x, 5), 4)} == {5}


def test_batches_keep_images_and_labels_together():
    data = few()
    x, y = next(batches(data, 10))
    close(x[:, 0, 0, 0] * 255, 4.0 * y)


@pytest.mark.parametrize(
    "bad, size, message",
    [
        (few(), 11, "batch_size is 11; 10 examples"),
        (few(), 0, "batch_size is 0"),
        (few().images, 2, "torch.uint8; pass Images"),
        (np.zeros((4, 2)), 2, "ndarray; pass Images or a tensor"),
    ],
)
def test_bad_batches_fail_at_the_call(bad, size, message):
    with pytest.raises(ValueError, match=message):
        batches(bad, size)


# --- digits and names -----------------------------------------------------------------


def test_digits_are_those_of_scikit_learn_split_once_with_equal_shares():
    from sklearn.datasets import load_digits

    train, test = digits("train"), digits("test")
    assert (len(train), len(test)) == (1500, 297)
    both = torch.cat((train.images, test.images)).flatten(1)
    assert sorted(map(tuple, both.tolist())) == sorted(
        map(tuple, load_digits().data.astype(int).tolist())
    )
    share = np.bincount(load_digits().target) * 297 / 1797
    counts = torch.bincount(test.labels).numpy()
    assert np.abs(counts - share).max() < 1
    assert torch.equal(digits("test").images, test.images)
    # Whether images and labels still belong together: neighbours agree on the digit.
    near = torch.cdist(test.x().flatten(1), train.x().flatten(1)).argmin(1)
    assert (train.labels[near] == test.labels).float().mean() > 0.97


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: load("mnits"),
            "unknown data set 'mnits'; choose from: digits, glyphs",
        ),
        (lambda: available("cifar"), "unknown data set 'cifar'"),
        (
            lambda: digits("validation"),
            "unknown split 'validation'; choose from: train",
        ),
        (lambda: glyphs("dev"), "unknown split 'dev'"),
        (lambda: load("mnist", "dev"), "unknown split 'dev'"),
        (lambda: toy2d("rings", 5), "unknown 2-D density 'rings'; choose from: ring"),
        (lambda: toy2d("ring", 0), "n is 0"),
        (lambda: toy2d_log_prob("ring", torch.zeros(5)), r"shape \(5,\)"),
        (lambda: toy2d_log_prob("disc", torch.zeros(5, 2)), "'disc'; choose from"),
    ],
)
def test_unknown_names_list_the_choices(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_embedded_sets_need_no_download():
    assert available("digits") and available("glyphs")
    assert len(load("glyphs", "test")) == 1152


# --- glyphs ---------------------------------------------------------------------------


def test_glyphs_come_from_their_seed_and_splits_differ():
    a, b = glyphs("test"), glyphs("test")
    assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
    assert not torch.equal(a.images, glyphs("test", seed=1).images)
    same_size = glyphs("train", n=50), glyphs("test", n=50)
    assert not torch.equal(same_size[0].images, same_size[1].images)
    train = glyphs()
    assert train.shape == (1, 32, 32) and len(train) == 6912
    seen = {image.numpy().tobytes() for image in train.images}
    assert not any(image.numpy().tobytes() in seen for image in a.images)


def test_every_combination_comes_equally_often():
    train = glyphs()
    names = ("character", "font", "weight", "slant")
    combinations = torch.stack([train.factors[name] for name in names], 1)
    _, counts = combinations.unique(dim=0, return_counts=True)
    assert len(counts) == 36 * 16 and counts.unique().tolist() == [12]


@pytest.mark.parametrize("character", [data.UPPER + data.DIGITS, data.LOWER])
def test_no_glyph_is_cut_by_the_border(character):
    images = glyphs(character=character, n=3000).images
    assert images[..., [0, -1], :].max() == 0 and images[..., [0, -1]].max() == 0
    assert images.flatten(1).amax(1).min() > 150  # and none is empty


def test_factors_are_what_was_asked_for():
    images = glyphs(
        n=40, character="AB", font="serif", weight="bold", slant=("upright", "italic"),
        size=15, angle=(-5, 5), color=True, ink="yellow", paper=["blue", "black"],
    )  # fmt: skip
    f, names = images.factors, data.GLYPH_FACTORS
    assert images.shape == (3, 32, 32) and images.classes == ("A", "B")
    assert images.labels.bincount().tolist() == [20, 20]
    assert torch.equal(f["character"], images.labels)  # A and B stand first there too
    assert {names["font"][i] for i in f["font"]} == {"serif"}
    assert {names["weight"][i] for i in f["weight"]} == {"bold"}
    assert {names["slant"][i] for i in f["slant"]} == {"upright", "italic"}
    assert f["size"].unique().tolist() == [15] and f["angle"].abs().max() <= 5
    papers = {data.PAPERS[names["paper"][i]] for i in f["paper"]}
    assert papers == {data.PAPERS["blue"], data.PAPERS["black"]}
    corner = [tuple(image[:, 0, 0].tolist()) for image in images.images]
    assert set(corner) == papers
    brightest = images.images.flatten(2).amax(2)
    assert (brightest - torch.tensor(data.INKS["yellow"])).abs().max() < 40


def test_labels_index_the_wanted_characters():
    images = glyphs(character="9zA", n=30)
    assert images.classes == ("9", "z", "A")
    names = data.GLYPH_FACTORS["character"]
    for label, factor in zip(images.labels, images.factors["character"], strict=True):
        assert images.classes[label] == names[factor]


def test_size_and_angle_are_in_pixels_and_degrees():
    def drawn(character, **factors):
        one = glyphs(character=character, n=1, font="sans", weight="bold",
                     slant="upright", **factors)  # fmt: skip
        return one.images[0, 0].float() / 255

    tall = drawn("I", size=20, angle=0)
    assert abs(tall.max(1).values.sum() - 20) < 0.2  # a capital's height in pixels
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    bar = drawn("I", size=20, angle=10)
    bar = bar / bar.sum()
    dx, dy = x - (bar * x).sum(), (bar * y).sum() - y  # y upwards
    tilt = 0.5 * torch.atan2(2 * (bar * dx * dy).sum(), (bar * (dx**2 - dy**2)).sum())
    assert abs(math.degrees(tilt) - 100) < 0.5 or abs(math.degrees(tilt) + 80) < 0.5
    assert abs((bar * x).sum() - 15.5) < 0.3 and abs((bar * y).sum() - 15.5) < 0.3


def test_render_draws_a_set_again_from_its_factors():
    images = glyphs("test", color=True)[:50]
    assert torch.equal(render_glyphs(images.factors), images.images)
    one = {name: values[:1] for name, values in images.factors.items()}
    assert torch.equal(render_glyphs(one), images.images[:1])


@pytest.mark.parametrize(
    "factors, message",
    [
        ({"font": "comic"}, "unknown font 'comic'; choose from: sans, serif, mono"),
        ({"character": "A?"}, r"unknown character '\?'"),
        ({"weight": ("bold", "thin")}, "unknown weight 'thin'; .* regular, bold"),
        ({"colour": "red"}, "unknown factor 'colour'; choose from: character, font"),
        ({"ink": "white"}, "pass color=True"),
        ({"ink": "mauve", "color": True}, "unknown ink 'mauve'; choose from: white"),
        ({"character": ""}, "name each wanted value once"),
        ({"character": "AA"}, "name each wanted value once"),
        ({"size": 2}, "size is 2; give a number"),
        ({"size": (20, 10)}, r"size is \(20, 10\)"),
        ({"angle": math.nan}, "angle is nan"),
        ({"angle": "steep"}, "angle is 'steep'; give a number"),
        ({"size": ()}, r"size is \(\); give a number"),
        ({"character": 3}, "unknown character 3; choose from: A"),
        ({"n": 0}, "n is 0"),
    ],
)
def test_bad_glyphs(factors, message):
    with pytest.raises(ValueError, match=message):
        glyphs(**factors)


# --- densities in the plane -----------------------------------------------------------


@pytest.mark.parametrize("name", data.TOYS)
def test_toy_densities_are_those_of_their_samples(name):
    axis = (torch.arange(900).double() + 0.5) / 100 - 4.5
    x = torch.cartesian_prod(axis, axis)
    mass = toy2d_log_prob(name, x).exp() * 0.01**2
    assert abs(mass.sum() - 1) < 0.003
    points = toy2d(name, 40_000, seeded())
    assert points.shape == (40_000, 2) and points.dtype == torch.float32
    assert toy2d_log_prob(name, points).isfinite().all()
    # Every cell of a 12 x 12 grid holds the share of points that its mass tells.
    cells = [((v + 4.5) / 0.75).long() for v in (x, points.double())]
    cells = [c[:, 0] * 12 + c[:, 1] for c in cells]
    expected = torch.zeros(144).double().index_add(0, cells[0], mass)
    share = torch.bincount(cells[1], minlength=144) / len(points)
    error = (expected * (1 - expected) / len(points)).clamp(min=1e-9).sqrt()
    assert ((share - expected).abs() < 5 * error + 1e-4).all()


def test_toys_come_from_their_generator():
    assert torch.equal(toy2d("moons", 9, seeded(1)), toy2d("moons", 9, seeded(1)))
    assert not torch.equal(toy2d("moons", 9, seeded(1)), toy2d("moons", 9, seeded(2)))


# --- grey levels ----------------------------------------------------------------------


def test_grey_levels_survive_dequantization():
    x = digits("test").x()
    y = dequantize(x, 17, seeded())
    assert 0 <= y.min() and y.max() < 1
    close(quantize(y, 17), x)
    k = to_levels(x, 17)
    assert torch.equal(k, digits("test").images.long())
    u = y * 17 - k
    assert abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.002


@pytest.mark.parametrize(
    "x, levels, message",
    [
        (digits().images.float(), 17, r"values 0..16; images are 0..1 here"),
        (torch.tensor([[-0.5]]), 17, "values -0.5..-0.5"),
        (torch.tensor([[0.5, math.nan]]), 17, "nan|NaN"),
        (digits().x(), 256, "between 256 even grey levels"),
        (torch.tensor([[0.123]]), 17, "between 17 even grey levels"),
    ],
)
def test_values_that_are_no_grey_levels(x, levels, message):
    with pytest.raises(ValueError, match=message):
        to_levels(x, levels)
    with pytest.raises(ValueError, match=message):
        IndependentPixels(levels).fit(x)
    with pytest.raises(ValueError, match=message):
        Dequantized(Gaussian(), levels).fit(x)


def test_dequantized_log_prob_bounds_the_exact_one_from_below():
    """For a diagonal Gaussian the mass of a grey level is a difference of two CDFs."""
    x = digits().x()
    model = Dequantized(Gaussian(shrinkage=1.0), 17, draws=20).fit(x)
    mean, std = model.density.mean, model.density.cov.diagonal().sqrt()
    k = to_levels(x, 17).flatten(1)
    low, high = (k / 17 - mean) / std, ((k + 1) / 17 - mean) / std
    upper = low > 0  # far up, 1 - tiny would be 1: take the mirror image
    low, high = low.where(~upper, -high), high.where(~upper, -low)
    below, above = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    exact = (above + (-(below - above).exp()).log1p()).sum(1)
    gap = (exact - model.log_prob(x)).mean()
    assert 0 < gap < 3  # Jensen's gap; averaged over images, noise is far below it
    assert model.sample(5, seeded()).shape == (5, 1, 8, 8)
    to_levels(model.sample(5, seeded()), 17)


def test_a_uniform_density_on_grey_levels_is_exact():
    class Uniform:
        def log_prob(self, y):
            return torch.zeros(len(y)).double()

    x = digits("test").x()
    log_prob = Dequantized(Uniform(), 17).log_prob(x)
    close(log_prob, torch.full((297,), -64 * math.log(17)).double())
    close(bits_per_dimension(log_prob, x), torch.full((297,), math.log2(17)))


# --- baselines against references -----------------------------------------------------


def test_independent_pixels_are_smoothed_frequencies():
    x = torch.tensor([[0.0, 1.0], [0.0, 0.5], [1.0, 0.5]])
    model = IndependentPixels(3, smoothing=1.0).fit(x)
    table = torch.tensor([[3 / 6, 1 / 6, 2 / 6], [1 / 6, 3 / 6, 2 / 6]])
    close(model.log_p.exp(), table)
    close(model.log_prob(torch.tensor([[0.0, 1.0]])), [math.log(3 / 6 * 2 / 6)])
    reference = torch.distributions.Independent(
        torch.distributions.Categorical(probs=table), 1
    )
    close(model.log_prob(x), reference.log_prob((x * 2).long()))
    every = torch.cartesian_prod(torch.arange(3), torch.arange(3)) / 2
    close(model.log_prob(every).exp().sum(), 1.0)
    share = (model.sample(20_000, seeded()) == 0).double().mean(0)
    close(share, table[:, 0], tol=0.015)


def test_gaussian_is_that_of_torch_distributions():
    x = dequantize(digits().x(), 17, seeded()).flatten(1)[:, 10:40]
    model = Gaussian(shrinkage=0.1).fit(x)
    reference = torch.distributions.MultivariateNormal(model.mean, model.cov)
    close(model.log_prob(x), reference.log_prob(x))
    centred = x - x.mean(0)
    sample_cov = centred.T @ centred / len(x)
    close(model.cov.diagonal(), sample_cov.diagonal())
    off = ~torch.eye(30, dtype=torch.bool)
    close(model.cov[off], 0.9 * sample_cov[off])
    drawn = model.sample(50_000, seeded()).double()
    close(drawn.mean(0), model.mean, tol=0.02)
    close(drawn.T.cov(), model.cov, tol=0.02)


def test_gaussian_log_prob_for_several_components():
    mean = torch.randn(3, 4, generator=seeded()).double()
    root = torch.randn(3, 4, 4, generator=seeded(1)).double()
    cov = root @ root.mT + torch.eye(4)
    x = torch.randn(7, 4, generator=seeded(2)).double()
    reference = torch.distributions.MultivariateNormal(mean, cov)
    close(gaussian_log_prob(x, mean, cov), reference.log_prob(x[:, None]))


def standardized():
    x = torch.cat([toy2d("pinwheel", 600, seeded()), toy2d("ring", 600, seeded(1))], 1)
    return ((x - x.mean(0)) / x.std(0, correction=0)).double()


def test_mixture_is_that_of_scikit_learn_step_by_step():
    """On standardized data our floor is scikit-learn's reg_covar: same start and EM."""
    x = standardized()
    model = MixtureOfGaussians(4, floor=0.05, steps=12).fit(x)
    start = torch.nn.functional.one_hot(kmeans(x, 4, seeded(0)), 4).double()
    reference = GaussianMixture(4, reg_covar=0.05, max_iter=11, tol=0)
    reference._initialize(x.numpy(), start.numpy())
    reference._initialize_parameters = lambda *_, **__: None
    with pytest.warns(match="did not converge"):
        reference.fit(x.numpy())
    close(model.weight, torch.from_numpy(reference.weights_))
    close(model.mean, torch.from_numpy(reference.means_))
    close(model.cov, torch.from_numpy(reference.covariances_))
    close(model.log_prob(x), torch.from_numpy(reference.score_samples(x.numpy())))
    close(model.joint(x).softmax(1), reference.predict_proba(x.numpy()))


def test_em_never_goes_down_without_a_floor():
    model = MixtureOfGaussians(5, floor=0.0, steps=25).fit(standardized())
    gains = np.diff(model.history)
    assert gains.min() > -1e-9 and gains[0] > 1e-3


def test_mixture_finds_the_ring():
    model = MixtureOfGaussians(8, floor=0.0, steps=30, seed=1).fit(
        toy2d("ring", 2000, seeded())
    )
    fresh = toy2d("ring", 2000, seeded(1))
    assert (toy2d_log_prob("ring", fresh) - model.log_prob(fresh)).mean().abs() < 0.05
    drawn = model.sample(2000, seeded(2))
    assert (toy2d_log_prob("ring", drawn) > -6).float().mean() > 0.98


def test_kmeans_labels_every_point_by_its_nearest_centre():
    x = toy2d("grid", 2000, seeded()).double()
    labels = kmeans(x, 25, seeded(), steps=20)
    centres = torch.stack([x[labels == k].mean(0) for k in range(25)])
    assert (torch.cdist(x, centres).argmin(1) == labels).float().mean() > 0.99
    same = torch.ones(10, 2).double()  # fewer different points than clusters
    assert kmeans(same, 3, seeded()).shape == (10,)


def test_mixture_survives_more_components_than_clusters():
    x = torch.ones(20, 3) * torch.tensor([1.0, 2.0, 3.0])
    x[10:] += torch.randn(10, 3, generator=seeded())
    model = MixtureOfGaussians(6).fit(x)
    assert model.log_prob(x).isfinite().all()


def plane_gaussians(K=4):
    mean = torch.randn(K, 2, generator=seeded()).double()
    root = torch.randn(K, 2, 2, generator=seeded(1)).double()
    return mean, root @ root.mT + 0.01 * torch.eye(2)


def test_gaussians_in_the_plane_are_those_of_torch():
    mean, cov = plane_gaussians()
    a, b, c = plane_root(cov)
    root = torch.linalg.cholesky(cov)
    close(torch.stack((a, b, c)), root[:, [0, 1, 1], [0, 0, 1]].T)
    x = 3 * torch.randn(9, 2, generator=seeded(2)).double()
    reference = torch.distributions.MultivariateNormal(mean, cov)
    close(plane_log_prob(x, mean, cov), reference.log_prob(x[:, None]))
    close(plane_log_prob(x, mean, cov), gaussian_log_prob(x, mean, cov))
    close(
        plane_draw(mean, cov, x[:, None]), mean + (root @ x[:, None, :, None])[..., 0]
    )


@pytest.fixture(scope="module")
def em_program():
    return mixture_program()


def mixture_of(program, run):
    """The run's state as a mixture of the chapter's class, float64."""
    model, state = MixtureOfGaussians(15), program.parameters(run.state)
    model.mean, model.weight, model.cov = (
        state[name].double() for name in ("means.weight", "rest.weight", "rest.cov")
    )
    model.shape = (2,)
    return model


def test_the_program_is_em_of_scikit_learn(em_program):
    """On standardized data, from the same start, for forty steps."""
    x = toy2d("moons", 1000, seeded()).double()
    x = (x - x.mean(0)) / x.std(0, correction=0)
    run = Run(em_program, 3)
    run.replace("target", x)
    start = mixture_of(em_program, run)
    reference = GaussianMixture(
        15,
        tol=0,
        reg_covar=0.02,
        max_iter=40,
        weights_init=start.weight / start.weight.sum(),
        means_init=start.mean,
        precisions_init=start.cov.inverse(),
    )
    with pytest.warns(match="did not converge"):
        reference.fit(x.numpy())
    metrics, _ = run.step(40, floor=0.02)
    model = mixture_of(em_program, run)
    close(model.weight, torch.from_numpy(reference.weights_), tol=1e-3)
    close(model.mean, torch.from_numpy(reference.means_), tol=5e-3)
    close(model.cov, torch.from_numpy(reference.covariances_), tol=5e-3)
    score = reference.score(x.numpy())
    assert run.step(1, floor=0.02)[0].item() == pytest.approx(score, abs=1e-4)
    assert metrics[0].item() == pytest.approx(start.log_prob(x).mean().item(), abs=1e-4)
    assert metrics[-1] > metrics[0] + 0.5


@pytest.mark.parametrize("target", ["pinwheel", "ring"])
@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.5])
def test_each_step_of_the_program_is_the_chapters(em_program, target, temperature):
    run = Run(em_program, 1)
    run.choose("target", target)
    x = run.draw(0, view=True)["x"].double()
    close(x, toy2d(target, 1000, seeded()).double(), tol=1e-3)
    for _ in range(60):
        model = mixture_of(em_program, run)
        model.floor = 0.005
        joint = model.joint(x)
        power = joint / temperature
        model.m_step(x, (power - power.logsumexp(1, keepdim=True)).exp())
        metrics, _ = run.step(1, floor=0.005, temperature=temperature)
        now = mixture_of(em_program, run)
        assert metrics.item() == pytest.approx(
            joint.logsumexp(1).mean().item(), abs=1e-4
        )
        close(now.weight, model.weight, tol=1e-4)
        close(now.mean, model.mean, tol=1e-3)
        close(now.cov, model.cov, tol=1e-3)


def test_the_program_shows_the_mixture(em_program):
    from scipy.stats import norm

    run = Run(em_program, 2)
    run.step(30)
    model, view = mixture_of(em_program, run), run.view()
    x, noise = (run.draw(0, view=True)[name] for name in ("x", "noise"))
    assert torch.equal(view["data"], x)
    close(view["means"], model.mean)
    # An ellipse of two standard deviations: Mahalanobis distance 2 in all directions
    way = view["ellipses"].double() - model.mean[:, None]  # (15, 41, 2)
    distance = (way @ model.cov.inverse() * way).sum(2).sqrt()
    close(distance, torch.full((15, 41), 2.0).double(), tol=1e-3)
    close(way[:, 0], way[:, -1], tol=1e-5)  # closed
    # A sample: one component by its weight, then a draw of that one
    edges = model.weight.cumsum(0).numpy()[:-1]
    k = np.searchsorted(edges, norm.cdf(noise[:, 0].double()))
    close(np.bincount(k, minlength=15) / 1000, model.weight, tol=0.05)
    root = torch.linalg.cholesky(model.cov)[k]
    expected = model.mean[k] + (root @ noise[:, 1:, None].double())[:, :, 0]
    close(view["samples"], expected.float(), tol=1e-4)


def test_the_program_survives_every_drawing(em_program):
    run = Run(em_program, 0)
    line = torch.linspace(-4, 4, 30)
    drawings = [
        torch.tensor([[3.9, -3.9]]),
        torch.tensor([[-2.0, 1.0], [-2.0, 1.0], [2.0, 1.0]]),
        torch.stack((line, 0.0 * line), 1),
        torch.stack((line, line), 1),
    ]
    for rows in drawings:
        for settings in ({"floor": 1e-4}, {"floor": 1e-4, "temperature": 0.1}):
            run.replace("target", rows)
            metrics, _ = run.step(30, **settings)
            assert metrics.isfinite().all()
            assert all(value.isfinite().all() for value in run.view().values())
    run.choose("target", "ring")
    assert run.step(30)[0].isfinite().all()
    run.reset(0)
    assert run.step(60)[0][-1] > -1, "nothing of it is left"


def test_kernel_density_is_that_of_scikit_learn():
    x, test = standardized()[:400], standardized()[400:]
    model = KernelDensity().fit(x)
    reference = SklearnKernelDensity(bandwidth=model.bandwidth).fit(x.numpy())
    close(model.log_prob(test), torch.from_numpy(reference.score_samples(test.numpy())))
    left_out = []
    for i in range(len(x)):
        rest = torch.cat((x[:i], x[i + 1 :])).numpy()
        others = SklearnKernelDensity(bandwidth=model.bandwidth).fit(rest)
        left_out.append(others.score_samples(x[i : i + 1].numpy())[0])
    expected = np.mean(left_out) + math.log(399 / 400)  # each point counts 1/400 here
    close(model.scores[model.bandwidth], expected)


def test_kernel_density_of_images_is_a_mixture_of_torch_distributions():
    x, test = digits().x()[:300], digits("test").x()
    model = KernelDensity().fit(x)
    torch_d = torch.distributions
    bumps = torch_d.Normal(x.flatten(1).double(), model.bandwidth)
    reference = torch_d.MixtureSameFamily(
        torch_d.Categorical(torch.ones(300)), torch_d.Independent(bumps, 1)
    )
    close(model.log_prob(test), reference.log_prob(test.flatten(1).double()))


def test_kernel_density_takes_the_best_bandwidth():
    """For data from N(0, I) the best width is known: Silverman's (1986, eq. 4.14)."""
    x = torch.randn(1000, 3, generator=seeded())
    best = (4 / (3 + 2)) ** (1 / 7) * 1000 ** (-1 / 7)
    model = KernelDensity([best / 4, best / 2, best, 2 * best, 4 * best]).fit(x)
    assert model.bandwidth == best
    fresh = torch.randn(2000, 3, generator=seeded(1))
    picked = model.log_prob(fresh).mean()
    for width in (best / 4, 4 * best):
        assert KernelDensity([width]).fit(x).log_prob(fresh).mean() < picked
    drawn = model.sample(20_000, seeded(2))
    close(drawn.var(0), x.var(0) + model.bandwidth**2, tol=0.1)


@pytest.mark.parametrize(
    "model", [IndependentPixels(17), Gaussian(), MixtureOfGaussians(3), KernelDensity()]
)
def test_what_every_baseline_refuses(model):
    name = type(model).__name__
    x = digits().x()[:100]
    if name != "IndependentPixels":
        x = dequantize(x, 17, seeded())
    with pytest.raises(RuntimeError, match=f"this {name} knows no data; call fit"):
        type(model)(*([17] if name == "IndependentPixels" else [3])).log_prob(x)
    assert model.fit(x) is model
    assert model.log_prob(x).shape == (100,)
    assert model.sample(7, seeded()).shape == (7, 1, 8, 8)
    assert torch.equal(model.sample(7, seeded()), model.sample(7, seeded()))
    with pytest.raises(ValueError, match=rf"shape \(100, 1, 4, 8\); {name} was fitted"):
        model.log_prob(x[:, :, :4])
    broken = x.clone()
    broken[3, 0, 0, 0] = torch.nan
    for use in (model.fit, model.log_prob):
        with pytest.raises(ValueError, match="NaN or infinite"):
            use(broken)


@pytest.mark.parametrize("model", [Gaussian(), MixtureOfGaussians(2)])
def test_pixels_that_never_vary_have_no_density(model):
    with pytest.raises(ValueError, match="singular: .* Dequantize images first"):
        model.fit(digits().x()).log_prob(digits().x())


def test_too_many_components():
    with pytest.raises(ValueError, match="30 clusters or components for 20 examples"):
        MixtureOfGaussians(30).fit(torch.zeros(20, 2))


# --- downloads: a small data set behind servers on this machine -----------------------


def idx(array):
    """An array of bytes as a gzipped IDX file."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(
        size.to_bytes(4, "big") for size in array.shape
    )
    return gzip.compress(head + array.tobytes(), mtime=0)


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()

    def log_message(self, *args):
        pass

    def copyfile(self, source, target):
        body = source.read()
        target.write(body[: len(body) // 2] if self.server.truncate else body)


@pytest.fixture
def serve():
    """serve(folder) -> (url, server): a web server on this machine, closed at last."""
    servers = []

    def start(folder, truncate=False):
        handler = functools.partial(Handler, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.asked, server.truncate = [], truncate
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/", server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def origin(tmp_path, monkeypatch):
    """A folder with four right files of a tiny MNIST; GENLIB_DATA is another, empty."""
    folder = tmp_path / "origin"
    folder.mkdir()
    random = np.random.RandomState(0)
    for split, n in (("train", 6), ("test", 3)):
        arrays = (random.randint(0, 256, (n, 4, 5)), np.arange(n))
        hashes = []
        for file, array in zip(data.FILES[split], arrays, strict=True):
            content = idx(array.astype("uint8"))
            (folder / file).write_bytes(content)
            hashes.append(hashlib.sha256(content).hexdigest())
        monkeypatch.setitem(data.SHA256, ("mnist", split), tuple(hashes))
    monkeypatch.setenv("GENLIB_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return folder


def stored(tmp_path):
    return sorted(p.name for p in (tmp_path / "cache").rglob("*") if p.is_file())


IMAGES, LABELS = data.FILES["train"]


def test_a_download_falls_through_to_a_mirror_that_works(
    origin, serve, tmp_path, monkeypatch
):
    empty, wrong = tmp_path / "empty", tmp_path / "wrong"
    for folder in (empty, wrong):
        folder.mkdir()
    for file in (IMAGES, LABELS):
        (wrong / file).write_bytes(b"something else")
    missing, cut, other, good = (
        serve(empty), serve(origin, truncate=True), serve(wrong), serve(origin),
    )  # fmt: skip
    urls = ["http://127.0.0.1:9/", *(url for url, _ in (missing, cut, other, good))]
    monkeypatch.setitem(data.URLS, "mnist", tuple(urls))
    assert not available("mnist")
    images = load("mnist")
    assert (len(images), images.shape) == (6, (1, 4, 5))
    assert images.labels.tolist() == list(range(6))
    expected = np.random.RandomState(0).randint(0, 256, (6, 4, 5)).astype("uint8")
    assert np.array_equal(images.images[:, 0].numpy(), expected)
    assert all(len(server.asked) == 2 for _, server in (missing, cut, other, good))
    assert stored(tmp_path) == sorted(data.FILES["train"])
    load("mnist")  # from the cache
    assert len(good[1].asked) == 2
    load("mnist", "test")
    assert available("mnist")


def test_no_mirror_works(origin, serve, tmp_path, monkeypatch):
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / IMAGES).write_bytes((origin / IMAGES).read_bytes() + b"x")
    urls = (
        "http://127.0.0.1:9/",
        serve(origin / "none")[0],
        serve(origin, truncate=True)[0],
        serve(wrong)[0],
    )
    monkeypatch.setitem(data.URLS, "mnist", urls)
    with pytest.raises(DataError) as caught:
        load("mnist")
    text = str(caught.value)
    assert f"cannot download {IMAGES} of 'mnist'" in text
    assert f"{urls[0]}{IMAGES}: no answer" in text
    assert f"{urls[1]}{IMAGES}: the server answered 404" in text
    assert f"{urls[3]}{IMAGES}: sent other bytes" in text
    assert urls[2] in text and "need no download" in text
    assert str(tmp_path / "cache" / "mnist") in text
    assert stored(tmp_path) == []  # nothing half-written stays


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b + b"x"])
def test_a_damaged_file_is_named_and_kept(origin, tmp_path, monkeypatch, damage):
    shutil.copytree(origin, tmp_path / "cache" / "mnist")
    path = tmp_path / "cache" / "mnist" / IMAGES
    assert available("mnist")
    path.write_bytes(damage(path.read_bytes()))
    before = {p: p.read_bytes() for p in path.parent.iterdir()}
    monkeypatch.setitem(data.URLS, "mnist", ("http://127.0.0.1:9/",))
    assert not available("mnist")
    with pytest.raises(DataError, match="damaged, or only half .* Delete it") as caught:
        load("mnist")
    assert str(path) in str(caught.value)
    assert {p: p.read_bytes() for p in path.parent.iterdir()} == before
    assert len(load("mnist", "test")) == 3  # the other files still serve


def test_the_books_own_text_is_frozen():
    text = book_text()
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest.startswith("2b38dce42f8ab57f"), (
        "models and figures of the book depend on it"
    )
    assert text.isascii() and len(text) > 74_000 and len(set(text)) == 72
    assert not set(text) & set("$\\{}<>_`"), "prose, not markup"


@pytest.mark.parametrize("name", TEXTS)
def test_text_files_are_the_right_ones(name, require_data):
    require_data(name)
    for file in TEXTS[name]:
        assert text_file(name, file).is_file()


def test_texts_that_are_not_here_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("GENLIB_DATA", str(tmp_path))
    monkeypatch.setitem(data.URLS, "gpt2_bpe", ("http://127.0.0.1:9/",))
    assert not available("gpt2_bpe")
    with pytest.raises(DataError, match="cannot download vocab.bpe of 'gpt2_bpe'"):
        text_file("gpt2_bpe", "vocab.bpe")
    with pytest.raises(ValueError, match="unknown text 'bible'"):
        text_file("bible", "x")
    with pytest.raises(ValueError, match="unknown file of gpt2_bpe 'x'"):
        text_file("gpt2_bpe", "x")
    (tmp_path / "gpt2-bpe").mkdir(exist_ok=True)
    (tmp_path / "gpt2-bpe" / "vocab.bpe").write_text("half")
    with pytest.raises(DataError, match="damaged, or only half"):
        text_file("gpt2_bpe", "vocab.bpe")
    assert not available("gpt2_bpe")


def test_files_of_a_read_only_folder_are_used_in_place(origin, tmp_path, monkeypatch):
    target = tmp_path / "cache" / "mnist"
    shutil.copytree(origin, target)
    target.chmod(0o555)
    monkeypatch.setitem(data.URLS, "mnist", ("http://127.0.0.1:9/",))
    monkeypatch.setattr(data, "_download", None)  # would fail if it were asked
    assert len(load("mnist")) == 6
    target.chmod(0o755)


@pytest.mark.parametrize(
    "number, message",
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "the folder is read-only"),
        (errno.EACCES, "may not be written"),
    ],
)
def test_a_cache_that_cannot_be_written(
    origin, serve, tmp_path, monkeypatch, number, message
):
    first, second = serve(origin), serve(origin)
    monkeypatch.setitem(data.URLS, "mnist", (first[0], second[0]))
    folder = tmp_path / "cache" / "mnist"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")

    def full(self, content):
        raise OSError(number, "no")

    import pooch.downloaders as downloaders

    class Writer:  # what pooch writes through
        def __init__(self, path, *args):
            self.file = open(path, *args)

        write = full

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.file.close()

        def close(self):
            self.file.close()

    monkeypatch.setattr(downloaders, "open", Writer, raising=False)
    with pytest.raises(DataError, match=f"cannot store .*{message}.*GENLIB_DATA"):
        load("mnist")
    assert stored(tmp_path) == ["notes.txt"]
    assert second[1].asked == []  # another mirror could not help
    monkeypatch.undo()


def test_the_cache_folder_is_a_file(origin, serve, tmp_path, monkeypatch):
    monkeypatch.setitem(data.URLS, "mnist", (serve(origin)[0],))
    (tmp_path / "cache").write_text("I am a file")
    with pytest.raises(DataError, match="a file is in the place of the folder"):
        load("mnist")


# --- the real files, where they are ---------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_published_counts(name, require_data):
    require_data(name)
    train, test = load(name), load(name, "test")
    assert (len(train), len(test)) == (60_000, 10_000)
    assert train.shape == test.shape == (1, 28, 28) and len(train.classes) == 10
    assert train.images.dtype == torch.uint8 and train.images.max() == 255
    if name == "fashion_mnist":
        assert torch.bincount(train.labels).tolist() == [6000] * 10
        assert torch.bincount(test.labels).tolist() == [1000] * 10
        return
    # The digits' counts of the training and test set, as published with the data.
    assert torch.bincount(train.labels).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert torch.bincount(test.labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    # Mean and standard deviation that the field normalizes MNIST with.
    x = train.x()
    assert abs(x.mean() - 0.1307) < 1e-4 and abs(x.std() - 0.3081) < 1e-4


@pytest.mark.parametrize("n", [1, 5])
def test_kernel_density_needs_different_points(n):
    with pytest.raises(ValueError, match=f"{n} equal points"):
        KernelDensity().fit(torch.full((n, 3), 0.5))
