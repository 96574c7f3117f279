"""genlib's GAN against the widely used MLP-GAN configuration, on MNIST: `make bench`.

How many CPU seconds until generated digits are nearer to real ones than a Gaussian with
the pixels' mean and covariance is? Nearness is the Frechet distance, in the features of
one small classifier that the bench trains first and then freezes, between 10,000
generated digits and the 10,000 of the test set; it is taken outside the clock, by the
same code for all. The target, 350, lies below that Gaussian's distance of some 390.
One thread, all in one process, taking turns, several seeds. Three contenders:

peer  Written from its published configuration: a generator 100-128-256-512-1024-784
      with batch norm (eps 0.8) from the second layer on, a discriminator
      784-512-256-1, both with LeakyReLU at 0.2, tanh and sigmoid at the ends, binary
      cross-entropy, Adam at 2e-4 with betas 0.5 and 0.999, batches of 64 from a
      DataLoader that makes of each image a PIL image, a tensor and -1..1, one by one.
      Its resizing to 28 pixels leaves images of 28 pixels as they are. Where its
      distance first crosses the target, the seconds are interpolated. It has five
      epochs; where they are not enough, genlib is faster by at least what they took.
same  The same layers and activations trained with genlib: batches gathered from
      memory, losses from logits, fused Adam at a five times higher rate that falls at
      the end, and no gradients for the player that stands still. (An average of the
      generator's weights was tried and was worse in so short a run.)
free  Smaller networks, trained alike.

A run of genlib's counts only if it ends at or below the target. The distance between
other real digits and the test set is the floor; it and the Gaussian's are given too.
"""

import argparse
import os
import statistics
import sys
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from bench.harness import Clock, gemm_lines, gemm_probe, machine, store
from bench.vae import ImageFiles, crossing
from genlib.data import DataError, Gaussian, available, batches, load
from genlib.gan import (
    Discriminator,
    Generator,
    LeakyReLU,
    discriminator_loss,
    frechet_distance,
    generator_loss,
)
from genlib.training import fit, seed_everything

TARGET = 350.0  # squared: better than a Gaussian's pixels
EPOCHS = 5  # of the peer, at most
SAMPLES = 10_000
RESULTS = Path(__file__).parent / "results" / "gan.json"


# --- the peer -------------------------------------------------------------------------


class NormalizedFiles(ImageFiles):
    """MNIST as an image data set hands it out, each image brought to -1..1."""

    def __getitem__(self, index):
        pixels, label = super().__getitem__(index)
        mean, std = torch.as_tensor([0.5]), torch.as_tensor([0.5])
        pixels = pixels.clone().sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))
        return pixels, label  # (1, 28, 28)


def peer_players():
    """G: noise (B, 100) -> images (B, 784) in -1..1; D: images -> probabilities."""
    sizes = (128, 256, 512, 1024)
    layers = [nn.Linear(100, 128), nn.LeakyReLU(0.2, inplace=True)]
    for n_in, n_out in zip(sizes, sizes[1:], strict=False):
        norm = nn.BatchNorm1d(n_out, eps=0.8)
        layers += [nn.Linear(n_in, n_out), norm, nn.LeakyReLU(0.2, inplace=True)]
    G = nn.Sequential(*layers, nn.Linear(1024, 784), nn.Tanh())
    D = nn.Sequential(
        nn.Linear(784, 512),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Linear(512, 256),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Linear(256, 1),
        nn.Sigmoid(),
    )
    return G, D


def peer_step(G, D):
    """One round as that configuration plays it: G first, then D."""
    betas = (0.5, 0.999)
    adam_g, adam_d = (torch.optim.Adam(x.parameters(), 2e-4, betas) for x in (G, D))
    bce = nn.BCELoss()

    def step(x):
        real, fake = torch.ones(len(x), 1), torch.zeros(len(x), 1)
        adam_g.zero_grad()
        x_fake = G(torch.randn(len(x), 100))
        loss_g = bce(D(x_fake), real)
        loss_g.backward()
        adam_g.step()
        adam_d.zero_grad()
        loss_d = (bce(D(x.flatten(1)), real) + bce(D(x_fake.detach()), fake)) / 2
        loss_d.backward()
        adam_d.step()
        return loss_d.item(), loss_g.item()  # it prints both in every step

    return step


