"""The GAN against what this project did not write.

torch's own losses and optimisers, torch.distributions, SciPy, quadrature and closed
forms: each result is asked for twice, once from the library and once from one of
these. Everything random is seeded, so a test passes always or never.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Normal, kl_divergence

from genlib.data import digits, toy2d
from genlib.gan import (
    TARGETS,
    Discriminator,
    Generator,
    Maxout,
    discriminator_loss,
    follow,
    frechet_distance,
    generator_loss,
    js_divergence,
    make_step,
    optimal_discriminator,
    paper_gan,
    sample,
    soft_histogram,
    toy_panels,
    toy_program,
)
from genlib.live import Run
from genlib.training import fit

LOG2 = math.log(2)


def count(module):
    return sum(p.numel() for p in module.parameters())


def small_pair(seed=0, shape=(2,), latent=3, scale=1.5):
    """G and D far from constant, in double precision."""
    torch.manual_seed(seed)
    G = Generator(shape, (8,), latent, nn.Tanh).double()
    D = Discriminator(shape, (8,), nn.Tanh).double()
    with torch.no_grad():
        for p in [*G.parameters(), *D.parameters()]:
            p.mul_(scale)
    x = torch.randn(16, *shape, dtype=torch.float64)
    return G, D, x, torch.randn(16, latent, dtype=torch.float64)


# --- the two players -----------------------------------------------------------


def test_networks_are_those_of_torch():
    G, D, x, z = small_pair(shape=(1, 4, 5))
    first, _, second = G.net
    flat = F.linear(F.linear(z, first.weight, first.bias).tanh(), second.weight)
    expected = (flat + second.bias).view(16, 1, 4, 5)
    torch.testing.assert_close(G(z), expected)
    first, _, second = D.net
    x = expected.detach()
    hidden = F.linear(x.reshape(16, 20), first.weight, first.bias).tanh()
    expected = F.linear(hidden, second.weight, second.bias).view(16)
    torch.testing.assert_close(D(x), expected)


def test_default_activation_is_leaky_with_slope_a_fifth():
    for net in (Generator((2,), (4, 4), 2).net, Discriminator((2,), (4, 4)).net):
        bends = [m for m in net if not isinstance(m, nn.Linear)]
        assert len(bends) == 2
        for bend in bends:
            assert bend(torch.tensor(-1.0)) == pytest.approx(-0.2)
            assert bend(torch.tensor(3.0)) == 3


def test_last_brings_the_output_into_range():
    torch.manual_seed(0)
    images = Generator((3, 4, 4), (8,), 5, last=nn.Sigmoid)
    points = Generator((2,), (8,), 5)
    z = 100 * torch.randn(200, 5)
    assert images(z).shape == (200, 3, 4, 4)
    assert images(z).min() >= 0 and images(z).max() <= 1
    assert points(z).min() < -1 and points(z).max() > 1
    torch.testing.assert_close(images(z), images.net(z).sigmoid().view(200, 3, 4, 4))


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"noise has shape \(5, 3\).*\(B, 2\)"):
        Generator((2,), (4,), 2)(torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"\(5, 1, 8, 9\).*\(B, 1, 8, 8\)"):
        Discriminator((1, 8, 8), (4,))(torch.zeros(5, 1, 8, 9))


def test_sizes_of_the_widely_used_mlp_gan():
    # 100-128-256-512-1024-784 against 784-512-256-1, without its batch norm
    G = Generator((1, 28, 28), (128, 256, 512, 1024), 100, last=nn.Sigmoid)
    D = Discriminator((1, 28, 28), (512, 256))
    layers = (12_928, 33_024, 131_584, 525_312, 803_600)
    assert count(G) == sum(layers) == 1_506_448
    assert count(D) == 401_920 + 131_328 + 257 == 533_505


def test_sizes_of_the_papers_mnist_networks():
    G, D = paper_gan()
    assert count(G) == (101 * 1200) + (1201 * 1200) + (1201 * 784) == 2_503_984
    assert count(D) == 785 * 1200 + 241 * 1200 + 241 == 1_231_441
    x = G(torch.randn(7, 100))
    assert x.shape == (7, 1, 28, 28) and x.min() > 0 and x.max() < 1
    assert D(x).shape == (7,)
    assert [m.p for m in D if isinstance(m, nn.Dropout)] == [0.2, 0.5, 0.5]
    bends = [m for m in G.net if not isinstance(m, nn.Linear)]
    assert all(isinstance(m, nn.ReLU) for m in bends) and len(bends) == 2


def test_maxout_takes_the_largest_piece_of_each_unit():
    torch.manual_seed(0)
    layer, x = Maxout(4, 3, pieces=5), torch.randn(6, 4)
    assert layer(x).shape == (6, 3)
    for unit in range(3):
        rows = slice(5 * unit, 5 * unit + 5)
        pieces = x @ layer.weight[rows].T + layer.bias[rows]
        torch.testing.assert_close(layer(x)[:, unit], pieces.max(1).values)


def test_sample_draws_noise_of_the_prior():
    torch.manual_seed(0)
    G = Generator((2,), (), 2)
    with torch.no_grad():  # G(z) = z, so that the noise can be read off
        G.net[0].weight.copy_(torch.eye(2))
        G.net[0].bias.zero_()
    z = sample(G, 50_000, torch.Generator().manual_seed(0))
    cdf = Normal(0.0, 1.0).cdf(z.sort(0).values)
    ranks = torch.arange(1, 50_001)[:, None] / 50_000
    # Kolmogorov-Smirnov: beyond 1.95 / sqrt(n) in 1 of 1000 true samples
    assert (cdf - ranks).abs().max() < 1.95 / 50_000**0.5
    assert torch.corrcoef(z.T)[0, 1].abs() < 0.02
    assert not z.requires_grad
    assert torch.equal(z, sample(G, 50_000, torch.Generator().manual_seed(0)))
    assert not torch.equal(z, sample(G, 50_000, torch.Generator().manual_seed(1)))


# --- losses --------------------------------------------------------------------


def test_discriminator_loss_is_torchs_cross_entropy():
    G, D, x, z = small_pair()
    bce = nn.BCEWithLogitsLoss()
    expected = bce(D(x), torch.ones(16).double())
    expected = expected + bce(D(G(z)), torch.zeros(16).double())
    torch.testing.assert_close(discriminator_loss(G, D, x, z), expected)
    real, fake = D(x).sigmoid(), D(G(z)).sigmoid()
    value = real.log().mean() + (1 - fake).log().mean()
    torch.testing.assert_close(discriminator_loss(G, D, x, z), -value)


def test_generator_losses_are_the_papers():
    G, D, x, z = small_pair()
    fake = D(G(z)).sigmoid()
    torch.testing.assert_close(generator_loss(G, D, z), -fake.log().mean())
    zero_sum = (1 - fake).log().mean()
    torch.testing.assert_close(generator_loss(G, D, z, saturating=1.0), zero_sum)
    bce = nn.BCEWithLogitsLoss()
    expected = bce(D(G(z)), torch.ones(16).double())
    torch.testing.assert_close(generator_loss(G, D, z, 0.0), expected)
    mixed = generator_loss(G, D, z, torch.tensor(0.25, dtype=torch.float64))
    torch.testing.assert_close(mixed, -0.75 * fake.log().mean() + 0.25 * zero_sum)


def test_the_saturating_game_is_zero_sum():
    # What of V depends on G is the generator's loss: their gradients agree.
    G, D, x, z = small_pair()
    value = D(x).sigmoid().log().mean() + (1 - D(G(z)).sigmoid()).log().mean()
    expected = torch.autograd.grad(value, list(G.parameters()))
    found = torch.autograd.grad(generator_loss(G, D, z, 1.0), list(G.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_losses_of_sure_discriminators_are_finite_and_right():
    G = Generator((2,), (4,), 2)
    for logit in (-300.0, 300.0):

        def D(x, logit=logit):
            return torch.full((len(x),), logit)

        x, z = torch.zeros(3, 2), torch.zeros(3, 2)
        assert discriminator_loss(G, D, x, z) == 300
        assert generator_loss(G, D, z) == max(-logit, 0)
        assert generator_loss(G, D, z, saturating=1.0) == -max(logit, 0)


def test_gradients_reach_only_the_player_who_moves():
    G, D, x, z = small_pair()
    discriminator_loss(G, D, x, z).backward()
    assert all(p.grad is None for p in G.parameters())
    assert all(p.grad.abs().sum() > 0 for p in D.parameters())


def test_gradient_of_each_loss_by_the_logit():
    # -D for the saturating loss, -(1 - D) for the other: what starves and what does not
    logits = torch.linspace(-12, 12, 49, dtype=torch.float64).requires_grad_()

    def through(z):
        return z

    for weight, slope in ((1.0, logits.sigmoid()), (0.0, 1 - logits.sigmoid())):
        loss = 49 * generator_loss(through, through, logits, weight)
        (grad,) = torch.autograd.grad(loss, logits)
        torch.testing.assert_close(grad, -slope.detach())


# --- the step ------------------------------------------------------------------


@pytest.mark.parametrize("saturating", [0.0, 1.0])
def test_step_is_the_textbooks(saturating):
    """The same three rounds with torch's own pieces give the same weights."""
    G, D, x, _ = small_pair()
    G, D, x = G.float(), D.float(), x.float()
    G2, D2 = copy.deepcopy(G), copy.deepcopy(D)
    step = make_step(G, D, lr_g=3e-3, lr_d=2e-3, saturating=saturating)
    torch.manual_seed(7)
    metrics = [step(x if i else (x, torch.zeros(16))) for i in range(3)]
    adam_d = torch.optim.Adam(D2.parameters(), 2e-3, (0.5, 0.99))
    adam_g = torch.optim.Adam(G2.parameters(), 3e-3, (0.5, 0.99))
    bce, ones, zeros = nn.BCEWithLogitsLoss(), torch.ones(16), torch.zeros(16)
    torch.manual_seed(7)
    for found in metrics:
        fake = G2(torch.randn(16, 3)).detach()
        loss_d = bce(D2(x), ones) + bce(D2(fake), zeros)
        adam_d.zero_grad()
        loss_d.backward()
        adam_d.step()
        logits = D2(G2(torch.randn(16, 3)))
        loss_g = -bce(logits, zeros) if saturating else bce(logits, ones)
        adam_g.zero_grad()
        loss_g.backward()
        adam_g.step()
        torch.testing.assert_close(found["loss_d"], loss_d)
        torch.testing.assert_close(found["loss_g"], loss_g)
    for a, b in zip(
        [*G.parameters(), *D.parameters()],
        [*G2.parameters(), *D2.parameters()],
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_step_leaves_d_able_to_learn():
    G, D, x, _ = small_pair()
    G, D = G.float(), D.float()
    before = copy.deepcopy(D.state_dict())
    step = make_step(G, D)
    step(x.float()), step(x.float())
    assert all(p.requires_grad for p in D.parameters())
    assert all(not torch.equal(v, before[k]) for k, v in D.state_dict().items())


def test_average_is_that_of_torch():
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    torch.manual_seed(0)
    G = Generator((2,), (4,), 3)
    average, theirs = (
        copy.deepcopy(G),
        AveragedModel(G, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
    )
    theirs.update_parameters(G)  # its first update copies
    for _ in range(3):
        with torch.no_grad():
            for p in G.parameters():
                p.add_(torch.randn_like(p))
        follow(average, G, rate=0.1)
        theirs.update_parameters(G)
    for a, b in zip(average.parameters(), theirs.module.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_gan_learns_a_gaussian():
    torch.manual_seed(0)
    G, D = Generator((1,), (16,), 1, nn.Tanh), Discriminator((1,), (16,), nn.Tanh)

    def batches():
        while True:
            yield 0.5 * torch.randn(256, 1) + 2

    fit(make_step(G, D, 2e-3, 4e-3), batches(), 1500, progress=False)
    x = sample(G, 4000)
    assert abs(x.mean() - 2) < 0.15 and abs(x.std() - 0.5) < 0.15


# --- what the game measures ----------------------------------------------------

P, Q = Normal(-1.0, 0.6), Normal(0.7, 1.1)
LINE = torch.linspace(-9, 10, 20_001, dtype=torch.float64)


def cells(density):
    mass = density.log_prob(LINE).exp()
    return mass / mass.sum()


def test_optimal_discriminator_is_bayes_rule():
    log_p, log_q = P.log_prob(LINE), Q.log_prob(LINE)
    p, q = log_p.exp(), log_q.exp()
    best = optimal_discriminator(log_p, log_q).sigmoid()
    some = (LINE > -4) & (LINE < 4)
    torch.testing.assert_close(best[some], (p / (p + q))[some])
    # log-odds that stay finite where both densities are zero in float64
    far = torch.tensor(80.0, dtype=torch.float64)
    assert P.log_prob(far).exp() == Q.log_prob(far).exp() == 0
    assert optimal_discriminator(P.log_prob(far), Q.log_prob(far)).isfinite()


def test_no_discriminator_does_better_than_the_optimal_one():
    p, q = cells(P), cells(Q)
    best = optimal_discriminator(P.log_prob(LINE), Q.log_prob(LINE))

    def value(logits):
        return (p * F.logsigmoid(logits) + q * F.logsigmoid(-logits)).sum()

    torch.manual_seed(0)
    for size in (0.01, 0.1, 1.0):
        bump = torch.randn(5).double() @ torch.stack([LINE**k for k in range(5)])
        assert value(best + size * bump / bump.abs().max()) < value(best)
    # and its value is 2 JSD - log 4 (Goodfellow et al. 2014, theorem 1)
    expected = 2 * js_divergence(p, q) - math.log(4)
    torch.testing.assert_close(value(best), expected, atol=1e-6, rtol=0)


def test_a_trained_discriminator_finds_the_optimal_one():
    torch.manual_seed(0)
    D = Discriminator((1,), (32, 32), nn.Tanh)

    class Fixed(nn.Module):  # a generator whose density is known
        def forward(self, z):
            return Q.loc + Q.scale * z

    optimizer = torch.optim.Adam(D.parameters(), 5e-3)
    for k in range(600):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - k / 600)
        x, z = P.sample((2048, 1)), torch.randn(2048, 1)
        loss = discriminator_loss(Fixed(), D, x, z)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = torch.linspace(-2, 2.5, 41)  # where both densities give examples
    best = optimal_discriminator(P.log_prob(x), Q.log_prob(x)).sigmoid()
    assert (D(x[:, None]).sigmoid() - best).abs().max() < 0.05


def test_js_divergence_is_that_of_kl_and_scipy():
    from scipy.spatial.distance import jensenshannon

    torch.manual_seed(0)
    p, q = torch.rand(2, 4, 50).double().softmax(2)
    p[:, :10] = 0  # cells that only one of the two has
    p = p / p.sum(1, keepdim=True)
    found = js_divergence(p, q)
    assert found.shape == (4,)
    expected = torch.tensor(jensenshannon(p.T.numpy(), q.T.numpy()) ** 2)
    torch.testing.assert_close(found, expected)


def test_js_divergence_of_two_gaussians_by_quadrature():
    # JSD = 1/2 KL(p | m) + 1/2 KL(q | m), by the trapezoidal rule on the densities
    p, q = P.log_prob(LINE).exp(), Q.log_prob(LINE).exp()
    m = (p + q) / 2
    inside = m > 0
    integrand = torch.zeros_like(m)
    for a in (p, q):
        some = inside & (a > 0)
        integrand[some] += 0.5 * a[some] * (a[some] / m[some]).log()
    expected = torch.trapezoid(integrand, LINE)
    found = js_divergence(cells(P), cells(Q))
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)
    jeffreys = kl_divergence(P, Q) + kl_divergence(Q, P)
    assert 0 < found < min(LOG2, jeffreys / 4)


def test_js_divergence_has_its_limits():
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    assert js_divergence(p, p) == 0
    torch.testing.assert_close(js_divergence(p, q), torch.tensor(LOG2))
    torch.testing.assert_close(js_divergence(p, q), js_divergence(q, p))
    q = torch.tensor([0.1, 0.2, 0.7], requires_grad=True)
    js_divergence(p, q).backward()
    assert q.grad.isfinite().all()


def test_soft_histogram_counts_shares():
    axis = torch.linspace(-3, 3, 61)
    x = toy2d("ring", 500, torch.Generator().manual_seed(0))
    hard = torch.histogramdd(x, [61, 61], range=[-3.05, 3.05, -3.05, 3.05]).hist / 500
    # A width far below a cell puts each point into the nearest cell, y upwards.
    torch.testing.assert_close(soft_histogram(x, axis, 1e-4), hard.T)
    for width in (0.05, 0.2, 1.0):
        assert soft_histogram(x, axis, width).sum() == pytest.approx(1, abs=1e-5)
    far = torch.tensor([[1e3, -1e3]])
    shares = soft_histogram(far, axis, 0.1)
    assert shares[0, -1] == pytest.approx(1) and shares.sum() == pytest.approx(1)


def test_soft_histogram_is_a_smoothed_density():
    # Many points of N(0, 0.5), spread by 0.3: a normal of variance 0.25 + 0.09.
    torch.manual_seed(0)
    axis = torch.linspace(-3, 3, 41).double()
    shares = soft_histogram(0.5 * torch.randn(200_000, 2).double(), axis, 0.3)
    line = Normal(0.0, math.sqrt(0.34)).log_prob(axis).exp() * 0.15
    assert (shares - line[:, None] * line).abs().max() < 3e-4


def test_soft_histogram_moves_smoothly():
    torch.manual_seed(0)
    axis = torch.linspace(-2, 2, 9).double()
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: soft_histogram(x, axis, 0.4), x)


