r"""Generative adversarial networks: a generator turns noise into examples, a
discriminator tells them from real ones, and each learns only from playing the other.

Goodfellow et al. 2014, "Generative Adversarial Nets", arXiv:1406.2661. Vanishing
gradients: Arjovsky and Bottou 2017, arXiv:1701.04862. Frechet distance: Heusel et al.
2017, arXiv:1706.08500; Maxout: Goodfellow et al. 2013, arXiv:1302.4389.

Losses and divergences are in nats. D returns logits: the log-odds that an example is
real. Images are float tensors (B, C, H, W) in 0..1, points are (B, 2).
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from genlib.data import toy2d
from genlib.live import Choice, First, Normal, Phase, Program, Rows, Slider
from genlib.training import Adam
from genlib.vae import MLP

# Of a wrong answer some gradient must be left: 0.2 below zero (Radford et al. 2016).
LeakyReLU = partial(nn.LeakyReLU, 0.2)


# --- the two players ------------------------------------------------------------------


class Generator(nn.Module):
    """Noise z (B, latent) -> examples (B, *shape), by a multilayer perceptron.

    `last` brings the numbers into the data's range: `nn.Sigmoid` for images in 0..1,
    nothing for points. Raises ValueError for noise of another size.
    """

    def __init__(self, shape, hidden, latent, activation=LeakyReLU, last=nn.Identity):
        super().__init__()
        self.shape, self.latent = tuple(shape), latent
        self.net = MLP(latent, *hidden, math.prod(shape), activation=activation)
        self.last = last()

    def forward(self, z):
        if z.shape[1:] != (self.latent,):
            raise ValueError(
                f"noise has shape {tuple(z.shape)}; this generator takes "
                f"(B, {self.latent})"
            )
        return self.last(self.net(z)).unflatten(1, self.shape)


class Discriminator(nn.Module):
    """Examples (B, *shape) -> logits (B,): the log-odds that each of them is real.

    Raises ValueError for examples of another shape.
    """

    def __init__(self, shape, hidden, activation=LeakyReLU):
        super().__init__()
        self.shape = tuple(shape)
        self.net = MLP(math.prod(shape), *hidden, 1, activation=activation)

    def forward(self, x):
        if x.shape[1:] != self.shape:
            raise ValueError(
                f"examples have shape {tuple(x.shape)}; this discriminator was built "
                f"for (B, {', '.join(map(str, self.shape))})"
            )
        return self.net(x.flatten(1))[:, 0]


@torch.no_grad()
def sample(G, count, generator=None):
    """Draw `count` examples from G, on its device: (count, *shape)."""
    z = torch.randn(count, G.latent, generator=generator)
    return G(z.to(next(G.parameters()).device))


# --- the game -------------------------------------------------------------------------


def discriminator_loss(G, D, x, z):
    r"""$-V(D, G)$: D's cross-entropy on real x (B, ...) and generated G(z), in nats.

    $V = E_x[\log D(x)] + E_z[\log(1 - D(G(z)))]$ (Goodfellow et al. 2014, equation 1),
    where $\log D = -\mathrm{softplus}(-l)$ and $\log(1 - D) = -\mathrm{softplus}(l)$
    of the logit l. G gets no gradient: this is D's move.
    """
    with torch.no_grad():
        x_fake = G(z)
    return F.softplus(-D(x)).mean() + F.softplus(D(x_fake)).mean()


def generator_loss(G, D, z, saturating=0.0):
    r"""How badly G(z) fools D, mean over the batch, in nats.

    Non-saturating, the default: $-\log D(G(z))$. `saturating` = 1 is the other half of
    the game, $\log(1 - D(G(z)))$ (Goodfellow et al. 2014, section 3); a number between
    mixes the two.
    """
    logits = D(G(z))  # (B,)
    fool, zero_sum = F.softplus(-logits), -F.softplus(logits)
    return ((1 - saturating) * fool + saturating * zero_sum).mean()


def make_step(G, D, lr_g=1e-3, lr_d=1e-3, betas=(0.5, 0.99), saturating=0.0):
    """One round of the game: step(batch) -> metrics, for `genlib.training.fit`.

    A batch is x, or (x, y) with labels that are not used. Metrics: both losses, in
    nats, each before the move that it asks for.
    """
    adam_d = torch.optim.Adam(D.parameters(), lr_d, betas)
    adam_g = torch.optim.Adam(G.parameters(), lr_g, betas)

    def step(batch):
        x = batch if isinstance(batch, torch.Tensor) else batch[0]
        # D's move: learn to tell x from what G draws now
        loss_d = discriminator_loss(G, D, x, torch.randn(len(x), G.latent).to(x))
        adam_d.zero_grad()
        loss_d.backward()
        adam_d.step()
        # G's move: D stands still and only tells where to go
        D.requires_grad_(False)
        loss_g = generator_loss(G, D, torch.randn(len(x), G.latent).to(x), saturating)
        adam_g.zero_grad()
        loss_g.backward()
        adam_g.step()
        D.requires_grad_(True)
        return {"loss_d": loss_d, "loss_g": loss_g}

    return step


@torch.no_grad()
def follow(average, module, rate=0.01):
    """Move a copy's parameters a little towards the module's: a mean over past steps.

    average <- (1 - rate) average + rate module, in place; a step t back counts with
    weight rate (1 - rate)^t. The generator that is shown is usually such a mean (Yazici
    et al. 2019, arXiv:1806.04498).
    """
    for slow, fast in zip(average.parameters(), module.parameters(), strict=True):
        slow.lerp_(fast, rate)


# --- what the game measures -----------------------------------------------------------


def optimal_discriminator(log_p, log_q):
    r"""Logits of the best D against a fixed G: $\log p(x) - \log q(x)$.

    `log_p` and `log_q` are the log densities of data and generator at the same points;
    $D^*(x) = p(x) / (p(x) + q(x))$ is the sigmoid (Goodfellow et al. 2014, equation 2).
    """
    return log_p - log_q


def js_divergence(p, q):
    r"""Jensen-Shannon divergence of p and q (..., K): 0 if equal, log 2 if apart.

    $\frac12 D_{KL}(p \| m) + \frac12 D_{KL}(q \| m)$ with $m = (p + q) / 2$. p and q
    are probabilities of K cells: they sum to 1. In nats.
    """
    m = (p + q) / 2
    tiny = torch.finfo(m.dtype).tiny  # for 0 log 0 = 0
    kl_p = (p * ((p + tiny) / (m + tiny)).log()).sum(-1)
    kl_q = (q * ((q + tiny) / (m + tiny)).log()).sum(-1)
    return (kl_p + kl_q) / 2


def soft_histogram(x, axis, width):
    """Share of the points x (N, 2) in each cell of a grid: (n, n), row 0 lowest.

    `axis` (n,) holds the cells' middles in both directions. Each point is spread over
    the cells near it by a Gaussian of standard deviation `width`, so that the shares
    move smoothly with the points; what lies outside counts at the border.
    """
    near = [-0.5 * ((x[:, k, None] - axis) / width).square() for k in (0, 1)]
    across, up = (log_share.softmax(1) for log_share in near)  # (N, n) each
    return up.T @ across / len(x)


def frechet_distance(a, b):
    r"""Squared distance of two Gaussians fitted to features a (N, F) and b (M, F).

    $|\mu_a - \mu_b|^2 + \mathrm{tr}(C_a + C_b - 2 (C_a C_b)^{1/2})$ (Dowson and Landau
    1982); in the features of an Inception network it is the FID (Heusel et al. 2017).
    Computed in double precision. Raises ValueError for fewer than two examples.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"{len(a)} and {len(b)} examples; a covariance needs two")
    a, b = a.double(), b.double()
    cov_a, cov_b = (torch.atleast_2d(x.T.cov()) for x in (a, b))
    # tr (C_a C_b)^1/2 is the sum of the singular values of C_a^1/2 C_b^1/2.
    cross = torch.linalg.svdvals(root(cov_a) @ root(cov_b)).sum()
    distance = (a.mean(0) - b.mean(0)).square().sum()
    return distance + cov_a.trace() + cov_b.trace() - 2 * cross


