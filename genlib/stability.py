r"""Why GANs are hard to train, and what helps: games of two numbers whose motion can be
computed, and the penalties, constraints and averages that tame large games.

Dirac-GAN and R1: Mescheder, Geiger and Nowozin 2018, arXiv:1801.04406. WGAN: Arjovsky
et al. 2017, arXiv:1701.07875; its gradient penalty: Gulrajani et al. 2017,
arXiv:1704.00028. Spectral normalisation: Miyato et al. 2018, arXiv:1802.05957. Two time
scales: Heusel et al. 2017, arXiv:1706.08500. Averaged weights, minibatch statistics:
Karras et al. 2018, arXiv:1710.10196. The grid of 25 modes: Srivastava et al. 2017,
arXiv:1705.07761, and Lin et al. 2018, arXiv:1712.04086.

D returns logits or scores (..., B). A leading dimension S holds several games at once,
one a seed: x is (S, B, 2), scores are (S, B).
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import grad, jacrev
from torch.nn.utils import parametrize

from genlib.data import CENTRES, toy2d
from genlib.gan import (
    Discriminator,
    Generator,
    discriminator_loss,
    generator_loss,
)
from genlib.live import Choice, First, Normal, Phase, Program, Rows, Slider
from genlib.training import Adam
from genlib.vae import MLP

# --- games of two numbers -------------------------------------------------------------


def dirac_gan(theta, psi):
    r"""The smallest GAN: (loss of G, loss of D), for theta and psi of any shape.

    All data are 0, G draws theta whatever its noise, and D's logit is psi * x. The
    losses are the usual ones, non-saturating for G (Mescheder et al. 2018, section 2).
    """
    logit = psi * theta
    return F.softplus(-logit), math.log(2) + F.softplus(logit)


def dirac_wgan(theta, psi):
    """The same with scores instead of logits, a WGAN: the bilinear game.

    G wants psi * theta high and D wants it low; nothing bends.
    """
    return -psi * theta, psi * theta


def with_penalty(game, weight, target=0.0):
    r"""The game with $\frac{w}{2} (|\psi| - t)^2$ added to D's loss.

    psi is D's gradient by x, so this is R1 for target 0 and a one-number WGAN-GP
    (there $w = 2 \lambda$) for target 1.
    """

    def penalised(theta, psi):
        loss_g, loss_d = game(theta, psi)
        square = psi.square() - 2 * target * psi.abs() + target**2  # smooth for t = 0
        return loss_g, loss_d + weight / 2 * square

    return penalised


def slope(game, player, theta, psi):
    """Gradient of a player's loss by its own number: G's (0) theta, or D's (1) psi."""
    if player == 0:
        return grad(lambda theta: game(theta, psi)[0].sum())(theta)
    return grad(lambda psi: game(theta, psi)[1].sum())(psi)


def velocity(game, w):
    """Where both players want to go from w = (theta, psi), (..., 2): (..., 2).

    Minus the gradient of each player's own loss by its own number.
    """
    theta, psi = w.unbind(-1)
    return -torch.stack([slope(game, k, theta, psi) for k in (0, 1)], -1)


def simultaneous(game, w, h):
    """Both players step at once: (..., 2) -> (..., 2). `h` is a rate, or (h_g, h_d)."""
    return w + torch.as_tensor(h, dtype=w.dtype) * velocity(game, w)


def alternating(game, w, h):
    """D steps, then G answers D's new number: (..., 2) -> (..., 2); h as above."""
    h_g, h_d = torch.as_tensor(h, dtype=w.dtype).expand(2)
    theta, psi = w.unbind(-1)
    psi = psi - h_d * slope(game, 1, theta, psi)
    theta = theta - h_g * slope(game, 0, theta, psi)
    return torch.stack((theta, psi), -1)


def play(step, w, rounds):
    """Repeat w = step(w): the path (rounds + 1, ..., 2), start included."""
    path = [w]
    for _ in range(rounds):
        path.append(step(path[-1]))
    return torch.stack(path)


def eigenvalues(function, w):
    r"""Eigenvalues of a function's Jacobian at w (2,): complex (2,).

    Of a `velocity` they are rates: distances change as $e^{\mathrm{Re}(\lambda) t}$. Of
    a step they are factors: each step multiplies the distance by $|\lambda|$ and turns
    it by the angle of $\lambda$.
    """
    return torch.linalg.eigvals(jacrev(function)(w))


# --- losses, penalties, constraints ---------------------------------------------------