def test_frechet_distance_is_that_of_scipy():
    from scipy.linalg import sqrtm

    torch.manual_seed(0)
    a = torch.randn(300, 5) @ torch.randn(5, 5)
    b = 0.7 * torch.randn(200, 5) @ torch.randn(5, 5) + 0.5
    mean = a.double().mean(0) - b.double().mean(0)
    cov_a, cov_b = a.double().T.cov(), b.double().T.cov()
    cross = torch.tensor(sqrtm((cov_a @ cov_b).numpy()).real)
    expected = mean.square().sum() + (cov_a + cov_b - 2 * cross).trace()
    torch.testing.assert_close(frechet_distance(a, b), expected)


def test_frechet_distance_of_known_gaussians():
    # One dimension: (mu_a - mu_b)^2 + (sigma_a - sigma_b)^2
    a = torch.tensor([[-1.0], [1.0]]).repeat(50, 1) + 3
    b = 2 * torch.tensor([[-1.0], [1.0]]).repeat(50, 1)
    sigma = math.sqrt(100 / 99)
    assert frechet_distance(a, b).item() == pytest.approx(9 + sigma**2)
    same = digits().x()[:400].flatten(1)  # some pixels never vary: singular covariances
    assert abs(frechet_distance(same, same)) < 1e-9
    assert frechet_distance(same, same + 0.5).item() == pytest.approx(64 * 0.25)
    with pytest.raises(ValueError, match="1 and 400 examples"):
        frechet_distance(same[:1], same)