def root(cov):
    """Symmetric square root of a covariance (F, F)."""
    values, vectors = torch.linalg.eigh(cov)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


# --- the paper's networks -------------------------------------------------------------


class Maxout(nn.Linear):
    """Linear layers that compete: each output is the largest of `pieces`."""

    def __init__(self, n_in, n_out, pieces=5):
        super().__init__(n_in, n_out * pieces)
        self.pieces = pieces

    def forward(self, x):
        return super().forward(x).unflatten(1, (-1, self.pieces)).amax(2)


def paper_gan():
    """G and D as the paper had them for MNIST; D drops inputs and units in training.

    Sizes from the authors' published configuration, mnist.yaml of
    github.com/goodfeli/adversarial.
    """
    G = Generator((1, 28, 28), (1200, 1200), 100, nn.ReLU, nn.Sigmoid)
    D = nn.Sequential(
        nn.Flatten(),
        nn.Dropout(0.2),
        Maxout(784, 240),
        nn.Dropout(0.5),
        Maxout(240, 240),
        nn.Dropout(0.5),
        nn.Linear(240, 1),
        nn.Flatten(0),  # logits (B,)
    )
    return G, D


# --- the game on a plane, for the page ------------------------------------------------

TARGETS = ("ring", "grid", "spiral", "moons")