def critic_loss(G, D, x, z):
    r"""WGAN: $E_z[D(G(z))] - E_x[D(x)]$. G gets no gradient: this is D's move.

    With D of slope 1 at most, minus its smallest value is the Wasserstein distance of
    data and samples (Arjovsky et al. 2017, equation 2).
    """
    with torch.no_grad():
        x_fake = G(z)
    return D(x_fake).mean() - D(x).mean()


def fool_critic_loss(G, D, z):
    r"""WGAN, G's move: $-E_z[D(G(z))]$."""
    return -D(G(z)).mean()


def squared_slopes(D, x):
    r"""$|\nabla_x D(x)|^2$ of each example, x (..., B, *shape): (..., B).

    Each score must depend on its own example alone; it can be differentiated again.
    """
    x = x.detach().requires_grad_()
    scores = D(x)  # (..., B)
    slopes = torch.autograd.grad(scores.sum(), x, create_graph=True)[0]
    return slopes.square().sum(tuple(range(scores.ndim, x.ndim)))


def r1_penalty(D, x):
    r"""$E |\nabla D(x)|^2$ at real x; half of it times gamma goes into D's loss.

    Mescheder et al. 2018, equation 9.
    """
    return squared_slopes(D, x).mean()


def gradient_penalty(D, x, x_fake, t):
    r"""$E (|\nabla D(\hat x)| - 1)^2$ at $\hat x$ between real x and x_fake.

    t (..., B, 1, ...) in 0..1: where on the line. Gulrajani et al. 2017, equation 3.
    """
    between = t * x + (1 - t) * x_fake
    slopes = (squared_slopes(D, between) + 1e-12).sqrt()  # a root has no slope at 0
    return (slopes - 1).square().mean()


@torch.no_grad()
def clip_weights(D, limit):
    """Cut all parameters of D to -limit..limit (Arjovsky et al. 2017, algorithm 1)."""
    for p in D.parameters():
        p.clamp_(-limit, limit)


def power_iteration(weight, u, steps=1):
    """Largest singular value of weight (..., M, N), from a guess u (..., M, 1) of its
    left vector: (sigma (..., 1, 1), u).

    u and v are constants for the gradient, which is then that of the singular value
    (Miyato et al. 2018, algorithm 1).
    """
    with torch.no_grad():
        for _ in range(steps):
            v = F.normalize(weight.mT @ u, dim=-2)  # (..., N, 1)
            u = F.normalize(weight @ v, dim=-2)  # (..., M, 1)
    return u.mT @ weight @ v, u


class SpectralNorm(nn.Module):
    """Divides a weight by its largest singular value, found by power iteration.

    A parametrisation: see `normalize_spectrum`. One iteration a forward pass while
    training, for weights move slowly; u is kept from pass to pass.
    """

    def __init__(self, weight):
        super().__init__()
        left = torch.linalg.svd(self.matrix(weight.detach()))[0]
        self.register_buffer("u", left[..., :1].clone())  # exact once, then followed

    @staticmethod
    def matrix(weight):
        """Dense layers (..., M, N) as they are; of convolutions all but C_out flat."""
        return weight.flatten(1) if weight.ndim == 4 else weight

    def forward(self, weight):
        sigma, u = power_iteration(self.matrix(weight), self.u)
        if self.training:
            self.u = u
        return weight / (sigma if weight.ndim < 4 else sigma[..., None, None])