# --- the game on a plane -------------------------------------------------------


@pytest.mark.parametrize("saturating", [0.0, 1.0])
def test_program_steps_as_torch_does(saturating):
    """Three rounds of the program, and the same with torch.optim and torch's losses."""
    program = toy_program(hidden=(8,), n=300)
    run, G, D = Run(program, seed=3), *program.modules.values()
    D, G = copy.deepcopy(program.modules["D"]), copy.deepcopy(program.modules["G"])
    parameters = program.parameters(run.state)
    for name, module in (("D", D), ("G", G)):
        start = {k: parameters[f"{name}.{k}"] for k in module.state_dict()}
        module.load_state_dict(start)
    adam_d = torch.optim.Adam(D.parameters(), 3e-3, (0.5, 0.99))
    adam_g = torch.optim.Adam(G.parameters(), 1e-3, (0.5, 0.99))
    bce, ones, zeros = nn.BCEWithLogitsLoss(), torch.ones(256), torch.zeros(256)
    settings = {"saturating": saturating, "lr_d": 3e-3, "lr_g": 1e-3, "g_every": 2}
    found, _ = run.step(3, **settings)
    for t in (1, 2, 3):
        feeds = run.draw(t, **settings)
        loss = bce(D(feeds["x"]), ones) + bce(D(G(feeds["z"]).detach()), zeros)
        adam_d.zero_grad()
        loss.backward()
        adam_d.step()
        assert found[t - 1, 0].item() == pytest.approx(loss.item(), abs=1e-5)
        if t == 2:  # G moves in every second round
            logits = D(G(feeds["z"]))
            loss = -bce(logits, zeros) if saturating else bce(logits, ones)
            adam_g.zero_grad()
            loss.backward()
            adam_g.step()
            assert found[1, 1].item() == pytest.approx(loss.item(), abs=1e-5)
    end = program.parameters(run.state)
    for name, module in (("D", D), ("G", G)):
        for key, value in module.state_dict().items():
            torch.testing.assert_close(
                end[f"{name}.{key}"], value, atol=1e-5, rtol=1e-4
            )


