"""genlib's small translator against the Annotated Transformer's setting: `make bench`.

How many CPU seconds until a model trained on Multi30k, German to English, reaches BLEU
25 on the test set of 2016 (1,000 captions, greedy, sacrebleu as it comes)? One thread.

genlib  The shipped model's network and training (`genlib.multi30k`), with a shorter
        schedule. Seconds are those of training steps, batches included; translating
        the test set is outside. Several seeds.
peer    The setting of the Annotated Transformer (Rush 2018), written from it: words,
        those seen at least twice; 6 + 6 layers of 512, 2,048 and 8 heads, dropout 0.1;
        32 sentences a batch, each padded to 72 words; label smoothing 0.1; Adam with
        the paper's warm-up over 3,000 updates, one update for ten batches. Its layers
        are torch.nn.Transformer's, which are faster than the ones printed there.

The peer's way to BLEU 25 takes hours on one core, so it is *not* run to the end. What
is measured is its sentences a CPU second, over some batches. From that follows how much
of its training fits into ten times genlib's seconds: so many sentences and updates. If
that is a small part of one epoch, and of the warm-up, genlib is more than ten times
faster; by how much more, this bench does not know.
"""

import argparse
import re
import statistics
import time
from collections import Counter
from pathlib import Path

import torch
from torch import nn

from bench.harness import Clock, gemm_lines, gemm_probe, machine, spread, store
from genlib.attention import causal_mask, sinusoidal
from genlib.data import DataError
from genlib.multi30k import (
    bleu,
    config,
    finish,
    rate,
    read,
    sentence_batches,
    translate_all,
)
from genlib.transformer import (
    BPE,
    END,
    PAD,
    START,
    Transformer,
    label_smoothing_loss,
    learn_merges,
    warmup_rate,
)

RESULTS = Path(__file__).parent / "results" / "transformer.json"
TARGET, STEPS, FACTOR = 25.0, 900, 10
BATCH, LENGTH, ACCUMULATE, WARMUP, EPOCHS = 32, 72, 10, 3000, 8  # the peer's


# --- genlib's -------------------------------------------------------------------------


def run(pairs, bpe, judge, seed, steps=STEPS, target=TARGET, looks=8):
    """Train; seconds until BLEU is at the target, interpolated, and the curve."""
    torch.manual_seed(seed)
    model = Transformer(config(len(bpe)))
    adam = torch.optim.Adam(model.parameters(), 3e-3, betas=(0.9, 0.98), eps=1e-9)
    factor = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda k: rate(k, steps, warmup=steps // 5)
    )
    batches, clock, sentences, curve = (
        sentence_batches(pairs, bpe, seed=seed),
        Clock(),
        0,
        [],
    )
    places = {steps - k * (steps // 2 // looks) for k in range(looks)}
    for number in range(1, steps + 1):
        with clock:
            src, tgt = next(batches)
            loss = label_smoothing_loss(model(src, tgt[:, :-1]), tgt[:, 1:])
            adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            factor.step()
        sentences += len(src)
        if number in places:
            curve.append((clock.seconds, sentences, judge(model.eval())))
            model.train()
            print(seed, number, curve[-1], flush=True)
            if curve[-1][2] >= target:
                break
    score = curve[-1][2]
    return {
        "seconds": clock.seconds,
        "sentences": sentences,
        "bleu": score,
        "reached": crossing(curve, target) if score >= target else None,
        "curve": curve,
    }


def crossing(curve, target):
    """Seconds at which a rising curve of (seconds, _, BLEU) first is at the target."""
    for (t0, _, a), (t1, _, b) in zip(curve, curve[1:], strict=False):
        if a < target <= b:
            return t0 + (t1 - t0) * (target - a) / (b - a)
    return curve[0][0]


# --- the peer -------------------------------------------------------------------------


class Words:
    """The peer's vocabulary of one language: words and marks seen at least twice."""

    def __init__(self, texts):
        counts = Counter(word for text in texts for word in self.cut(text))
        known = [word for word, n in counts.items() if n >= 2]
        self.number = {word: i for i, word in enumerate(known, start=4)}  # 3: unknown
        self.size = len(known) + 4

    @staticmethod
    def cut(text):
        return re.findall(r"\w+|[^\w\s]", text)

    def encode(self, text):
        """Numbers between START and END, padded to LENGTH."""
        found = [self.number.get(word, 3) for word in self.cut(text)][: LENGTH - 2]
        row = [START, *found, END]
        return row + [PAD] * (LENGTH - len(row))


class Peer(nn.Module):
    """Words in, logits of words out: src (B, 72), idx (B, 71) -> (B, 71, V)."""

    def __init__(self, source, target, n_layer=6, n_embd=512, n_hidden=2048, n_head=8):
        super().__init__()
        self.source, self.target = (nn.Embedding(n, n_embd) for n in (source, target))
        self.layers = nn.Transformer(
            n_embd, n_head, n_layer, n_layer, n_hidden, 0.1,
            norm_first=True, batch_first=True,
        )  # fmt: skip
        self.drop, self.readout = nn.Dropout(0.1), nn.Linear(n_embd, target)
        self.register_buffer("positions", sinusoidal(LENGTH, n_embd))

    def embed(self, table, idx):
        x = table(idx) * table.embedding_dim**0.5
        return self.drop(x + self.positions[: idx.shape[1]])

    def forward(self, src, idx):
        hidden = src == PAD
        y = self.layers(
            self.embed(self.source, src),
            self.embed(self.target, idx),
            tgt_mask=~causal_mask(idx.shape[1]),
            src_key_padding_mask=hidden,
            memory_key_padding_mask=hidden,
            tgt_key_padding_mask=idx == PAD,
        )
        return self.readout(y)


def peer_speed(pairs, batches=6, **sizes):
    """CPU seconds of some of the peer's batches, after one to warm up; losses too."""
    german, english = (Words(texts) for texts in zip(*pairs, strict=True))
    torch.manual_seed(0)
    model = Peer(german.size, english.size, **sizes)
    adam = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98), eps=1e-9)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    seconds, losses, n_embd = [], [], model.source.embedding_dim
    for k in range(batches + 1):
        start = time.process_time()
        rows = [pairs[i] for i in order[k * BATCH : (k + 1) * BATCH].tolist()]
        src = torch.tensor([german.encode(text) for text, _ in rows])
        tgt = torch.tensor([english.encode(text) for _, text in rows])
        loss = label_smoothing_loss(model(src, tgt[:, :-1]), tgt[:, 1:])
        loss.backward()
        if (k + 1) % ACCUMULATE == 0:
            for group in adam.param_groups:
                group["lr"] = warmup_rate((k + 1) // ACCUMULATE, n_embd, WARMUP)
            adam.step()
            adam.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.process_time() - start)
    size = sum(p.numel() for p in model.parameters())
    return {"seconds": seconds[1:], "losses": losses, "size": size}