def normalize_spectrum(module):
    """Put `SpectralNorm` on every weight of a network, in place; return the network."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | StackedLinear):
            parametrize.register_parametrization(
                layer, "weight", SpectralNorm(layer.weight)
            )
    return module


class MinibatchStddev(nn.Module):
    """Features (..., B, F) -> (..., B, F + 1): the last says how varied the batch is.

    The standard deviation of each feature over the batch, averaged over the features;
    the same number for all examples (Karras et al. 2018, section 3).
    """

    def forward(self, h):
        spread = (h.var(-2, correction=0, keepdim=True) + 1e-8).sqrt()
        spread = spread.mean(-1, keepdim=True)  # (..., 1, 1)
        return torch.cat((h, spread.expand(*h.shape[:-1], 1)), -1)


# --- many games at once ---------------------------------------------------------------


class StackedLinear(nn.Module):
    """S linear layers side by side: (S, B, in) -> (S, B, out), one product for all."""

    def __init__(self, *layers):
        super().__init__()
        self.weight = nn.Parameter(torch.stack([m.weight.detach() for m in layers]))
        self.bias = nn.Parameter(torch.stack([m.bias.detach()[None] for m in layers]))

    def forward(self, x):
        return torch.baddbmm(self.bias, x, self.weight.mT)


def stack(networks):
    """S networks of one form, `nn.Sequential`s, as one: (S, B, in) -> (S, B, out).

    Layers without weights are taken from the first.
    """
    return nn.Sequential(
        *(
            StackedLinear(*layers) if isinstance(layers[0], nn.Linear) else layers[0]
            for layers in zip(*networks, strict=True)
        )
    )


@dataclass(frozen=True)
class Recipe:
    """How one GAN is trained: all that the cures of this chapter change.

    The defaults are the plain game, with Adam's momentum off, as Mescheder et al. and
    most later work have it.
    """

    lr_g: float = 2e-3
    lr_d: float = 2e-3
    betas: tuple = (0.0, 0.99)  # of Adam; (0.5, ...) since Radford et al. 2016
    d_steps: int = 1  # moves of D for one of G
    wasserstein: bool = False  # scores and their difference instead of cross-entropy
    clip: float = 0.0  # limit of D's weights
    gp: float = 0.0  # lambda of WGAN-GP
    r1: float = 0.0  # gamma of R1
    spectral: bool = False  # spectral normalisation of D
    stddev: bool = False  # a feature that tells D how varied a batch is


def make_players(recipe, seeds, hidden=(64, 64, 64), latent=2):
    """G and D for points in the plane, one of each for every seed, stacked.

    z (S, B, latent) -> G(z) (S, B, 2); x (S, B, 2) -> D(x) (S, B). A seed gives
    the same start whatever the other seeds are.
    """
    players = []
    with torch.random.fork_rng():
        for seed in seeds:
            torch.manual_seed(seed)
            G = MLP(latent, *hidden, 2, activation=nn.Tanh)
            D = MLP(2, *hidden, 1, activation=nn.Tanh)
            if recipe.stddev:
                last = nn.Linear(hidden[-1] + 1, 1)
                D = nn.Sequential(*list(D)[:-1], MinibatchStddev(), last)
            players.append((G, nn.Sequential(*D, nn.Flatten(-2))))
        G, D = (stack(networks) for networks in zip(*players, strict=True))
        return G, normalize_spectrum(D) if recipe.spectral else D


def d_objective(G, D, x, z, recipe):
    """D's loss under a recipe, penalties included: a scalar, mean over all games."""
    loss = (critic_loss if recipe.wasserstein else discriminator_loss)(G, D, x, z)
    if recipe.r1:
        loss = loss + recipe.r1 / 2 * r1_penalty(D, x)
    if recipe.gp:
        with torch.no_grad():
            x_fake = G(z)
        t = torch.rand_like(x[..., :1])
        loss = loss + recipe.gp * gradient_penalty(D, x, x_fake, t)
    return loss


def make_step(G, D, recipe):
    """One round under a recipe: step((x, z)) -> metrics, for `genlib.training.fit`.

    x (S, d_steps, B, 2) and z (S, d_steps + 1, B, latent): a fresh batch for each move
    of D, and z for the move of G. Metrics are means over the S games.
    """
    adam_g = torch.optim.Adam(G.parameters(), recipe.lr_g, recipe.betas, fused=True)
    adam_d = torch.optim.Adam(D.parameters(), recipe.lr_d, recipe.betas, fused=True)
    g_objective = fool_critic_loss if recipe.wasserstein else generator_loss

    def step(batch):
        x, z = batch
        games = len(x)  # times the mean: each game has the gradient it has alone
        for k in range(recipe.d_steps):
            loss_d = d_objective(G, D, x[:, k], z[:, k], recipe)
            adam_d.zero_grad()
            (games * loss_d).backward()
            adam_d.step()
            if recipe.clip:
                clip_weights(D, recipe.clip)
        D.requires_grad_(False)
        loss_g = g_objective(G, D, z[:, -1])
        adam_g.zero_grad()
        (games * loss_g).backward()
        adam_g.step()
        D.requires_grad_(True)
        return {"loss_d": loss_d, "loss_g": loss_g}

    return step


# --- the grid of 25 modes -------------------------------------------------------------

SPACING, STD = 4.0, 1 / 3  # of the grid; networks like numbers of this size
MODES = SPACING / 1.2 * torch.tensor(CENTRES["grid"][0])  # (25, 2)


