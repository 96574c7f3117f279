"""The games, penalties and constraints against what this project did not write.

Closed forms, singular value decompositions, torch's own spectral normalisation and
optimisers, finite differences: each result is asked for twice, once from the library
and once from one of these. Everything random is seeded, so a test passes always or
never.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from genlib.data import CENTRES
from genlib.export import export_program
from genlib.gan import discriminator_loss, follow, generator_loss
from genlib.live import Run
from genlib.stability import (
    MODES,
    PLAYERS,
    STD,
    MinibatchStddev,
    Recipe,
    StackedLinear,
    alternating,
    clip_weights,
    count_modes,
    critic_loss,
    d_objective,
    dirac_gan,
    dirac_panels,
    dirac_program,
    dirac_wgan,
    eigenvalues,
    fool_critic_loss,
    gradient_penalty,
    grid_batches,
    grid_panels,
    grid_points,
    grid_program,
    make_players,
    make_step,
    normalize_spectrum,
    play,
    power_iteration,
    r1_penalty,
    simultaneous,
    squared_slopes,
    stack,
    velocity,
    with_penalty,
)
from genlib.training import fit
from genlib.vae import MLP
from genlib.widgets.training_lab import TrainingLab

ORIGIN = torch.zeros(2, dtype=torch.float64)


def points(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def critic(*sizes, seed=0, scale=2.0):
    """An MLP (B, in) -> (B,), far from constant, in double precision."""
    torch.manual_seed(seed)
    D = nn.Sequential(*MLP(*sizes, 1, activation=nn.Tanh), nn.Flatten(-2)).double()
    with torch.no_grad():
        for p in D.parameters():
            p.mul_(scale)
    return D


def close(a, b, **tolerance):
    torch.testing.assert_close(a, torch.as_tensor(b).to(a), **tolerance)


# --- games of two numbers -----------------------------------------------------------


class Dirac(nn.Module):
    """theta, or psi * x, as a network, for the losses of `genlib.gan`."""

    def __init__(self, value, draws):
        super().__init__()
        self.value, self.draws = nn.Parameter(torch.tensor(value)), draws

    def forward(self, x):
        return self.value.expand(len(x)) if self.draws else self.value * x


@pytest.mark.parametrize("theta, psi", [(0.7, -1.3), (2.0, 0.4), (0.0, 0.0)])
def test_dirac_gan_is_the_gan_with_one_point_and_one_weight(theta, psi):
    G, D, x = Dirac(theta, True), Dirac(psi, False), torch.zeros(5)
    loss_g, loss_d = dirac_gan(torch.tensor(theta), torch.tensor(psi))
    close(loss_d, discriminator_loss(G, D, x, x))
    close(loss_g, generator_loss(G, D, x))
    loss_g, loss_d = dirac_wgan(torch.tensor(theta), torch.tensor(psi))
    close(loss_d, critic_loss(G, D, x, x))
    close(loss_g, fool_critic_loss(G, D, x))


def test_velocity_is_each_players_own_slope():
    w = points(6, 2)
    theta, psi = w.unbind(1)
    pull = torch.stack(
        (psi * (-psi * theta).sigmoid(), -theta * (psi * theta).sigmoid())
    )
    close(velocity(dirac_gan, w), pull.T)
    close(velocity(dirac_wgan, w), torch.stack((psi, -theta), 1))
    pulled = velocity(with_penalty(dirac_wgan, 0.8, 1.0), w)
    close(pulled[:, 1], -theta - 0.8 * (psi.abs() - 1) * psi.sign())


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 3.0])
def test_eigenvalues_of_the_flow_are_those_on_paper(weight):
    """Mescheder et al. 2018: slope 1/2 of the logistic loss at 0, damped by R1."""
    for game, pull in ((dirac_gan, 0.5), (dirac_wgan, 1.0)):
        penalised = with_penalty(game, weight)
        found = eigenvalues(lambda w, g=penalised: velocity(g, w), ORIGIN)
        root = torch.tensor(weight**2 / 4 - pull**2, dtype=torch.complex128).sqrt()
        expected = torch.stack((-weight / 2 + root, -weight / 2 - root))
        for value in expected:
            assert (found - value).abs().min() < 1e-9
        assert found.real.max() <= 1e-12  # nothing grows in the flow itself


@pytest.mark.parametrize("h", [0.05, 0.3, 1.0])
def test_simultaneous_steps_spiral_out_as_predicted(h):
    factors = eigenvalues(lambda w: simultaneous(dirac_wgan, w, h), ORIGIN)
    close(factors.abs(), [math.sqrt(1 + h**2)] * 2)
    path = play(lambda w: simultaneous(dirac_wgan, w, h), points(2), 40)
    radius = path.norm(dim=1)
    close(radius[1:] / radius[:-1], torch.full((40,), math.sqrt(1 + h**2)))
    angle = torch.atan2(path[:, 1], path[:, 0])
    turned = torch.remainder(angle[:-1] - angle[1:], 2 * math.pi)
    close(turned, torch.full((40,), math.atan(h)))


@pytest.mark.parametrize("h", [0.1, 0.7, 1.9])
def test_alternating_steps_stay_bounded_as_predicted(h):
    """Trace 2 - h^2 and determinant 1: a rotation in slanted coordinates."""
    factors = eigenvalues(lambda w: alternating(dirac_wgan, w, h), ORIGIN)
    close(factors.abs(), [1.0, 1.0])
    close(factors.angle().abs(), [math.acos(1 - h**2 / 2)] * 2)
    path = play(lambda w: alternating(dirac_wgan, w, h), points(2), 300)
    theta, psi = path.unbind(1)
    kept = theta**2 + psi**2 - h * theta * psi  # what the map leaves as it is
    close(kept, kept[:1].expand(301), rtol=1e-9, atol=1e-9)


def test_alternating_beyond_two_diverges():
    factors = eigenvalues(lambda w: alternating(dirac_wgan, w, 2.1), ORIGIN)
    assert factors.abs().max() > 1.3


def test_two_time_scales_change_the_speed_not_the_fate():
    h_g, h_d = 0.02, 0.5
    rates = torch.tensor((h_g, h_d), dtype=torch.float64)
    factors = eigenvalues(lambda w: simultaneous(dirac_wgan, w, rates), ORIGIN)
    close(factors.abs(), [math.sqrt(1 + h_g * h_d)] * 2)
    turns = eigenvalues(lambda w: alternating(dirac_wgan, w, rates), ORIGIN)
    close(turns.abs(), [1.0, 1.0])


def test_r1_brings_the_dirac_gan_home_at_the_predicted_rate():
    def step(w):
        return alternating(with_penalty(dirac_gan, 1.25), w, 0.1)

    factor = eigenvalues(step, ORIGIN).abs().max()
    assert factor < 1
    path = play(step, torch.tensor([0.01, 0.0], dtype=torch.float64), 200)
    measured = (path[200].norm() / path[137].norm()) ** (1 / 63)
    close(measured, factor, rtol=1e-3, atol=0)


def test_gradient_penalty_of_wgan_does_not_rest_at_the_solution():
    w = torch.tensor([0.0, 1e-9], dtype=torch.float64)
    assert velocity(with_penalty(dirac_wgan, 2.0, 1.0), w)[1] > 1  # pushed away
    path = play(
        lambda w: alternating(with_penalty(dirac_wgan, 2.0, 1.0), w, 0.1),
        torch.tensor([1.0, 0.0], dtype=torch.float64),
        400,
    )
    assert path[-200:].norm(dim=1).max() > 0.3
    assert path.norm(dim=1).max() < 3


# --- losses and penalties -----------------------------------------------------------


def test_the_slope_of_a_linear_critic_is_its_weights_norm():
    D = nn.Sequential(nn.Linear(3, 1), nn.Flatten(-2)).double()
    norm = D[0].weight.norm()
    x, x_fake = points(7, 3), points(7, 3, seed=1)
    close(squared_slopes(D, x), (norm**2).expand(7))
    close(r1_penalty(D, x), norm**2)
    t = torch.rand(7, 1, dtype=torch.float64)
    close(gradient_penalty(D, x, x_fake, t), (norm - 1) ** 2)


def test_slopes_are_those_of_finite_differences():
    D, x, h = critic(2, 16, 16), points(5, 2), 1e-6
    moves = h * torch.eye(2, dtype=torch.float64)
    slopes = [(D(x + move) - D(x - move)) / (2 * h) for move in moves]
    close(squared_slopes(D, x), sum(s**2 for s in slopes), rtol=1e-6, atol=1e-9)


def test_slopes_of_images_and_of_stacked_games():
    D = nn.Sequential(nn.Flatten(), nn.Linear(12, 1), nn.Flatten(-2)).double()
    close(squared_slopes(D, points(4, 3, 2, 2)), D[1].weight.square().sum().expand(4))
    critics = [critic(2, 8, seed=s) for s in range(3)]
    x = points(3, 5, 2)
    alone = torch.stack(
        [squared_slopes(D, row) for D, row in zip(critics, x, strict=True)]
    )
    close(squared_slopes(stack(critics), x), alone)


@pytest.mark.parametrize("name", ["r1", "gp"])
def test_penalties_have_the_gradient_of_finite_differences(name):
    """The second derivative: how the penalty changes with a weight of D."""
    D, x, x_fake = critic(2, 6), points(9, 2), points(9, 2, seed=1)
    t = torch.rand(9, 1, dtype=torch.float64)

    def penalty():
        return r1_penalty(D, x) if name == "r1" else gradient_penalty(D, x, x_fake, t)

    weight = D[0].weight
    slope = torch.autograd.grad(penalty(), weight)[0]
    for place in ((0, 0), (3, 1)):
        values = []
        for h in (1e-5, -1e-5):
            with torch.no_grad():
                weight[place] += h
            values.append(penalty().item())
            with torch.no_grad():
                weight[place] -= h
        close(slope[place], (values[0] - values[1]) / 2e-5, rtol=1e-5, atol=1e-8)


def test_gradient_penalty_looks_between_real_and_fake():
    def D(x):
        return 0.5 * x.square().sum(-1)  # slope |x|

    x, x_fake = points(8, 2), 3 + points(8, 2, seed=1)
    t = torch.rand(8, 1, dtype=torch.float64)
    norms = (t * x + (1 - t) * x_fake).norm(dim=1)
    close(gradient_penalty(D, x, x_fake, t), ((norms - 1) ** 2).mean())
    close(
        gradient_penalty(D, x, x_fake, torch.ones_like(t)),
        ((x.norm(dim=1) - 1) ** 2).mean(),
    )


def test_a_flat_critic_has_a_finite_gradient():
    D = nn.Sequential(nn.Linear(2, 1), nn.Flatten(-2))
    nn.init.zeros_(D[0].weight)
    x = torch.randn(4, 2)
    gradient_penalty(D, x, x, torch.rand(4, 1)).backward()
    assert D[0].weight.grad.isfinite().all()


def test_the_best_linear_critic_measures_the_distance_of_two_points():
    """Wasserstein distance of point masses: the distance; slope 1 reaches it."""
    x, x_fake = torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)
    direction = x[0] / x.norm()
    loss = critic_loss(lambda z: x_fake, lambda v: v @ direction, x, x_fake)
    close(-loss, 5.0)


def test_d_moves_do_not_reach_g():
    G, D = MLP(2, 4, 2), critic(2, 4).float()
    critic_loss(G, D, torch.randn(5, 2), torch.randn(5, 2)).backward()
    assert all(p.grad is None for p in G.parameters())
    assert all(p.grad is not None for p in D.parameters())


def test_clipping():
    D = critic(2, 8, scale=5.0)
    before = [p.clone() for p in D.parameters()]
    clip_weights(D, 0.3)
    for p, old in zip(D.parameters(), before, strict=True):
        close(p.detach(), old.detach().clamp(-0.3, 0.3))


# --- spectral normalisation ---------------------------------------------------------


def test_power_iteration_finds_the_largest_singular_value():
    weight, u = points(3, 7, 5), points(3, 7, 1, seed=1)
    sigma, u = power_iteration(weight, u, 300)
    left, values, _ = torch.linalg.svd(weight)
    close(sigma[:, 0, 0], values[:, 0], rtol=1e-6, atol=0)
    close((u * left[:, :, :1]).sum((1, 2)).abs(), torch.ones(3))


def test_one_iteration_is_never_too_large_and_then_better():
    weight, u = points(6, 4), points(6, 1, seed=1)
    found = []
    for _ in range(6):
        sigma, u = power_iteration(weight, u)
        found.append(sigma.item())
    assert found == sorted(found)
    assert found[-1] <= torch.linalg.svdvals(weight)[0] + 1e-12


def test_the_gradient_is_that_of_the_singular_value():
    weight = points(5, 4).requires_grad_()
    sigma, _ = power_iteration(weight, points(5, 1), 300)
    found = torch.autograd.grad(sigma.sum(), weight)[0]
    exact = torch.autograd.grad(torch.linalg.svdvals(weight)[0], weight)[0]
    close(found, exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 9), lambda: nn.Conv2d(3, 8, 3)])
def test_spectral_norm_is_that_of_torch(make):
    torch.manual_seed(0)
    ours = make().double()
    theirs = copy.deepcopy(ours)
    x = points(2, 6) if isinstance(ours, nn.Linear) else points(2, 3, 5, 5)
    normalize_spectrum(ours)
    parametrizations.spectral_norm(theirs, n_power_iterations=1)
    ours.parametrizations.weight[0].u = theirs.parametrizations.weight[0]._u.clone()[
        :, None
    ]
    for layer in (ours, theirs):
        for _ in range(3):
            layer(x)
    # torch iterates from u to v; both end in the same vectors after enough passes.
    for layer in (ours, theirs):
        for _ in range(300):
            layer(x)
    close(ours(x), theirs(x), rtol=1e-7, atol=1e-9)
    matrix = ours.weight.detach().flatten(1)
    close(torch.linalg.svdvals(matrix)[0], 1.0)
    a, b = (
        torch.autograd.grad(n(x).square().sum(), n.parametrizations.weight.original)[0]
        for n in (ours, theirs)
    )
    close(a, b, rtol=1e-5, atol=1e-8)


def test_spectral_norm_follows_the_weights_in_training_alone():
    layer = normalize_spectrum(nn.Sequential(nn.Linear(4, 4)))[0]
    norm, x = layer.parametrizations.weight[0], torch.randn(2, 4)
    close(torch.linalg.svdvals(layer.weight.detach())[0], 1.0)  # exact at the start
    before = norm.u.clone()
    nn.init.normal_(layer.parametrizations.weight.original)
    layer.eval()(x)
    assert torch.equal(norm.u, before)
    layer.train()(x)
    assert not torch.equal(norm.u, before)


def test_a_normalised_critic_has_slope_one_at_most():
    D = normalize_spectrum(critic(2, 32, 32, scale=4.0))
    x = 3 * points(500, 2)
    for _ in range(200):
        D(x)
    slopes = squared_slopes(D, x).sqrt()
    assert slopes.max() <= 1 + 1e-9
    assert slopes.max() > 0.05


def test_one_layer_of_a_stack_is_normalised_as_alone():
    layers = [nn.Linear(5, 4).double() for _ in range(3)]
    both = StackedLinear(*layers)
    both = normalize_spectrum(nn.Sequential(both))
    for _ in range(300):
        both(points(3, 2, 5))
    values = torch.linalg.svdvals(both[0].weight.detach())[:, 0]
    close(values, torch.ones(3))


# --- averages and statistics --------------------------------------------------------


def test_average_in_closed_form():
    G = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(G.weight, 2.0)
    average, decay, seen = copy.deepcopy(G), 0.9, []
    for k in range(12):
        nn.init.constant_(G.weight, float(k * k))
        seen.append(float(k * k))
        follow(average, G, 1 - decay)
    expected = decay**12 * 2.0 + sum(
        (1 - decay) * decay ** (11 - k) * w for k, w in enumerate(seen)
    )
    close(average.weight.detach(), [[expected]])


def test_average_is_that_of_torch():
    torch.manual_seed(0)
    G = MLP(2, 5, 2)
    ours = copy.deepcopy(G)
    theirs = torch.optim.swa_utils.AveragedModel(
        G, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.7)
    )
    theirs.update_parameters(G)  # the first call copies
    for _ in range(5):
        with torch.no_grad():
            for p in G.parameters():
                p.add_(torch.randn_like(p))
        follow(ours, G, 0.3)
        theirs.update_parameters(G)
    for a, b in zip(ours.parameters(), theirs.module.parameters(), strict=True):
        close(a.detach(), b.detach())


def test_minibatch_stddev_is_torch_std():
    h = points(3, 10, 4)
    out = MinibatchStddev()(h)
    assert out.shape == (3, 10, 5)
    close(out[..., :4], h)
    spread = torch.std(h, 1, correction=0).mean(1)
    close(out[..., 4], spread[:, None].expand(3, 10))
    assert MinibatchStddev()(torch.ones(6, 4))[:, -1].max() < 1e-3  # all alike: none


# --- many games at once -------------------------------------------------------------


def test_a_stack_is_its_networks():
    torch.manual_seed(0)
    networks = [MLP(2, 8, 3, activation=nn.Tanh) for _ in range(4)]
    x = torch.randn(4, 6, 2)
    alone = torch.stack([net(row) for net, row in zip(networks, x, strict=True)])
    close(stack(networks)(x), alone)


RECIPES = {
    "plain": Recipe(),
    "momentum": Recipe(betas=(0.5, 0.99)),
    "R1": Recipe(r1=0.2),
    "WGAN": Recipe(wasserstein=True, clip=0.1, d_steps=2),
    "spectral": Recipe(spectral=True),
    "stddev": Recipe(stddev=True),
}


@pytest.mark.parametrize("name", RECIPES)
def test_games_at_once_are_the_games_alone(name):
    """Seed 7 trained beside two others ends where it ends alone."""
    recipe, ends = RECIPES[name], []
    for seeds in ((3, 7, 11), (7,)):
        G, D = make_players(recipe, seeds, hidden=(8, 8))
        step, data = make_step(G, D, recipe), grid_batches(recipe, seeds, 16)
        for _ in range(5):
            step(next(data))
        at = seeds.index(7)
        ends.append([p[at] for p in (*G.parameters(), *D.parameters())])
    for a, b in zip(*ends, strict=True):
        close(a.detach(), b.detach(), rtol=1e-4, atol=1e-5)


def test_the_step_is_that_of_torch_written_out():
    """One game, one round, by hand with nn.Linear, autograd and torch.optim."""
    recipe = Recipe(r1=0.7, betas=(0.5, 0.99), lr_d=3e-3, lr_g=1e-3)
    G, D = make_players(recipe, (5,), hidden=(8,))
    torch.manual_seed(5)
    g, d = MLP(2, 8, 2, activation=nn.Tanh), MLP(2, 8, 1, activation=nn.Tanh)
    x, z = next(grid_batches(recipe, (5,), 16))
    make_step(G, D, recipe)((x, z))

    adam_d = torch.optim.Adam(d.parameters(), 3e-3, (0.5, 0.99))
    adam_g = torch.optim.Adam(g.parameters(), 1e-3, (0.5, 0.99))
    real = x[0, 0].requires_grad_()
    logits = d(real)
    slope = torch.autograd.grad(logits.sum(), real, create_graph=True)[0]
    loss = F.binary_cross_entropy_with_logits(logits, torch.ones(16, 1))
    loss += F.binary_cross_entropy_with_logits(
        d(g(z[0, 0]).detach()), torch.zeros(16, 1)
    )
    (loss + 0.35 * slope.square().sum(1).mean()).backward()
    adam_d.step()
    loss = F.binary_cross_entropy_with_logits(d(g(z[0, 1])), torch.ones(16, 1))
    adam_g.zero_grad()
    loss.backward()
    adam_g.step()
    for mine, theirs in ((G, g), (D, d)):
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            close(a.detach().squeeze(), b.detach().squeeze(), rtol=1e-4, atol=1e-6)


def test_penalties_enter_with_their_weights():
    G, D = make_players(Recipe(), (0, 1), hidden=(8,))
    x, z = (t[:, 0] for t in next(grid_batches(Recipe(), (0, 1), 16)))
    plain = d_objective(G, D, x, z, Recipe())
    close(plain, discriminator_loss(G, D, x, z))
    close(
        d_objective(G, D, x, z, Recipe(r1=3.0)) - plain,
        1.5 * r1_penalty(D, x),
        rtol=1e-4,
        atol=1e-5,
    )
    torch.manual_seed(3)
    found = d_objective(G, D, x, z, Recipe(wasserstein=True, gp=10.0))
    torch.manual_seed(3)
    penalty = gradient_penalty(D, x, G(z).detach(), torch.rand(2, 16, 1))
    close(found - critic_loss(G, D, x, z), 10 * penalty, rtol=1e-4, atol=1e-5)


def test_d_moves_as_often_as_asked_and_stays_clipped():
    recipe = Recipe(wasserstein=True, clip=0.05, d_steps=3)
    G, D = make_players(recipe, (0, 1), hidden=(8,))
    x, z = next(grid_batches(recipe, (0, 1), 16))
    assert x.shape == (2, 3, 16, 2) and z.shape == (2, 4, 16, 2)
    make_step(G, D, recipe)((x, z))
    assert max(p.abs().max() for p in D.parameters()) <= 0.05
    assert all(p.requires_grad for p in D.parameters())


def test_players_leave_the_random_stream_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    make_players(Recipe(spectral=True), (1, 2), hidden=(4,))
    close(torch.rand(3), expected)


def test_fit_takes_the_step():
    recipe = Recipe()
    G, D = make_players(recipe, (0, 1), hidden=(8,))
    data = grid_batches(recipe, (0, 1), 8)
    history = fit(make_step(G, D, recipe), data, 3, progress=False)
    assert set(history.keys()) == {"loss_d", "loss_g"}


# --- the grid -----------------------------------------------------------------------


def test_the_grid_is_25_modes_twelve_deviations_apart():
    gaps = torch.cdist(MODES, MODES) + 100 * torch.eye(25)
    close(gaps.min(1).values / STD, torch.full((25,), 12.0))
    assert STD / CENTRES["grid"][1] == pytest.approx(4 / 1.2)
    x = grid_points(20_000, torch.Generator().manual_seed(0))
    off = (x - MODES[torch.cdist(x, MODES).argmin(1)]).std()
    assert off.item() == pytest.approx(STD, rel=0.02)


def test_count_modes_on_known_points():
    close(torch.stack([t.float() for t in count_modes(MODES)]), [25.0, 1.0])
    three = torch.cat((MODES[:3], MODES[:3] + 2.9 * STD * torch.tensor([1.0, 0.0])))
    covered, good = count_modes(three)
    assert (covered.item(), good.item()) == (3, 1.0)
    covered, good = count_modes(three + 3.1 * STD * torch.tensor([0.0, 1.0]))
    assert (covered.item(), good.item()) == (0, 0.0)
    between = torch.cat((MODES[:1].repeat(3, 1), MODES[:1] + SPREAD))
    covered, good = count_modes(between)
    assert (covered.item(), good.item()) == (1, 0.75)


SPREAD = torch.tensor([[2.0, 2.0]])  # half-way to the next modes: never good


def test_count_modes_of_the_data_and_of_several_games():
    x = grid_points(2500, torch.Generator().manual_seed(0))
    covered, good = count_modes(torch.stack((x, MODES[:1].repeat(2500, 1))))
    assert covered.tolist() == [25, 1]
    # Within 3 standard deviations of two independent directions: 1 - exp(-9/2).
    assert good[0].item() == pytest.approx(1 - math.exp(-4.5), abs=0.006)
    assert good[1] == 1


# --- for the page -------------------------------------------------------------------


def test_the_pairs_of_the_lab_play_the_games():
    run = Run(dirac_program())
    start = run.program.parameters(run.state)["pairs.w"][0]
    run.step(30, h=0.1, bilinear=1, weight=0.8, limit=0.2)
    w = dict(zip(PLAYERS, run.view()["w"], strict=True))

    def after(step):
        return play(step, start, 30)[-1]

    close(w["at_once"], after(lambda w: simultaneous(dirac_wgan, w, 0.1)))
    close(w["in_turns"], after(lambda w: alternating(dirac_wgan, w, 0.1)))
    damped = with_penalty(dirac_wgan, 0.8)
    close(w["r1"], after(lambda w: alternating(damped, w, 0.1)))
    assert w["clipped"][1].abs() <= 0.2 + 1e-6


def test_the_grid_game_of_the_lab_counts_modes():
    run = Run(grid_program(hidden=(16,), batch_size=32))
    run.step(2, gamma=0.5)
    view = run.view()
    covered, good = count_modes(view["fake"])
    assert view["modes"].item() == covered.item()
    close(view["good"], good)


def test_the_labs_show_what_their_programs_give():
    for make, panels in ((dirac_program, dirac_panels), (grid_program, grid_panels)):
        lab = TrainingLab(make(), *panels(), title="A game")
        assert lab.spec["curves"]


@pytest.mark.parametrize("make", [dirac_program, grid_program])
def test_what_the_page_runs_is_what_torch_runs(make, tmp_path):
    export_program(make(), tmp_path / "lab.json")  # compares with PyTorch itself
