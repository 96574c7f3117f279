"""genlib's VAE against the standard PyTorch example's, on MNIST: `make bench`.

How many CPU seconds until the bound on the test set, -ELBO with grey pixels scored by
binary cross-entropy, is at most 106.1 nats an image? One thread, all in one process,
taking turns, several seeds. Three contenders:

peer  The VAE of the standard PyTorch example, written from its published
      configuration: 784-400-20-400-784 with ReLU, Adam at 1e-3, batches of 128 from a
      DataLoader that makes of each image a PIL image, a tensor and 0..1, one by one,
      and a pass over the test set after every epoch. Where its bound crosses the
      target between two epochs, the seconds are interpolated.
same  The same layers and activations trained with genlib: batches gathered from
      memory, the loss from the logits, fused Adam with warm-up to a ten times higher
      rate and a linear descent to zero, the mean image taken off the input and
      set as the output's first bias.
free  Another network for the same bound, trained alike: the encoder sees the image at
      half the resolution, 256 hidden units with SiLU, a still higher rate.

A run of genlib's counts only if it ends at or below the target, by the same evaluation
as the peer's (the whole test set, one sample of z an image, fixed noise).
"""

import argparse
import os
import statistics
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from bench.harness import Clock, gemm_lines, gemm_probe, machine, store
from genlib.data import DataError, available, batches, load
from genlib.training import fit, seed_everything, warmup_linear
from genlib.vae import VAE, MLPDecoder, MLPEncoder, evaluate, negative_elbo

TARGET = 106.1  # nats an image: about where the example stands after ten epochs
RESULTS = Path(__file__).parent / "results" / "vae.json"


# --- the peer -------------------------------------------------------------------------


class ImageFiles(Dataset):
    """MNIST as an image data set hands it out: one PIL image, one tensor at a time."""

    def __init__(self, data):
        self.images, self.labels = data.images[:, 0], data.labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = Image.fromarray(self.images[index].numpy())
        pixels = torch.from_numpy(np.array(image, np.uint8, copy=True))
        pixels = pixels.view(image.size[1], image.size[0], 1).permute(2, 0, 1)
        pixels = pixels.contiguous().to(torch.get_default_dtype()).div(255)
        return pixels, int(self.labels[index])  # (1, 28, 28)


class Peer(nn.Module):
    """784-400-20-400-784; the decoder ends in a sigmoid."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(784, 400)
        self.mu, self.logvar = nn.Linear(400, 20), nn.Linear(400, 20)
        self.up, self.out = nn.Linear(20, 400), nn.Linear(400, 784)

    def encode(self, x):
        hidden = F.relu(self.hidden(x.view(-1, 784)))
        return self.mu(hidden), self.logvar(hidden)

    def decode(self, z):
        return self.out(F.relu(self.up(z)))

    def forward(self, x):
        mu, logvar = self.encode(x)
        std = torch.exp(0.5 * logvar)
        z = mu + torch.randn_like(std) * std
        return torch.sigmoid(self.decode(z)), mu, logvar


def peer_loss(outputs, x):
    """Summed over the batch, as the example has it."""
    x_hat, mu, logvar = outputs
    bce = F.binary_cross_entropy(x_hat, x.view(-1, 784), reduction="sum")
    return bce - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())


def run_peer(train, test, seed, target=TARGET, max_epochs=14, max_steps=None):
    """Train epoch after epoch until the target is crossed; the two times to it.

    `whole` counts all that the example does: its data path, its steps, its pass over
    the test set. `compute` counts the steps alone.
    """
    seed_everything(seed)
    model = Peer()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    train_loader = DataLoader(ImageFiles(train), batch_size=128, shuffle=True)
    test_loader = DataLoader(ImageFiles(test), batch_size=128, shuffle=False)
    whole, compute = Clock(), Clock()
    curve = [(0.0, 0.0, test_loss(test, model.encode, model.decode))]
    for _ in range(max_epochs):
        with whole:
            model.train()
            total = 0.0
            for x, _ in islice(train_loader, max_steps):
                with compute:
                    optimizer.zero_grad()
                    loss = peer_loss(model(x), x)
                    loss.backward()
                    total += loss.item()
                    optimizer.step()
            model.eval()
            with torch.no_grad():
                for x, _ in islice(test_loader, max_steps):
                    total += peer_loss(model(x), x).item()
        loss = test_loss(test, model.encode, model.decode)
        curve.append((whole.seconds, compute.seconds, loss))
        if loss <= target:
            break
    return crossing(curve, target) | {
        "curve": [[round(v, 3) for v in point] for point in curve[1:]]
    }


def crossing(curve, target):
    """Seconds at which a curve of (whole, compute, loss) first reaches the target."""
    for before, after in zip(curve, curve[1:], strict=False):
        if after[2] <= target:
            share = (before[2] - target) / (before[2] - after[2])
            whole, compute = (
                a + share * (b - a) for a, b in zip(before[:2], after[:2], strict=True)
            )
            return {"whole": whole, "compute": compute, "loss": target}
    return {"whole": None, "compute": None, "loss": curve[-1][2]}


# --- genlib's -------------------------------------------------------------------------


class CentredEncoder(nn.Module):
    """An MLP on an image less the mean image, seen at full or at half resolution."""

    def __init__(self, mean, hidden, outputs, activation=nn.ReLU, half=False):
        super().__init__()
        self.shape = c, h, w = tuple(mean.shape)
        self.register_buffer("mean", mean[None])
        self.half = half
        seen = (c, h // 2, w // 2) if half else self.shape
        self.net = MLPEncoder(seen, hidden, outputs, activation)

    def forward(self, x):
        x = x - self.mean
        # Twice, because means of four pixels vary less.
        return self.net(2 * F.avg_pool2d(x, 2) if self.half else x)


def same_network(mean):
    """The peer's layers, weight for weight."""
    encoder = CentredEncoder(mean, [400], 2 * 20)
    return VAE(encoder, MLPDecoder(mean.shape, [400], 20))