def grid_points(n, generator=None):
    """n points (n, 2) of 25 Gaussians 4 apart, standard deviation 1/3: toy2d's grid."""
    return SPACING / 1.2 * toy2d("grid", n, generator)


def grid_batches(recipe, seeds, batch_size=64, latent=2, ahead=50):
    """Endless batches (x, z) for `make_step`; each seed has a stream of its own.

    `ahead` rounds are drawn at a time, for many small draws are slow.
    """
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    moves, n = recipe.d_steps, ahead * batch_size
    while True:
        x = torch.stack([grid_points(n * moves, s) for s in streams])
        z = [torch.randn(n * (moves + 1), latent, generator=s) for s in streams]
        x = x.unflatten(1, (ahead, moves, batch_size))
        z = torch.stack(z).unflatten(1, (ahead, moves + 1, batch_size))
        yield from zip(x.unbind(1), z.unbind(1), strict=True)


def count_modes(x, centres=MODES, std=STD):
    """Modes covered and share of good samples, both (...,), of points x (..., N, 2).

    A point is good within three standard deviations of a centre; a mode is covered when
    at least one good point is nearest to it. With N = 2500 that is the protocol of
    Srivastava et al. 2017 and Lin et al. 2018.
    """
    offsets = x[..., None, :] - centres  # (..., N, K, 2)
    squared, nearest = offsets.square().sum(-1).min(-1)
    good = squared < (3 * std) ** 2  # (..., N)
    hits = (nearest[..., None] == torch.arange(len(centres)).to(x.device)) & good[
        ..., None
    ]
    return (hits.sum(-2) > 0).sum(-1), good.float().mean(-1)


# --- for the page ---------------------------------------------------------------------

PLAYERS = {  # of the lab: a name for the view, and one for people
    "at_once": "both at once",
    "in_turns": "in turns",
    "average": "average of in turns",
    "r1": "in turns, R1",
    "gp": "in turns, WGAN-GP",
    "clipped": "in turns, clipped",
}


class Pairs(nn.Module):
    """A module that holds (theta, psi) of several games: `w`, (N, 2)."""

    def __init__(self, n, start=(1.2, 0.0)):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start).repeat(n, 1))


def dirac_program():
    """The games of two numbers as a `Program`: one pair for each of PLAYERS.

    All start in the same place. The reader chooses the game and sets the learning rate,
    the penalties' weight, the limit of the weights and the average's decay. Views are
    the pairs `w` (6, 2) and each one's distance from its rest.
    """
    pairs = Pairs(len(PLAYERS))

    def rounds(bilinear, h, weight, limit, decay, **_):
        def game(theta, psi):
            both = zip(dirac_gan(theta, psi), dirac_wgan(theta, psi), strict=True)
            return tuple((1 - bilinear) * a + bilinear * b for a, b in both)

        w = pairs.w
        turns = alternating(game, w[1], h)
        theta, psi = alternating(game, w[5], h)
        rows = [
            simultaneous(game, w[0], h),
            turns,
            decay * w[2] + (1 - decay) * turns,
            alternating(with_penalty(game, weight), w[3], h),
            alternating(with_penalty(game, weight, 1.0), w[4], h),
            torch.stack((theta, psi.sign() * torch.minimum(psi.abs(), limit))),
        ]
        w = torch.stack(rows)
        distances = w.norm(dim=1).clamp(min=1e-6)
        return {"pairs.w": w}, dict(zip(PLAYERS, distances, strict=True))

    return Program(
        {"pairs": pairs},
        [Phase("play", "pairs", update=rounds)],
        {
            "bilinear": Choice(("Dirac-GAN", "bilinear game"), label="game"),
            "h": Slider(0.2, 0.01, 1.0, log=True, label="learning rate"),
            "weight": Slider(0.5, 0.0, 4.0, label="weight of the penalties"),
            "limit": Slider(0.3, 0.05, 1.0, label="limit of the clipped weight"),
            "decay": Slider(0.98, 0.5, 0.999, label="decay of the average"),
        },
        lambda **_: {"w": pairs.w},
    )