# --- the table ------------------------------------------------------------------------


def report(result):
    """The result as text, and what to doubt in it."""
    m, runs, peer = result["machine"], result["runs"], result["peer"]
    speed = BATCH / statistics.median(peer["seconds"])  # sentences a second
    whole = EPOCHS * result["pairs"] / speed / 3600
    lines = [
        f"{m['cpu']}, {m['threads']} thread, torch {m['torch']}, {m['date']}, "
        f"{len(runs)} seeds; {result['signature']}",
        f"peer: {speed:.2f} sentences a CPU second, {peer['size']:,} parameters; "
        f"its {EPOCHS} epochs would take {whole:.0f} h",
    ]
    reached = [run["reached"] for run in runs]
    if None in reached:
        lines.append(
            f"genlib: BLEU {TARGET:g} not reached, {reached.count(None)} seeds"
        )
        return "\n".join(lines)
    ours = [run["sentences"] / run["seconds"] for run in runs]
    lines.append(
        f"genlib: BLEU {TARGET:g} after {spread(reached, 0)} CPU seconds, "
        f"{statistics.median(ours) / speed:.0f} times the peer's sentences a second"
    )
    seen = FACTOR * max(reached) * speed
    updates = seen / BATCH / ACCUMULATE
    lines.append(
        f"in {FACTOR} times the longest of these the peer sees {seen:,.0f} sentences, "
        f"{seen / result['pairs']:.2f} epochs, and makes {updates:.0f} updates, "
        f"{updates / WARMUP:.1%} of its warm-up"
    )
    return "\n".join(lines + gemm_lines(result))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        pairs, tests = read(), read("test_2016_flickr")
    except DataError as error:
        raise SystemExit(f"the bench needs Multi30k. {error}") from error
    german, english = zip(*tests, strict=True)
    bpe = BPE(learn_merges("\n".join(f"{a}\n{b}" for a, b in pairs), 3000))

    def judge(model):
        return bleu(translate_all(finish(model, bpe, pairs), german, 1), english)[0]

    result = {"machine": machine(), "gemm": [gemm_probe()], "pairs": len(pairs)}
    result["peer"] = peer_speed(pairs)
    print(result["peer"], flush=True)
    seeds = range(arguments.seeds)
    result["runs"] = [run(pairs, bpe, judge, s, arguments.steps) for s in seeds]
    result["signature"] = bleu(list(english), english)[1]
    result["gemm"].append(gemm_probe())
    store(result, report(result), arguments.output)


if __name__ == "__main__":
    main()