def test_views_are_those_of_the_state():
    program = toy_program(hidden=(8,), n=300)
    run = Run(program, seed=1)
    run.step(5)
    G, D = (copy.deepcopy(program.modules[name]) for name in "GD")
    parameters = program.parameters(run.state)
    for name, module in (("D", D), ("G", G)):
        module.load_state_dict(
            {k: parameters[f"{name}.{k}"] for k in module.state_dict()}
        )
    for saturating in (0, 1):
        view = run.view(saturating=saturating)
        z = run.draw(0, view=True)["z_show"]
        torch.testing.assert_close(view["fake"], G(z).detach())
        # D's map: rows of y upwards, columns of x to the right
        corner = D(torch.tensor([[4.0, -4.0], [-4.0, 4.0]])).sigmoid()
        torch.testing.assert_close(view["map"][[0, -1], [-1, 0]], corner.detach())
        # the pull on a point: minus the gradient of its own loss, by differences
        point, pull = view["pull"][3].double().split(2)
        D64, h = copy.deepcopy(D).double(), 1e-6
        for k in range(2):
            step = torch.zeros(2).double()
            step[k] = h
            low, high = (D64((point + s)[None]).item() for s in (-step, step))
            loss = [
                -math.log1p(math.exp(-sign * v))
                for v in (low, high)
                for sign in (1, -1)
            ]
            rise = loss[3] - loss[1] if saturating else loss[0] - loss[2]
            assert pull[k].item() == pytest.approx(-rise / (2 * h), rel=1e-3, abs=1e-6)
        # one line of the mesh follows z along a straight line
        z = torch.stack((torch.full((25,), -2.5), torch.linspace(-2.5, 2.5, 25)), 1)
        torch.testing.assert_close(view["mesh"][0], G(z).detach())
        torch.testing.assert_close(view["mesh"][13], G(z.flip(1)).detach())
        assert 0 < view["js"] < LOG2
    assert torch.equal(
        view["real"],
        program.tables["target"]["ring"].rows[:1000][torch.arange(1000) % 300],
    )


