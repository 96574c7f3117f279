r"""The variational autoencoder: an encoder guesses the cause of an image, a decoder
draws the image from it, and one bound on the log-likelihood trains both.

Kingma and Welling 2014, "Auto-Encoding Variational Bayes", arXiv:1312.6114; Rezende,
Mohamed and Wierstra 2014, arXiv:1401.4082. Importance-weighted bound: Burda, Grosse
and Salakhutdinov 2016, arXiv:1509.00519. Free bits: Kingma et al. 2016,
arXiv:1606.04934. Linear-Gaussian case: Tipping and Bishop 1999.

All log-probabilities are in nats. Images are float tensors (B, C, H, W) in 0..1.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from genlib.training import warmup_linear


class MLP(nn.Sequential):
    """Linear layers of the given sizes with an activation between them."""

    def __init__(self, *sizes, activation=nn.ReLU):
        layers = []
        for n_in, n_out in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(n_in, n_out), activation()]
        super().__init__(*layers[:-1])


class MLPEncoder(nn.Module):
    """Images (B, C, H, W) -> `outputs` numbers each, (B, outputs).

    For a VAE, `outputs` is twice the latent size: mu and logvar side by side.
    """

    def __init__(self, shape, hidden, outputs, activation=nn.ReLU):
        super().__init__()
        self.shape = tuple(shape)
        self.net = MLP(math.prod(shape), *hidden, outputs, activation=activation)

    def forward(self, x):
        return self.net(x.flatten(1))


class MLPDecoder(nn.Module):
    """Latent vectors (B, latent) -> logits of the pixels (B, C, H, W)."""

    def __init__(self, shape, hidden, latent, activation=nn.ReLU):
        super().__init__()
        self.shape, self.latent = tuple(shape), latent
        self.net = MLP(latent, *hidden, math.prod(shape), activation=activation)

    def forward(self, z):
        return self.net(z).unflatten(1, self.shape)  # (B, C, H, W)


class ConvEncoder(nn.Module):
    """Images (B, C, H, W) -> (B, outputs); two convolutions halve H and W twice."""

    def __init__(self, shape, channels, outputs):
        super().__init__()
        self.shape = c, h, w = tuple(shape)
        self.net = nn.Sequential(
            nn.Conv2d(c, channels, 4, stride=2, padding=1),  # (B, channels, H/2, W/2)
            nn.SiLU(),
            nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),  # (B, 2 * channels * H/4 * W/4)
            nn.Linear(2 * channels * (h // 4) * (w // 4), outputs),
        )

    def forward(self, x):
        return self.net(x)


class ConvDecoder(nn.Module):
    """Latent vectors (B, latent) -> logits (B, C, H, W); the encoder's mirror image."""

    def __init__(self, shape, channels, latent):
        super().__init__()
        c, h, w = shape
        self.shape, self.latent = (c, h, w), latent
        if h % 4 or w % 4:
            raise ValueError(f"images of {h} x {w}: both sides must be multiples of 4")
        self.net = nn.Sequential(
            nn.Linear(latent, 2 * channels * (h // 4) * (w // 4)),
            nn.Unflatten(1, (2 * channels, h // 4, w // 4)),
            nn.SiLU(),
            nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(channels, c, 4, stride=2, padding=1),
        )

    def forward(self, z):
        return self.net(z)


def reparameterize(mu, logvar, eps=None):
    r"""Draw $z = \mu + \sigma \epsilon$, so that gradients reach mu and logvar.

    All are (..., Z). Kingma and Welling 2014, section 2.4. `eps` is standard normal
    noise, drawn if not given.
    """
    if eps is None:
        eps = torch.randn_like(mu)
    return mu + torch.exp(0.5 * logvar) * eps


def gaussian_kl(mu, logvar):
    r"""$D_{KL}(N(\mu, \sigma^2) \| N(0, 1))$ of each dimension, in nats: (..., Z).

    Kingma and Welling 2014, appendix B; the sum over Z is the divergence of the whole.
    """
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar)


def log_likelihood(x, logits, n=1):
    r"""$\log p(x \mid z)$ of images whose pixels are $k/n$, k of n points inked: (B,).

    Each pixel is Binomial: $\log \binom{n}{k} + k \log p + (n - k) \log(1 - p)$ with
    $p = \mathrm{sigmoid}(\mathrm{logits})$. For n = 1 that is Bernoulli, minus the
    binary cross-entropy. Grey pixels with n = 1 are the field's custom, and then this
    is no log-probability of the grey image, only a score. For n > 1 the
    coefficient is that of the nearest k, and `check_images` refuses pixels in between.
    """
    log_prob = -n * F.binary_cross_entropy_with_logits(logits, x, reduction="none")
    if n > 1:
        log_choose = [math.log(math.comb(n, k)) for k in range(n + 1)]
        log_prob = log_prob + x.new_tensor(log_choose)[(n * x).round().long()]
    return log_prob.flatten(1).sum(1)


class VAE(nn.Module):
    """A probabilistic encoder q(z|x) and decoder p(x|z), with prior p(z) = N(0, I).

    `encoder` maps images to (B, 2 Z), `decoder` (B, Z) to logits; `n` is the number of
    points in a pixel (see `log_likelihood`).
    """

    def __init__(self, encoder, decoder, n=1):
        super().__init__()
        self.encoder, self.decoder, self.n = encoder, decoder, n

    def encode(self, x):
        """Images (B, C, H, W) -> mu and logvar of q(z|x), each (B, Z)."""
        numbers, latent = self.encoder(x), self.decoder.latent
        if numbers.shape[1] != 2 * latent:
            raise ValueError(
                f"the encoder gives {numbers.shape[1]} numbers an image; for mu and "
                f"logvar of this decoder's {latent} it must give {2 * latent}"
            )
        mu, logvar = numbers.chunk(2, dim=1)
        return mu, logvar

    def decode(self, z):
        """Latent vectors (B, Z) -> logits (B, C, H, W)."""
        return self.decoder(z)

    def log_likelihood(self, x, z):
        """log p(x|z) in nats, (B,)."""
        return log_likelihood(x, self.decode(z), self.n)

    @torch.no_grad()
    def reconstruct(self, x):
        """Images (B, C, H, W) -> mean images decoded from mu, values in 0..1."""
        return self.decode(self.encode(x)[0]).sigmoid()

    @torch.no_grad()
    def sample(self, count, generator=None):
        """Draw `count` latent vectors from the prior; return their mean images."""
        z = torch.randn(count, self.decoder.latent, generator=generator)
        return self.decode(z.to(next(self.parameters()).device)).sigmoid()


def elbo_terms(vae, x, eps=None):
    """The two terms of the bound, one sample of z each: recon (B,) and kl (B, Z).

    The evidence lower bound of an image is recon - kl.sum(); nats.
    """
    mu, logvar = vae.encode(x)  # (B, Z) each
    z = reparameterize(mu, logvar, eps)
    return vae.log_likelihood(x, z), gaussian_kl(mu, logvar)


def elbo_loss(recon, kl, beta=1.0, free_bits=0.0):
    """The loss of a VAE from its two terms: {"loss", "recon", "kl"}, nats per image.

    loss = -recon + beta * kl. Higgins et al. 2017 weigh the divergence with `beta`.
    `free_bits` (nats per latent dimension) is what a dimension may tell about the image
    without being charged for it (Kingma et al. 2016).
    """
    recon, kl = recon.mean(), kl.mean(0)  # scalar, (Z,)
    charged = kl.clamp(min=free_bits).sum()
    return {"loss": beta * charged - recon, "recon": recon, "kl": kl.sum()}


def negative_elbo(vae, x, beta=1.0, free_bits=0.0):
    """The loss on images x, see `elbo_loss`; its value is the negative bound at beta 1.

    Raises ValueError if `x` is not (B, C, H, W) of the model's shape, in 0..1, or not
    of whole points.
    """
    # On a GPU a look at the values would make it wait at each step.
    check_images(x, vae.encoder.shape, vae.n, look=x.device.type == "cpu")
    return elbo_loss(*elbo_terms(vae, x), beta, free_bits)


def make_step(vae, max_steps, lr=8e-3, beta=1.0, free_bits=0.0):
    """The training step of a run of `max_steps`: step((x, y)) -> metrics, for `fit`.

    Adam (fused: all weights in one call), its rate rising to `lr` and falling to zero;
    the labels y are not used.
    """
    optimizer = torch.optim.Adam(vae.parameters(), lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: warmup_linear(k, max_steps)
    )

    def step(batch):
        x, _ = batch  # (B, C, H, W)
        # Score: how good is the bound on this batch?
        metrics = negative_elbo(vae, x, beta, free_bits)
        # Blame: how does each weight change it?
        optimizer.zero_grad()
        metrics["loss"].backward()
        # Move: a small step against the gradient
        optimizer.step()
        schedule.step()
        return metrics

    return step


@torch.no_grad()
def evaluate(vae, x, batch_size=1000):
    """The bound and its parts on all of x: {"elbo", "recon", "kl"}, nats per image."""
    check_images(x, vae.encoder.shape, vae.n)
    recon, kl = zip(*(elbo_terms(vae, b) for b in x.split(batch_size)), strict=True)
    recon, kl = torch.cat(recon).mean().item(), torch.cat(kl).sum(1).mean().item()
    return {"elbo": recon - kl, "recon": recon, "kl": kl}


@torch.no_grad()
def iwae_bound(vae, x, k):
    r"""Importance-weighted bound on $\log p(x)$ with k samples of z, nats: (B,).

    $\log \frac1k \sum_i p(x \mid z_i) p(z_i) / q(z_i \mid x)$; k = 1 is the ELBO, and
    the bound rises to $\log p(x)$ with k (Burda et al. 2016, section 3).
    """
    check_images(x, vae.encoder.shape, vae.n)
    if k < 1:
        raise ValueError(f"k is {k}; the bound needs at least one sample")
    mu, logvar = vae.encode(x)  # (B, Z)
    log_w = []
    for _ in range(k):
        eps = torch.randn_like(mu)
        z = reparameterize(mu, logvar, eps)
        log_ratio = 0.5 * (eps.square() - z.square() + logvar).sum(1)  # log p(z)/q(z|x)
        log_w.append(vae.log_likelihood(x, z) + log_ratio)
    return torch.stack(log_w).logsumexp(0) - math.log(k)


def check_images(x, shape, n=1, look=True):
    """ValueError unless x is (B, *shape), floats in 0..1, multiples of 1/n if n > 1."""
    if x.shape[1:] != tuple(shape):
        raise ValueError(
            f"images have shape {tuple(x.shape)}; this model was built for "
            f"(B, {', '.join(map(str, shape))})"
        )
    if not x.is_floating_point():
        raise ValueError(
            f"images are {x.dtype}; expected floats in 0..1, as Images.x() gives"
        )
    if look and len(x) and not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(
            f"images have values from {x.min():g} to {x.max():g}; expected 0..1. "
            "Divide by the largest value, as Images.x() does"
        )
    if look and n > 1:
        between = (n * x - (n * x).round()).abs() > 0.01
        if between.any():
            raise ValueError(
                f"images have a value {x[between][0]:g}; with n = {n} each pixel is a "
                f"multiple of 1/{n}. Round them, or build the model with n = 1"
            )


def interpolate(a, b, steps):
    """Points on the straight line from a to b, both (Z,), ends included: (steps, Z)."""
    weight = torch.linspace(0, 1, steps, device=a.device)[:, None]
    return a + weight * (b - a)


class ImageDecoder(nn.Module):
    """A VAE's decoder as a picture needs it: (B, Z) -> mean images in 0..1.

    The form in which the page runs the decoder.
    """

    def __init__(self, vae):
        super().__init__()
        self.decoder = vae.decoder

    def forward(self, z):
        return self.decoder(z).sigmoid()


class LinearGaussian:
    r"""A VAE that can be solved on paper: $x = W z + b$ plus noise, $z \sim N(0, I)$.

    Probabilistic PCA (Tipping and Bishop 1999). `weight` is (D, Z), `bias` (D,),
    `sigma` the noise's standard deviation; x is (B, D).
    """

    def __init__(self, weight, bias, sigma):
        self.weight, self.bias, self.sigma = weight, bias, sigma

    def log_marginal(self, x):
        r"""$\log p(x) = \log N(x; b, W W^T + \sigma^2 I)$: (B,)."""
        covariance = self.weight @ self.weight.T
        covariance = covariance + self.sigma**2 * torch.eye(len(covariance)).to(x)
        normal = torch.distributions.MultivariateNormal(self.bias, covariance)
        return normal.log_prob(x)

    def posterior(self, x):
        """The exact p(z|x): means (B, Z) and their common covariance (Z, Z)."""
        precision = self.weight.T @ self.weight / self.sigma**2
        covariance = (torch.eye(len(precision)).to(x) + precision).inverse()
        return (x - self.bias) @ self.weight @ covariance / self.sigma**2, covariance

    def elbo(self, x, mu, logvar):
        """The bound with q(z|x) = N(mu, exp(logvar)), expectations exact: (B,)."""
        error = (x - self.bias - mu @ self.weight.T).square().sum(1)
        spread = logvar.exp() @ self.weight.square().sum(0)  # z's variance, seen in x
        log_norm = len(self.bias) * math.log(2 * math.pi * self.sigma**2)
        recon = -0.5 * ((error + spread) / self.sigma**2 + log_norm)
        return recon - gaussian_kl(mu, logvar).sum(1)


class AutoregressiveDecoder(nn.Module):
    """A decoder that also reads the pixels before the one it draws: (z, x) -> logits.

    Each pixel has its own `hidden` tanh units over the pixels above and to the left,
    in reading order; z (B, latent) only shifts the logits. A masked network in the
    manner of MADE (Germain et al. 2015, arXiv:1502.03509).
    """

    def __init__(self, shape, hidden, latent):
        super().__init__()
        self.shape, self.latent, self.hidden = tuple(shape), latent, hidden
        d = math.prod(shape)
        before = torch.tril(torch.ones(d, d), -1)  # row i: which pixels i may read
        self.register_buffer("mask", before.repeat_interleave(hidden, 0))
        self.weight = nn.Parameter(0.1 * torch.randn(d * hidden, d))  # (d hidden, d)
        self.bias = nn.Parameter(torch.zeros(d * hidden))
        self.out = nn.Parameter(0.1 * torch.randn(d, hidden))
        self.from_z = nn.Linear(latent, d)

    def forward(self, z, x):
        hidden = F.linear(x.flatten(1), self.weight * self.mask, self.bias).tanh()
        hidden = hidden.unflatten(1, (-1, self.hidden))  # (B, d, hidden)
        logits = (hidden * self.out).sum(2) + self.from_z(z)  # (B, d)
        return logits.unflatten(1, self.shape)


class AutoregressiveVAE(VAE):
    """A VAE whose decoder sees the true earlier pixels while it is trained."""

    def decode(self, z):
        raise TypeError(
            "this decoder has no image for z alone, it draws pixel by pixel; use "
            "sample(count), or log_likelihood(x, z)"
        )

    def log_likelihood(self, x, z):
        return log_likelihood(x, self.decoder(z, x), self.n)

    @torch.no_grad()
    def sample(self, count, generator=None):
        """Draw images pixel by pixel, each from its distribution given those before."""
        device = next(self.parameters()).device
        z = torch.randn(count, self.decoder.latent, generator=generator).to(device)
        x = torch.zeros(count, *self.decoder.shape, device=device)
        points = torch.full((count,), float(self.n))
        for i in range(math.prod(self.decoder.shape)):
            p = self.decoder(z, x).flatten(1)[:, i].sigmoid().cpu()
            k = torch.binomial(points, p, generator=generator)
            x.flatten(1)[:, i] = (k / self.n).to(device)
        return x


def digits_program():
    """The training of a two-number VAE on the digits, for the page (see `live`).

    The reader moves beta and the rate; the views are the encoded digits, (500, 2), and
    what a grid of points in -3..3 decodes to, (100, 1, 8, 8).
    """
    from genlib.data import digits
    from genlib.live import First, Normal, Phase, Program, Rows, Slider
    from genlib.training import Adam

    shape = (1, 8, 8)
    encoder = MLPEncoder(shape, (256, 128), 4, nn.SiLU)
    vae = VAE(encoder, MLPDecoder(shape, (128, 256), 2, nn.SiLU), n=16)
    line = torch.linspace(-3, 3, 10)
    grid = torch.cartesian_prod(-line, line).flip(1)  # rows from the top, (100, 2)

    def loss(x, eps, beta):
        return elbo_loss(*elbo_terms(vae, x, eps), beta)

    def views(shown):
        return {"codes": vae.encode(shown)[0], "images": vae.decode(grid).sigmoid()}

    return Program(
        {"vae": vae},
        [Phase("vae", "vae", loss, Adam(), "lr")],
        {
            "x": Rows("digits", 128),
            "eps": Normal(128, 2),
            "beta": Slider(1.0, 0.0, 4.0, label="β"),
            "lr": Slider(3e-3, 1e-4, 2e-2, log=True, label="learning rate"),
            "shown": First("digits", 500),
        },
        views,
        {"digits": {"digits": digits().x()}},
    )