def run_peer(train, distance, seed, target=TARGET, max_epochs=EPOCHS, part=469):
    """Train until the target is crossed; the times to it, looked at each `part` steps.

    `whole` counts its data path and its steps, `compute` the steps alone.
    """
    seed_everything(seed)
    G, D = peer_players()
    step = peer_step(G, D)
    loader = DataLoader(NormalizedFiles(train), batch_size=64, shuffle=True)
    whole, compute = Clock(), Clock()

    def draw(z):  # in training mode, as it draws its own pictures
        return (G(z).unflatten(1, (1, 28, 28)) + 1) / 2

    curve = [(0.0, 0.0, distance(draw))]
    for _ in range(max_epochs):
        x_batches = iter(loader)
        while True:
            with whole:
                done = 0
                for x, _ in islice(x_batches, part):
                    with compute:
                        step(x)
                    done += 1
            if done:
                curve.append((whole.seconds, compute.seconds, distance(draw)))
            if curve[-1][2] <= target:
                return found(curve, target)
            if done < part:
                break
    return found(curve, target)


def found(curve, target):
    """The crossing, all seconds spent, and the whole curve."""
    points = [[round(v, 3) for v in point] for point in curve]
    whole, compute, _ = curve[-1]
    spent = {"whole": whole, "compute": compute}
    return crossing(curve, target) | {"spent": spent, "curve": points}


# --- genlib's -------------------------------------------------------------------------


def normed_players(hidden, d_hidden, latent, eps):
    """G and D of the library; G gets batch norm from its second layer on."""
    G = Generator((1, 28, 28), hidden, latent, last=nn.Tanh)
    first, *middle, last = [m for m in G.net if isinstance(m, nn.Linear)]
    layers = [first, LeakyReLU()]
    for linear in middle:
        norm = nn.BatchNorm1d(linear.out_features, eps)
        layers += [linear, norm, LeakyReLU()]
    G.net = nn.Sequential(*layers, last)
    return G, Discriminator((1, 28, 28), d_hidden)


# Steps, rates and sizes found by some ten trials on seed 0, judged by the distance.
CONTENDERS = {
    "same": {
        "sizes": ((128, 256, 512, 1024), (512, 256), 100, 0.8),
        "max_steps": 1500,
        "lr": 1e-3,
    },
    "free": {
        "sizes": ((128, 256, 512), (256, 128), 64, 0.8),
        "max_steps": 1500,
        "lr": 1e-3,
    },
}


def rate(k, max_steps):
    """Factor on the learning rate: up over the first 5 %, down over the last half."""
    return min(1.0, (k + 1) / (0.05 * max_steps), (max_steps - k) / (0.5 * max_steps))


def genlib_step(G, D, max_steps, lr):
    """One round for D and G on one batch of noise, with the library's losses."""
    betas = (0.5, 0.99)  # the library's
    adams = [torch.optim.Adam(x.parameters(), lr, betas, fused=True) for x in (D, G)]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(adam, lambda k: rate(k, max_steps))
        for adam in adams
    ]
    adam_d, adam_g = adams

    def drawn(x_fake):  # a generator whose noise is what it has drawn already
        return x_fake

    def step(x):
        x_fake = G(torch.randn(len(x), G.latent))
        loss_d = discriminator_loss(drawn, D, x, x_fake.detach())
        adam_d.zero_grad()
        loss_d.backward()
        adam_d.step()
        D.requires_grad_(False)
        loss_g = generator_loss(drawn, D, x_fake)
        adam_g.zero_grad()
        loss_g.backward()
        adam_g.step()
        D.requires_grad_(True)
        for schedule in schedules:
            schedule.step()
        return {"loss_d": loss_d, "loss_g": loss_g}

    return step


def run_genlib(train, distance, seed, sizes, max_steps, lr):
    """Train once, to the end of the schedule; seconds as in `run_peer`."""
    whole, compute = Clock(), Clock()
    with whole:
        seed_everything(seed)
        G, D = normed_players(*sizes)
        play = genlib_step(G, D, max_steps, lr)

        def step(batch):
            x = 2 * batch[0] - 1
            with compute:
                return play(x)

        fit(step, batches(train, 64, seed), max_steps, progress=False)
    G.eval()
    loss = distance(lambda z: (G(z) + 1) / 2, G.latent)
    return {"whole": whole.seconds, "compute": compute.seconds, "loss": loss}


# --- the same measure for all ---------------------------------------------------------


