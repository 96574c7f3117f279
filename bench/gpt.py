"""genlib's GPT against nanoGPT's published CPU configuration: `make bench`.

How many CPU seconds until a character model of tiny Shakespeare knows the whole
validation text (its last tenth, 111,540 characters) as well as the peer does when its
budget ends? One thread, all in one process, taking turns, several seeds. Contenders:

peer  The network and the training of the configuration that nanoGPT's README gives for
      a computer without a GPU, written from it: 4 layers, 4 heads, 128 wide, context
      64, batches of 12, 2,000 iterations, no dropout, no biases, AdamW at 1e-3 with a
      cosine down to 1e-4 after 100 iterations of warm-up, betas 0.9, 0.99, decay 0.1,
      gradients clipped at 1; torch's fused attention, as there.
same  At most 0.81 million parameters, about the peer's. They are spent otherwise:
      genlib's modern recipe (rotary positions, RMS norms, normed queries and keys,
      squared ReLU, zero start) half as wide, and tables for pairs and triples of
      characters, added to each token's embedding, which cost parameters but next to no
      arithmetic. Muon for the matrices, Adam for the rest, larger batches, fewer steps.
free  At most 1.4 million: the same with larger tables.

A run of genlib's counts only if it ends at or below the peer's end of the same seed, by
the same evaluation. Seconds are those of training steps, batches included; evaluations
are outside. `budget` is what the same contender reaches in the peer's whole time.

Then generation, one text at a time, greedily, from one character: the peer's way (the
whole text through the network for each new character) against genlib's cache, with the
peer's shape and a context of 512.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from bench.harness import Clock, gemm_lines, gemm_probe, machine, spread, store
from genlib.data import text_file
from genlib.gpt import (
    GPT,
    Characters,
    GPTConfig,
    evaluate,
    generate,
    make_step,
    modern,
    text_batches,
)
from genlib.training import seed_everything

RESULTS = Path(__file__).parent / "results" / "gpt.json"
SHAPE = {"block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128}
PEER_STEPS, PEER_BATCH = 2000, 12
LIMITS = {"same": 810_000, "free": 1_400_000}  # parameters
RECIPES = {  # chosen by some fifteen trials on seed 0
    "same": {"n_layer": 3, "n_head": 2, "n_embd": 64, "triples": 5_800, "steps": 130},
    "free": {"n_layer": 3, "n_head": 2, "n_embd": 64, "triples": 10_000, "steps": 115},
}
BUDGET = {"n_layer": 4, "n_head": 3, "n_embd": 96, "triples": 5_000, "lr": 1e-2}
COMMON = {"batch": 24, "lr": 2e-2, "muon": 0.03}
LOOKS = 8  # evaluations of a run of genlib's, in its last part


# --- the peer -------------------------------------------------------------------------


class PeerBlock(nn.Module):
    def __init__(self, n_embd, n_head):
        super().__init__()
        self.n_head = n_head
        self.ln_1 = nn.LayerNorm(n_embd, bias=False)
        self.ln_2 = nn.LayerNorm(n_embd, bias=False)
        self.c_attn = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.c_proj = nn.Linear(n_embd, n_embd, bias=False)
        self.up = nn.Linear(n_embd, 4 * n_embd, bias=False)
        self.down = nn.Linear(4 * n_embd, n_embd, bias=False)

    def forward(self, x):
        B, T, C = x.shape
        parts = self.c_attn(self.ln_1(x)).split(C, dim=2)
        q, k, v = (p.view(B, T, self.n_head, -1).transpose(1, 2) for p in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))
        return x + self.down(F.gelu(self.up(self.ln_2(x))))


class Peer(nn.Module):
    """Logits of the next character at each place (B, T, V)."""

    def __init__(self, vocab_size, block_size, n_layer, n_head, n_embd):
        super().__init__()
        self.config = GPTConfig(vocab_size, block_size, n_layer, n_head, n_embd)
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.wpe = nn.Embedding(block_size, n_embd)
        self.h = nn.ModuleList(PeerBlock(n_embd, n_head) for _ in range(n_layer))
        self.ln_f = nn.LayerNorm(n_embd, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                written = name.endswith(("c_proj.weight", "down.weight"))
                std = 0.02 / math.sqrt(2 * n_layer) if written else 0.02
                nn.init.normal_(p, std=std)

    def forward(self, idx):
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1], device=idx.device))
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)


def peer_rate(step, steps=PEER_STEPS, warmup=100, high=1e-3, low=1e-4):
    """The learning rate of a step: linear up, cosine down."""
    if step < warmup:
        return high * (step + 1) / (warmup + 1)
    share = (step - warmup) / (steps - warmup)
    return low + 0.5 * (1 + math.cos(math.pi * share)) * (high - low)


def peer_batch(data, generator):
    """One batch as the peer cuts it: a slice and a stack for each row."""
    T = SHAPE["block_size"]
    starts = torch.randint(len(data) - T, (PEER_BATCH,), generator=generator)
    idx = torch.stack([data[i : i + T] for i in starts])
    return idx, torch.stack([data[i + 1 : i + 1 + T] for i in starts])


def run_peer(text, seed, steps=PEER_STEPS):
    """Train to the end; seconds, loss at the end, and the curve on the way."""
    seed_everything(seed)
    model = Peer(text.size, **SHAPE)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, 1e-3, betas=(0.9, 0.99))
    generator, clock, curve = torch.Generator().manual_seed(seed), Clock(), []
    for step in range(steps):
        with clock:
            for group in optimizer.param_groups:
                group["lr"] = peer_rate(step, steps)
            idx, targets = peer_batch(text.train, generator)
            loss = F.cross_entropy(model(idx).flatten(0, 1), targets.flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        if (step + 1) % (steps // 4) == 0:
            curve.append((clock.seconds, evaluate(model, text.val)))
    return {"seconds": clock.seconds, "loss": curve[-1][1], "curve": curve}


# --- genlib's -------------------------------------------------------------------------


class GramGPT(GPT):
    """A GPT whose tokens also know the one or two before them, by tables.

    A row for each pair of characters, and `triples` rows that triples share, by hash.
    """

    def __init__(self, config, triples=0):
        super().__init__(config)
        self.pairs = nn.Embedding((config.vocab_size + 1) ** 2, config.n_embd)
        self.triples = nn.Embedding(triples, config.n_embd) if triples else None
        for table in filter(None, (self.pairs, self.triples)):
            nn.init.zeros_(table.weight)

    def embed(self, idx, start=0):
        V = self.config.vocab_size + 1
        x, t, turn = super().embed(idx, start)
        padded = F.pad(idx, (2, 0), value=V - 1)  # before the first: nothing
        pair = padded[:, 1:-1] * V + idx
        x = x + self.pairs(pair)
        if self.triples is not None:
            place = (padded[:, :-2] * V * V + pair) * 40_503  # spread by a prime
            x = x + self.triples(place % self.triples.num_embeddings)
        return x, t, turn


def run(name, text, seed, recipe, target=None):
    """Train by a recipe; seconds until the target is crossed, and at the end.

    Between two evaluations the seconds are interpolated.
    """
    seed_everything(seed)
    recipe = COMMON | recipe
    sizes = SHAPE | {k: recipe[k] for k in SHAPE if k in recipe}
    model = GramGPT(modern(vocab_size=text.size, **sizes), recipe["triples"])
    size = sum(p.numel() for p in model.parameters())
    if size > LIMITS[name]:
        raise ValueError(f"{name} has {size} parameters; at most {LIMITS[name]}")
    steps = recipe["steps"]
    step = make_step(
        model, steps, recipe["lr"], recipe["muon"], recipe.get("warmup", 0.1)
    )
    batches = text_batches(text.train, sizes["block_size"], recipe["batch"], seed)
    looks = {steps - k * max(1, steps // 25) for k in range(LOOKS)}
    clock, curve = Clock(), []
    for number in range(1, steps + 1):
        with clock:
            step(next(batches))
        if number in looks:
            curve.append((clock.seconds, evaluate(model, text.val)))
    loss = curve[-1][1]
    found = {"seconds": clock.seconds, "loss": loss, "size": size, "curve": curve}
    if target is not None:
        found["reached"] = crossing(curve, target) if loss <= target else None
    return found


def crossing(curve, target):
    """Seconds at which a curve of (seconds, loss) first is at the target or below."""
    for (t0, a), (t1, b) in zip(curve, curve[1:], strict=False):
        if a > target >= b:
            return t0 + (t1 - t0) * (a - target) / (a - b)
    return curve[0][0]


class Text:
    """Tiny Shakespeare by characters: nine tenths to learn, the last to be judged."""

    def __init__(self, text=None):
        if text is None:
            file = text_file("tinyshakespeare", "input.txt")
            text = Path(file).read_text(encoding="utf-8")
        chars = Characters(text)
        idx = torch.tensor(chars.encode(text))
        cut = len(idx) * 9 // 10
        self.size, self.train, self.val = len(chars), idx[:cut], idx[cut:]


# --- generation -----------------------------------------------------------------------


@torch.no_grad()
def peer_generate(model, idx, count):
    for _ in range(count):
        logits = model(idx[:, -model.config.block_size :])[:, -1]
        idx = torch.cat((idx, logits.argmax(-1, keepdim=True)), 1)
    return idx


def time_generation(size, rounds=3):
    """Seconds for n characters, by contender and n: the least of the rounds."""
    shape = SHAPE | {"block_size": 513}
    seed_everything(0)
    peer, gpt = (
        Peer(size, **shape).eval(),
        GPT(GPTConfig(size, bias=False, **shape)).eval(),
    )
    idx, found = torch.zeros(1, 1, dtype=torch.long), {}
    ways = {
        "peer": lambda n: peer_generate(peer, idx, n),
        "cached": lambda n: generate(gpt, idx, n, temperature=0),
    }
    for name in ways:
        ways[name](8)  # warm
    for _ in range(rounds):
        for n in (255, 256, 512):
            for name, way in ways.items():
                start = time.process_time()
                way(n)
                spent = time.process_time() - start
                old = found.setdefault(name, {}).get(str(n), math.inf)
                found[name][str(n)] = min(old, spent)
    return found


# --- the table ------------------------------------------------------------------------


def report(result):
    """The result as a table, and what to doubt in it."""
    m, runs = result["machine"], result["runs"]
    ends = [run["loss"] for run in runs["peer"]]
    seconds = [run["seconds"] for run in runs["peer"]]
    lines = [
        f"{m['cpu']}, {m['threads']} thread, torch {m['torch']}, {m['date']}, "
        f"{len(ends)} seeds",
        "tiny Shakespeare by characters, whole validation text; median (least to most)",
        f"peer: {spread(seconds)} CPU seconds, ends at {spread(ends)} nats",
    ]
    for name in RECIPES:
        reached = [run["reached"] for run in runs[name]]
        missed = reached.count(None)
        if missed:
            lines.append(f"{name}: does not reach the peer's end, {missed} seeds")
            continue
        ratios = [a / b for a, b in zip(seconds, reached, strict=True)]
        lines.append(
            f"{name}: there after {spread(reached)} s, {spread(ratios)} times faster "
            f"({runs[name][0]['size']:,} parameters)"
        )
    budget = result["budget"]
    lines.append(
        f"{budget['size']:,} parameters in {budget['seconds'] / seconds[0]:.2f} of the "
        f"peer's whole time: {budget['loss']:.3f} nats"
    )
    times = result["generation"]
    for n in ("255", "512"):
        ratio = times["peer"][n] / times["cached"][n]
        lines.append(f"generating {n} characters: {ratio:.1f} times the peer's speed")
    growth = times["cached"]["512"] / times["cached"]["256"]
    lines.append(f"cached, time of 512 to time of 256: {growth:.2f}")
    return "\n".join(lines + gemm_lines(result))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument(
        "--generation", action="store_true", help="only that, into the stored result"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = Text()
    if arguments.generation:
        result = json.loads(arguments.output.read_text())
        result["generation"] = time_generation(text.size)
        store(result, report(result), arguments.output)
        return
    runs = {"peer": [], "same": [], "free": []}
    result = {"machine": machine(), "gemm": [gemm_probe()], "runs": runs}
    for seed in range(arguments.seeds):
        runs["peer"].append(run_peer(text, seed))
        target = runs["peer"][-1]["loss"]
        for name, recipe in RECIPES.items():
            runs[name].append(run(name, text, seed, recipe, target))
            print(seed, name, runs[name][-1], flush=True)
    trial = run("free", text, 0, BUDGET | {"steps": 10})["seconds"] / 10
    steps = int(0.97 * runs["peer"][0]["seconds"] / trial)
    result["budget"] = run("free", text, 0, BUDGET | {"steps": steps})
    print("budget", result["budget"], flush=True)
    result["generation"] = time_generation(text.size)
    result["gemm"].append(gemm_probe())
    store(result, report(result), arguments.output)


if __name__ == "__main__":
    main()