def grid_program(hidden=(64, 64, 64), batch_size=128):
    """A GAN on the grid of 25 modes as a `Program`, with R1 and an average of G.

    The reader sets R1's weight, both rates and the average's decay. Views are 1000
    points of G and of its average, D's map, and what `count_modes` says of both.
    """
    G, average = (Generator((2,), hidden, 2, nn.Tanh) for _ in range(2))
    D = Discriminator((2,), hidden, nn.Tanh)
    points = grid_points(2000, torch.Generator().manual_seed(0))
    adam = Adam(betas=(0.5, 0.99))

    def d_loss(x, z, gamma, **_):
        penalty = r1_penalty(D, x)
        loss = discriminator_loss(G, D, x, z) + gamma / 2 * penalty
        return {"loss": loss, "slope": penalty.sqrt()}

    def g_loss(z, **_):
        return generator_loss(G, D, z)

    def follow(decay, **_):
        pairs = zip(average.named_parameters(), G.parameters(), strict=True)
        return {f"average.{k}": decay * a + (1 - decay) * w for (k, a), w in pairs}

    return Program(
        {"D": D, "G": G, "average": average},
        [
            Phase("D", "D", d_loss, adam, lr="lr_d"),
            Phase("G", "G", g_loss, adam, lr="lr_g"),
            Phase("average", "average", update=follow),
        ],
        {
            "x": Rows("target", batch_size),
            "z": Normal(batch_size, 2),
            "x_show": First("target", 600),
            "z_show": Normal(1000, 2),
            "gamma": Slider(0.0, 0.0, 5.0, label="weight of R1, γ"),
            "lr_d": Slider(2e-3, 1e-4, 2e-2, log=True, label="D's learning rate"),
            "lr_g": Slider(2e-3, 1e-4, 2e-2, log=True, label="G's learning rate"),
            "decay": Slider(0.995, 0.9, 0.999, label="decay of the average"),
        },
        partial(grid_views, G, D, average),
        {"target": {"25 modes": points}},
    )


def grid_views(G, D, average, x_show, z_show, **_):
    """Points of G and its average, D's map (48, 48), modes and good share of both."""
    fake, smooth = G(z_show), average(z_show)  # (1000, 2) each
    covered, good = count_modes(torch.stack((fake, smooth)))
    return {
        "real": x_show,
        "fake": fake,
        "smooth": smooth,
        "map": D(PLANE).sigmoid().view(48, 48),
        "modes": covered[0].float(),
        "modes_average": covered[1].float(),
        "good": good[0],
        "good_average": good[1],
    }


AXIS = torch.linspace(-10.5, 10.5, 48)
PLANE = torch.cartesian_prod(AXIS, AXIS).flip(1)  # rows of y from below, (2304, 2)


def dirac_panels():
    """Panels and curves of the lab that plays `dirac_program`."""
    from genlib.plot import PALETTE
    from genlib.widgets.training_lab import curve, panel, trail

    colours = [PALETTE[k] for k in (1, 0, 4, 2, 3, 8)]
    plane = panel(
        "Six ways to play one game",
        trail("w", PLAYERS.values(), colours=colours),
        extent=(-2.4, 2.4, -2.4, 2.4),
        axes=("θ: where G draws", "ψ: the slope of D"),
        description="Paths of six pairs of numbers from one start. The solution is the "
        "middle; with the R1 penalty the players spiral into it. In the Dirac-GAN the "
        "others circle it, closer or further; in the bilinear game simultaneous steps "
        "fly away.",
    )
    plots = [curve("distance from the solution", *PLAYERS.items(), log=True)]
    return [plane], plots


def grid_panels():
    """Panels and curves of the lab that plays `grid_program`."""
    from genlib.plot import PALETTE
    from genlib.widgets.training_lab import curve, heatmap, panel, points

    extent, axes = (-10.5, 10.5, -10.5, 10.5), ("x", "y")
    data = points("real", "real", colour=PALETTE[2], size=1.5)
    now = panel(
        "G now",
        heatmap("map", "D(x): real?"),
        data,
        points("fake", "generated", colour=PALETTE[1], size=1.5),
        extent=extent,
        axes=axes,
        description="Points that G draws now, over the discriminator's map of the "
        "plane and the 25 clouds of real points.",
    )
    smooth = panel(
        "Its average",
        data,
        points("smooth", "generated by the average", colour=PALETTE[0], size=1.5),
        extent=extent,
        axes=axes,
        description="Points drawn by the running average of the generator's weights.",
    )
    plots = [
        curve("losses", ("D_loss", "D"), ("G_loss", "G"), unit="nats"),
        curve("modes covered", ("modes", "G now"), ("modes_average", "average")),
        curve("share of good samples", ("good", "G now"), ("good_average", "average")),
        curve("slope of D at real points", ("D_slope", "slope"), log=True),
    ]
    return [now, smooth], plots