def free_network(mean):
    encoder = CentredEncoder(mean, [256], 2 * 20, nn.SiLU, half=True)
    return VAE(encoder, MLPDecoder(mean.shape, [256], 20, nn.SiLU))


# Steps and rates found by some 55 trials on seed 0, judged by the bound itself.
CONTENDERS = {
    "same": {"network": same_network, "max_steps": 1020, "lr": 1e-2},
    "free": {"network": free_network, "max_steps": 820, "lr": 1.8e-2},
}


def run_genlib(train, test, seed, network, max_steps, lr):
    """Train once, to the end of the schedule; seconds as in `run_peer`.

    `whole` counts the mean image, the model, all batches and steps, and one evaluation
    of the test set; `compute` the steps alone.
    """
    whole, compute = Clock(), Clock()
    with whole:
        seed_everything(seed)
        mean = train.x(slice(10_000)).mean(0)
        vae = network(mean)
        with (
            torch.no_grad()
        ):  # begin with the mean image, where training would go first
            vae.decoder.net[-1].bias.copy_(mean.flatten().logit(1e-3))
        optimizer = torch.optim.Adam(vae.parameters(), lr, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda k: warmup_linear(k, max_steps)
        )

        def step(batch):
            with compute:
                metrics = negative_elbo(vae, batch[0])
                optimizer.zero_grad()
                metrics["loss"].backward()
                optimizer.step()
                schedule.step()
            return metrics

        fit(step, batches(train, 128, seed), max_steps, progress=False)
        evaluate(vae, test.x())
    loss = test_loss(test, vae.encode, vae.decode)
    return {"whole": whole.seconds, "compute": compute.seconds, "loss": loss}


# --- the same measure for both --------------------------------------------------------


@torch.no_grad()
def test_loss(test, encode, decode):
    """-ELBO in nats an image: the whole test set, one sample of z each, fixed noise."""
    noise = torch.Generator().manual_seed(0)
    total = 0.0
    for index in torch.arange(len(test)).split(1000):
        x = test.x(index)  # (B, 1, 28, 28)
        mu, logvar = encode(x)
        z = mu + torch.exp(0.5 * logvar) * torch.randn(mu.shape, generator=noise)
        logits = decode(z).flatten(1)
        total += F.binary_cross_entropy_with_logits(
            logits, x.flatten(1), reduction="sum"
        ).item()
        total += 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum().item()
    return total / len(test)


def ratios(runs, name, clock):
    """Peer's seconds over this contender's, seed by seed; None where one failed."""
    pairs = zip(runs["peer"], runs[name], strict=True)
    return [
        peer[clock] / run[clock] if peer[clock] and run["loss"] <= TARGET else None
        for peer, run in pairs
    ]


def report(result):
    """The result as a table, and what to doubt in it."""
    m = result["machine"]
    lines = [
        f"{m['cpu']}, {m['threads']} thread, torch {m['torch']}, {m['date']}",
        f"CPU seconds to a test -ELBO of {TARGET} nats; ratio to the peer: median "
        "(least to most)",
        "",
        f"{'':6}{'seed':>5}{'-ELBO':>9}{'whole':>9}{'steps only':>12}",
    ]
    for name, runs in result["runs"].items():
        for seed, run in enumerate(runs):
            times = [f"{run[c]:.1f}" if run[c] else "-" for c in ("whole", "compute")]
            lines.append(
                f"{name:6}{seed:5}{run['loss']:9.2f}{times[0]:>9}{times[1]:>12}"
            )
    lines.append("")
    for name in CONTENDERS:
        for clock, words in (("whole", "end to end"), ("compute", "steps only")):
            values = ratios(result["runs"], name, clock)
            if None in values:
                lines.append(f"{name}, {words}: no ratio, a run missed the target")
                continue
            lines.append(
                f"{name}, {words}: {statistics.median(values):.1f} times faster "
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
    result = {"machine": machine(), "target": TARGET, "gemm": [gemm_probe()]}
    runs = result["runs"] = {name: [] for name in ("peer", *CONTENDERS)}
    for seed in range(arguments.seeds):
        for name in runs:
            print(f"seed {seed}, {name} ...", file=sys.stderr, flush=True)
            if name == "peer":
                run = run_peer(train, test, seed)
            else:
                run = run_genlib(train, test, seed, **CONTENDERS[name])
            runs[name].append(run)
    result["gemm"].append(gemm_probe())
    result["load"] = os.getloadavg()[0]
    store(result, report(result), arguments.output)


if __name__ == "__main__":
    main()