def test_distance_of_the_view_falls_when_the_points_agree():
    program = toy_program(hidden=(8,), n=1000)
    run = Run(program, seed=0)
    far = run.view()["js"]
    run.replace("target", run.view()["fake"] + 0.05 * torch.randn(1000, 2))
    near = run.view()["js"]
    run.replace("target", torch.full((10, 2), 3.9))
    apart = run.view()["js"]
    assert near < 0.05 < 0.3 < far < apart <= LOG2 + 1e-6


def shares_of_the_ring(fake):
    """The share of points within 0.4 of each of the ring's eight centres: (8,)."""
    angles = torch.arange(8) * math.pi / 4
    centres = 2 * torch.stack((angles.cos(), angles.sin()), 1)
    gap, mode = torch.cdist(fake, centres).min(1)
    return torch.bincount(mode[gap < 0.4], minlength=8) / len(fake)


@pytest.mark.parametrize(("seed", "saturating"), [(0, 0), (1, 0), (0, 1)])
def test_the_ring_is_learned(seed, saturating):
    """All eight clusters hold generated points after 1000 rounds, with either loss."""
    run = Run(toy_program(), seed)
    run.step(1000, saturating=saturating)
    view = run.view()
    shares = shares_of_the_ring(view["fake"])
    assert shares.min() > 0.03 and shares.sum() > 0.8
    assert view["js"] < 0.1


def test_out_of_balance_the_ring_is_lost():
    run = Run(toy_program(), seed=1)
    for _ in range(3):
        run.step(150, d_every=10)
        assert (shares_of_the_ring(run.view()["fake"]) > 0.02).sum() <= 3


def test_a_head_start_of_d_starves_the_saturating_loss():
    run = Run(toy_program(), seed=0)
    start = run.view()["fake"]
    run.step(300, g_every=1000)
    assert torch.equal(run.view()["fake"], start)
    pulls = [run.view(saturating=loss)["strength"] for loss in (0, 1)]
    assert pulls[0] > 1 and pulls[0] > 1000 * pulls[1]


def test_panels_show_what_the_program_gives():
    from genlib.widgets import TrainingLab

    program = toy_program(hidden=(8,), n=300)
    panels, curves = toy_panels()
    lab = TrainingLab(program, panels, curves, title="The game")
    assert list(program.tables["target"]) == list(TARGETS)
    shown = {layer["value"] for p in lab.spec["panels"] for layer in p["layers"]}
    assert shown == {"map", "real", "fake", "pull", "mesh"}
    assert lab.spec["tables"][0]["draw"] == 0  # the reader draws in the first panel
    assert len(lab.spec["controls"]) == 5