class Judge(nn.Module):
    """A small classifier of digits; distances are taken in its 64 last features."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.body(x))


def train_judge(train, max_steps=1400):
    """A classifier trained from a fixed seed, then frozen."""
    seed_everything(0)
    judge = Judge()
    optimizer = torch.optim.Adam(judge.parameters(), 2e-3, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, max_steps)

    def step(batch):
        loss = F.cross_entropy(judge(batch[0]), batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        return {"loss": loss}

    fit(step, batches(train, 128, 0), max_steps, progress=False)
    return judge.requires_grad_(False).eval()


@torch.no_grad()
def features(judge, x):
    """Features (N, 64) of images x (N, 1, 28, 28) in 0..1."""
    return torch.cat([judge.body(part) for part in x.split(1000)])


def make_distance(judge, test, samples=SAMPLES):
    """distance(draw, latent): of `samples` images that draw(z) makes, to the test set.

    The noise is the same in each call with the same `latent`, its size.
    """
    real = features(judge, test.x())

    @torch.no_grad()
    def distance(draw, latent=100):
        z = torch.randn(samples, latent, generator=torch.Generator().manual_seed(1))
        x = torch.cat([draw(part) for part in z.split(1000)])
        return frechet_distance(features(judge, x), real).item()

    return distance


def references(judge, train, test):
    """Accuracy, the distance of other real digits, and of a Gaussian's pixels."""
    x, real = test.x(), features(judge, test.x())
    others = train.x(slice(-SAMPLES, None))
    gaussian = Gaussian(shrinkage=1e-3).fit(others)
    gaussian.cov.diagonal().add_(1e-6)  # some pixels at the rim never vary
    drawn = gaussian.sample(SAMPLES, torch.Generator().manual_seed(0)).clamp(0, 1)
    return {
        "accuracy": (judge(x).argmax(1) == test.labels).float().mean().item(),
        "floor": frechet_distance(features(judge, others), real).item(),
        "gaussian": frechet_distance(features(judge, drawn), real).item(),
    }


# --- the table ------------------------------------------------------------------------


def ratios(result, name, clock):
    """Peer's seconds over this contender's, seed by seed; None where that one failed.

    Where the peer did not cross, all that it spent counts: the ratio is at least that.
    """
    pairs = zip(result["runs"]["peer"], result["runs"][name], strict=True)
    return [
        (peer[clock] or peer["spent"][clock]) / run[clock]
        if run["loss"] <= result["target"]
        else None
        for peer, run in pairs
    ]


def report(result):
    """The result as a table, and what to doubt in it."""
    m, judge = result["machine"], result["judge"]
    lines = [
        f"{m['cpu']}, {m['threads']} thread, torch {m['torch']}, {m['date']}",
        f"CPU seconds to a Frechet distance of {result['target']:g}, in features of a "
        f"classifier that is right on {judge['accuracy']:.1%}",
        f"(other real digits are at {judge['floor']:.1f}, the pixels' Gaussian at "
        f"{judge['gaussian']:.0f}); ratio to the peer: median (least to most)",
        "",
        f"{'':6}{'seed':>5}{'distance':>10}{'whole':>9}{'steps only':>12}",
    ]
    for name, runs in result["runs"].items():
        for seed, run in enumerate(runs):
            times = [f"{run[c]:.1f}" if run[c] else "-" for c in ("whole", "compute")]
            lines.append(
                f"{name:6}{seed:5}{run['loss']:10.0f}{times[0]:>9}{times[1]:>12}"
            )
    lines.append("")
    short = sum(peer["whole"] is None for peer in result["runs"]["peer"])
    if short:
        seeds = len(result["runs"]["peer"])
        lines.append(f"peer: target not reached in {EPOCHS} epochs, {short} of {seeds}")
    least = "at least " if short else ""
    for name in CONTENDERS:
        for clock, words in (("whole", "end to end"), ("compute", "steps only")):
            values = ratios(result, name, clock)
            if None in values:
                lines.append(f"{name}, {words}: no ratio, a run missed the target")
                continue
            lines.append(
                f"{name}, {words}: {least}{statistics.median(values):.1f} times faster "
                f"({min(values):.1f} to {max(values):.1f})"
            )
    lines.append("")
    return "\n".join(lines + gemm_lines(result))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not available("mnist"):
        print("MNIST is not here yet; it is downloaded now", file=sys.stderr)
    try:
        train, test = load("mnist"), load("mnist", "test")
    except DataError as error:
        sys.exit(f"the bench needs MNIST: {error}")
    judge = train_judge(train)
    distance = make_distance(judge, test)
    result = {"machine": machine(), "target": TARGET, "gemm": [gemm_probe()]}
    result["judge"] = references(judge, train, test)
    runs = result["runs"] = {name: [] for name in ("peer", *CONTENDERS)}
    for seed in range(arguments.seeds):
        for name in runs:
            print(f"seed {seed}, {name} ...", file=sys.stderr, flush=True)
            if name == "peer":
                run = run_peer(train, distance, seed)
            else:
                run = run_genlib(train, distance, seed, **CONTENDERS[name])
            runs[name].append(run)
    result["gemm"].append(gemm_probe())
    result["load"] = os.getloadavg()[0]
    store(result, report(result), arguments.output)


if __name__ == "__main__":
    main()