def toy_program(hidden=(64, 64), n=2000):
    """The game in the plane as a `Program`: `n` points of each of TARGETS to learn.

    The rounds are those of `make_step`, the losses those above; the reader sets
    learning rates, which loss G follows, and how often each player moves.
    """
    G = Generator((2,), hidden, 2, nn.Tanh)
    D = Discriminator((2,), hidden, nn.Tanh)
    generator = torch.Generator().manual_seed(0)
    adam = Adam(betas=(0.5, 0.99))

    def d_loss(x, z):
        return discriminator_loss(G, D, x, z)

    def g_loss(z, saturating):
        return generator_loss(G, D, z, saturating)

    return Program(
        modules={"D": D, "G": G},
        phases=[
            Phase("D", "D", d_loss, adam, lr="lr_d", every="d_every"),
            Phase("G", "G", g_loss, adam, lr="lr_g", every="g_every"),
        ],
        feeds={
            "x": Rows("target", 256),
            "z": Normal(256, 2),
            "x_show": First("target", 1000),
            "z_show": Normal(1000, 2),
            "saturating": Choice(
                ("non-saturating", "saturating"), label="generator's loss"
            ),
            "lr_d": Slider(4e-3, 1e-4, 2e-2, log=True, label="D's learning rate"),
            "lr_g": Slider(2e-3, 1e-4, 2e-2, log=True, label="G's learning rate"),
            "d_every": Slider(1, 1, 1000, True, True, label="D moves every"),
            "g_every": Slider(1, 1, 1000, True, True, label="G moves every"),
        },
        views=partial(toy_views, G, D),
        tables={"target": {name: toy2d(name, n, generator) for name in TARGETS}},
    )


def toy_views(G, D, x_show, z_show, saturating=0.0):
    """What the plane shows: points, D's map, G's warped grid, pulls and a distance.

    A pull is minus the gradient of G's loss by one generated point: where D sends it.
    """
    fake = G(z_show).detach().requires_grad_()  # (1000, 2)

    def here(x):
        return x

    loss = len(fake) * generator_loss(here, D, fake, saturating)  # of each by itself
    pull = -torch.autograd.grad(loss, fake)[0]
    shares = [soft_histogram(x, CELLS, 0.15).flatten() for x in (x_show, fake)]
    return {
        "real": x_show,
        "fake": fake,
        "map": D(PLANE).sigmoid().view(48, 48),
        "mesh": G(MESH.flatten(0, 1)).view(MESH.shape),
        "pull": torch.cat((fake, pull), 1)[:80],
        "strength": pull.norm(dim=1).mean(),
        "js": js_divergence(*shares),
    }


CELLS = torch.linspace(-4, 4, 48)
PLANE = torch.cartesian_prod(CELLS, CELLS).flip(1)  # rows of y from below, (2304, 2)


def mesh(lines=13, points=25, edge=2.5):
    """A square grid of z as polylines, one way and the other: (2 lines, points, 2)."""
    at, along = torch.linspace(-edge, edge, lines), torch.linspace(-edge, edge, points)
    one = torch.cartesian_prod(at, along).view(lines, points, 2)
    return torch.cat((one, one.flip(2)))


MESH = mesh()


def toy_panels():
    """Panels and curves of the lab that plays `toy_program`."""
    from genlib.plot import PALETTE
    from genlib.widgets.training_lab import (
        arrows,
        curve,
        heatmap,
        lines,
        panel,
        points,
    )

    extent, axes = (-4, 4, -4, 4), ("x", "y")
    game = panel(
        "The game",
        heatmap("map", "D(x): real?"),
        points("real", "real", colour=PALETTE[2], size=1.5),
        points("fake", "generated", colour=PALETTE[1], size=1.5),
        arrows("pull", "where D sends them", scale=0.3, colour=PALETTE[9]),
        extent=extent,
        axes=axes,
        draw="target",
        description="Real and generated points over the discriminator's map of the "
        "plane, with arrows that show where it sends the generated points.",
    )
    warp = panel(
        "What G does to its noise",
        lines("mesh", "grid of z", colour=PALETTE[0]),
        points("fake", "generated", colour=PALETTE[1], size=1.5),
        extent=extent,
        axes=axes,
        description="The square grid of the noise as the generator bends it, and the "
        "generated points.",
    )
    log2 = math.log(2)
    plots = [
        curve("losses", ("D_loss", "D"), ("G_loss", "G"), unit="nats"),
        curve("distance", ("js", "JSD"), unit="nats", lines=[(log2, "log 2")]),
        curve("mean pull on a generated point", ("strength", "pull"), log=True),
    ]
    return [game, warp], plots
