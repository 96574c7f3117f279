r"""Attention: each position asks a question, and is answered with a mean of what the
others hold, weighted by how well their keys fit. So any distance is one step.

Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762; the first attention:
Bahdanau et al. 2015, arXiv:1409.0473; rotary positions: Su et al. 2021,
arXiv:2104.09864; recurrent units: Cho et al. 2014, arXiv:1406.1078; heads that copy:
Olsson et al. 2022, arXiv:2209.11895.

Shapes: B examples, T positions that ask, S positions that are asked, C = `n_embd`
numbers a position, d = C / n_head in each head. A mask is True where one may look, as
for `torch.nn.functional.scaled_dot_product_attention`; torch.nn.MultiheadAttention's is
the other way round.
"""

import math
import re

import torch
import torch.nn.functional as F
from torch import nn

from genlib.training import fit, seed_everything

# --- the idea -------------------------------------------------------------------------


def attention(q, k, v, mask=None, scale=None):
    r"""$\mathrm{softmax}(q k^T / \sqrt{d}) \, v$: the answers and the weights.

    Vaswani et al. 2017, equation 1. q is (..., T, d), k (..., S, d), v (..., S, d_v);
    returns (..., T, d_v) and weights (..., T, S), whose rows sum to 1. `mask`, boolean,
    broadcasts to (..., T, S) and is True where a position may look; one that may look
    nowhere gets zeros. `scale` is $1 / \sqrt{d}$ unless given.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * q @ k.transpose(-2, -1)  # (..., T, S)
    if mask is None:
        weights = scores.softmax(-1)
    else:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1).masked_fill(~mask, 0.0)
    return weights @ v, weights


def causal_mask(T, device=None):
    """May look at oneself and what came before: (T, T), True on and below the diagonal.

    Row t says where position t may look.
    """
    return torch.ones(T, T, dtype=torch.bool, device=device).tril()


def padding_mask(idx, pad):
    """May look at what is no padding: tokens (B, S) -> (B, 1, 1, S), for every head.

    Combine masks by `&`: `padding_mask(idx, pad) & causal_mask(T)` is (B, 1, T, T).
    """
    return (idx != pad)[:, None, None]


@torch.no_grad()
def future_leak(f, x, changed):
    """How far an output moves, at most, when only later inputs change: 0 if causal.

    `f` maps inputs (B, T, ...) to outputs (B, T, ...); `changed` is of x's shape and
    differs from it everywhere. For each t from 1 on the inputs from t on are changed,
    and the outputs before t compared.
    """
    expected, gaps = f(x), []
    for t in range(1, x.shape[1]):
        mixed = torch.cat((x[:, :t], changed[:, t:]), 1)
        gaps.append((f(mixed)[:, :t] - expected[:, :t]).abs().max())
    return torch.stack(gaps).max().item()


# --- several heads --------------------------------------------------------------------


class MultiHeadAttention(nn.Module):
    r"""Several attentions side by side, each in a subspace of its own.

    $\mathrm{Concat}(head_1, ..., head_h) W^O$ with
    $head_i = \mathrm{Attention}(x W_i^Q, m W_i^K, m W_i^V)$ (Vaswani et al. 2017,
    section 3.2.2). The weights of `torch.nn.MultiheadAttention` fit: its `in_proj` is
    those of `q`, `k` and `v`, one below the other.

    Raises ValueError if n_embd is no multiple of n_head.
    """

    def __init__(self, n_embd, n_head, bias=True):
        super().__init__()
        if n_embd % n_head:
            raise ValueError(
                f"n_embd is {n_embd}: {n_head} heads cannot share it equally"
            )
        self.n_head = n_head
        self.q, self.k, self.v, self.out = (
            nn.Linear(n_embd, n_embd, bias=bias) for _ in range(4)
        )

    def forward(self, x, memory=None, mask=None):
        """x (B, T, C) asks `memory` (B, S, C), or itself: (B, T, C), (B, n_head, T, S).

        The second is the weights. `mask` broadcasts to their shape.
        """
        memory = x if memory is None else memory
        q = split_heads(self.q(x), self.n_head)  # (B, n_head, T, d)
        k = split_heads(self.k(memory), self.n_head)  # (B, n_head, S, d)
        v = split_heads(self.v(memory), self.n_head)
        y, weights = attention(q, k, v, mask)
        return self.out(merge_heads(y)), weights


def split_heads(x, n_head):
    """(B, T, C) -> (B, n_head, T, C / n_head): each head gets its part of the width."""
    return x.unflatten(-1, (n_head, -1)).transpose(1, 2)


def merge_heads(x):
    """(B, n_head, T, d) -> (B, T, n_head d): undoes `split_heads`."""
    return x.transpose(1, 2).flatten(2)


# --- positions ------------------------------------------------------------------------


def frequencies(width, base=10_000.0):
    r"""$\omega_i = base^{-2i / width}$ for $i < width / 2$, in radians a position.

    From 1, a turn in six positions, down to almost 1 / base: the hands of a clock.
    """
    if width % 2:
        raise ValueError(f"a width of {width} is odd; each frequency takes two numbers")
    return base ** (-torch.arange(0, width, 2) / width)


def sinusoidal(T, n_embd):
    r"""A fixed vector for each position: (T, n_embd).

    $PE_{t, 2i} = \sin(\omega_i t)$, $PE_{t, 2i+1} = \cos(\omega_i t)$ (Vaswani et al.
    2017, section 3.5).
    """
    angles = torch.arange(T)[:, None] * frequencies(n_embd)  # (T, n_embd / 2)
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1)


def sinusoidal_shift(n_embd, distance):
    r"""The matrix (n_embd, n_embd) that moves `sinusoidal` on by `distance`.

    $PE_{t + distance} = M \, PE_t$ for every t: pairs of numbers turn by
    $\omega_i \cdot distance$. So to look back a fixed distance is a linear map.
    """
    angle = distance * frequencies(n_embd)
    turn = torch.stack((angle.cos(), angle.sin(), -angle.sin(), angle.cos()), -1)
    return torch.block_diag(*turn.view(-1, 2, 2))


class LearnedPositions(nn.Module):
    """A vector for each position, learned like a word's: adds (T, C) to x (B, T, C).

    Raises ValueError for more positions than it has vectors.
    """

    def __init__(self, block_size, n_embd):
        super().__init__()
        self.table = nn.Embedding(block_size, n_embd)

    def forward(self, x):
        T, block_size = x.shape[1], self.table.num_embeddings
        if T > block_size:
            raise ValueError(
                f"{T} positions; this model has learned {block_size} (its block_size)"
            )
        return x + self.table.weight[:T]


def rotary_table(T, width, base=10_000.0):
    """Cosine and sine of each position's angles, for `rotate`: each (T, width / 2)."""
    angles = torch.arange(T)[:, None] * frequencies(width, base)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    r"""Turn queries or keys (..., T, d) by their position's angles (..., T, d / 2).

    Number i and number i + d/2 are a point of the plane, turned by $\omega_i t$ (Su et
    al. 2021, equation 34, there with neighbours for pairs). The product of a turned
    query and a turned key then depends on the distance of the two only.
    """
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


# --- a task for memory ----------------------------------------------------------------


def recall_task(count, n_pairs, n_keys=32, n_values=8, generator=None, distance=None):
    """Tell `n_pairs` pairs of a key and a value, then ask for the value of one key.

    Returns items (count, n_pairs + 1, 2), of which the last is the question: its key,
    and `n_values` in place of a value; the answers (count,) in 0..n_values - 1; and how
    far back each pair stands (count,), 1 being just before the question. `distance`
    sets it for all. No key comes twice, so each question has one right answer.

    Raises ValueError if there are fewer keys than pairs, or no such distance.
    """
    if not 1 <= n_pairs <= n_keys:
        raise ValueError(f"{n_pairs} pairs of different keys, out of {n_keys} keys")
    if distance is not None and not 1 <= distance <= n_pairs:
        raise ValueError(f"distance is {distance}; it must be in 1..{n_pairs}")
    order = torch.rand(count, n_keys, generator=generator).argsort(1)
    keys = order[:, :n_pairs]
    values = torch.randint(n_values, (count, n_pairs), generator=generator)
    back = torch.randint(1, n_pairs + 1, (count,), generator=generator)
    back = back if distance is None else torch.full_like(back, distance)
    asked = (n_pairs - back)[:, None]  # (count, 1)
    blank = torch.full_like(asked, n_values)
    question = torch.stack((keys.gather(1, asked), blank), 2)  # (count, 1, 2)
    items = torch.cat((torch.stack((keys, values), 2), question), 1)
    return items, values.gather(1, asked)[:, 0], back


class Recall(nn.Module):
    """Answers `recall_task`: an embedding, a memory, and a readout at the question.

    `memory` maps (B, T, n_embd) to (B, T, width). Returns logits (B, n_values).
    """

    def __init__(self, memory, n_embd, width, n_keys=32, n_values=8):
        super().__init__()
        self.key = nn.Embedding(n_keys, n_embd)
        self.value = nn.Embedding(n_values + 1, n_embd)  # and "which one?"
        self.memory = memory
        self.readout = nn.Linear(width, n_values)

    def embed(self, items):
        return self.key(items[..., 0]) + self.value(items[..., 1])  # (B, T, C)

    def forward(self, items):
        return self.readout(self.memory(self.embed(items))[:, -1])


class AttentionMemory(nn.Module):
    """One attention over all that was told: a memory that grows with what it hears."""

    def __init__(self, n_embd, n_head=1):
        super().__init__()
        # A bias of the keys moves all scores alike and so nothing at all
        self.attention = MultiHeadAttention(n_embd, n_head, bias=False)

    def forward(self, x):
        return self.attention(x)[0]


class RecurrentMemory(nn.Module):
    """A gated recurrent unit (Cho et al. 2014): `width` numbers, however long."""

    def __init__(self, n_embd, width):
        super().__init__()
        self.gru = nn.GRU(n_embd, width, batch_first=True)
        for weight in self.gru.parameters():
            weight.init_std = (3 * width) ** -0.5  # as torch draws it; for the page

    def forward(self, x):
        return self.gru(x)[0]


def recall_models(n_embd=32, n_keys=32, n_values=8):
    """An attention and a recurrent model of equal size, to be set the same task.

    The recurrent one gets the width at which it has at least as many parameters.
    """
    sizes = {"n_keys": n_keys, "n_values": n_values}
    attend = Recall(AttentionMemory(n_embd), n_embd, n_embd, **sizes)
    for width in range(1, n_embd + 1):
        recur = Recall(RecurrentMemory(n_embd, width), n_embd, width, **sizes)
        if size(recur) >= size(attend):
            return attend, recur


def size(module):
    """How many numbers a module learns."""
    return sum(p.numel() for p in module.parameters())


def recall_loss(model, items, answers):
    """Cross-entropy of the answers (B,), in nats, and the share that is right."""
    logits = model(items)
    right = (logits.argmax(1) == answers).float().mean()
    return {"loss": F.cross_entropy(logits, answers), "accuracy": right}


@torch.no_grad()
def recall_accuracy(model, n_pairs, count=500, n_keys=32, n_values=8, seed=0):
    """Share of right answers, the pair standing 1, 2, ... n_pairs back: (n_pairs,)."""
    generator = torch.Generator().manual_seed(seed)
    shares = []
    for distance in range(1, n_pairs + 1):
        task = recall_task(count, n_pairs, n_keys, n_values, generator, distance)
        shares.append(recall_loss(model, *task[:2])["accuracy"])
    return torch.stack(shares)


def recall_from_noise(order, values, n_values=8):
    """`recall_task` made of normal noise, as a page has it: items and answers.

    `order` (B, n_keys) sorts the keys, `values` (B, n_pairs) are cut into `n_values`
    equally likely levels. Example i asks for pair i, then from the first again.
    """
    B, n_pairs = values.shape
    keys = order.argsort(1)[:, :n_pairs]  # (B, n_pairs)
    share = 0.5 + 0.5 * torch.erf(values / math.sqrt(2))  # uniform in 0..1
    values = (n_values * share).long().clamp(0, n_values - 1)
    asked = (torch.arange(B) % n_pairs)[:, None]
    question = torch.stack((keys.gather(1, asked), torch.full_like(asked, n_values)), 2)
    items = torch.cat((torch.stack((keys, values), 2), question), 1)
    return items, values.gather(1, asked)[:, 0]


def recall_program(n_pairs=8, n_keys=16, n_values=4, n_embd=32, batch=64):
    """Attention and a recurrent unit of equal size learn to recall, side by side.

    Both get the same examples, of `recall_from_noise`. The views, for 1, 2, ... n_pairs
    back: each one's accuracy (n_pairs,), and the attention's mean weights from the
    question (n_pairs, n_pairs + 1).
    """
    from genlib.live import Normal, Phase, Program, Slider
    from genlib.training import Adam

    attend, recur = recall_models(n_embd, n_keys, n_values)

    def attend_loss(order, values):
        return recall_loss(attend, *recall_from_noise(order, values, n_values))

    def recur_loss(order, values):
        return recall_loss(recur, *recall_from_noise(order, values, n_values))

    def views(order_show, values_show):
        items, answers = recall_from_noise(order_show, values_show, n_values)
        shown = {"map": attend.memory.attention(attend.embed(items))[1][:, 0, -1]}
        for name, model in {"attention": attend, "GRU": recur}.items():
            shown[name] = (model(items).argmax(1) == answers).float()
        # Mean of the examples that ask for the same pair, the last pair first
        return {
            k: x.unflatten(0, (-1, n_pairs)).mean(0).flip(0) for k, x in shown.items()
        }

    feeds = {
        "order": Normal(batch, n_keys),
        "values": Normal(batch, n_pairs),
        "order_show": Normal(32 * n_pairs, n_keys),
        "values_show": Normal(32 * n_pairs, n_pairs),
        "lr": Slider(1e-2, 1e-4, 5e-2, log=True, label="learning rate"),
    }
    phases = [
        Phase("attention", "attend", attend_loss, Adam(), "lr"),
        Phase("GRU", "recur", recur_loss, Adam(), "lr"),
    ]
    return Program({"attend": attend, "recur": recur}, phases, feeds, views)


def recall_panels(n_pairs=8, n_values=4):
    """Panels and curves of the lab that trains `recall_program`."""
    from genlib.plot import PALETTE
    from genlib.widgets.training_lab import curve, graph, heatmap, panel

    distances, edge = range(1, n_pairs + 1), n_pairs + 0.5
    accuracy = panel(
        "Accuracy against distance",
        graph("attention", distances, "attention", colour=PALETTE[0]),
        graph("GRU", distances, "GRU", colour=PALETTE[1]),
        extent=(1, n_pairs, 0, 1.03),
        axes=("pairs back", "share right"),
        description="Share of right answers against how many pairs ago the answer was "
        "told, for the attention and for the recurrent unit.",
    )
    look = panel(
        "Where the question looks",
        heatmap("map", "mean weight"),
        extent=(0.5, n_pairs + 1.5, 0.5, edge),
        axes=("place that is looked at", "pairs back"),
        description="Mean attention weight from the question on each place, for each "
        "distance of the pair that is asked for; a clean diagonal is a solved task.",
    )
    plots = [
        curve(
            "loss",
            ("attention_loss", "attention"),
            ("GRU_loss", "GRU"),
            unit="nats",
            lines=[(math.log(n_values), "chance")],
        ),
        curve(
            "accuracy",
            ("attention_accuracy", "attention"),
            ("GRU_accuracy", "GRU"),
            lines=[(1 / n_values, "chance")],
        ),
    ]
    return [accuracy, look], plots


# --- a small language model to look into ----------------------------------------------


class RotaryAttention(MultiHeadAttention):
    """`MultiHeadAttention` with turned queries and keys, and a gate for each head."""

    def forward(self, x, mask, turn, scale=None, gates=1.0):
        """x (B, T, C) -> (B, T, C) and weights (B, n_head, T, T).

        `turn` is of `rotary_table`; `gates`, which broadcast to (B, n_head, 1, 1),
        multiply what each head says: 0 silences it.
        """
        q, k, v = (split_heads(f(x), self.n_head) for f in (self.q, self.k, self.v))
        y, weights = attention(rotate(q, *turn), rotate(k, *turn), v, mask, scale)
        return self.out(merge_heads(gates * y)), weights


class AttentionOnly(nn.Module):
    """A model of the next token made of attention alone, without perceptrons.

    Each layer adds to what was there (Elhage et al. 2021, "A Mathematical Framework for
    Transformer Circuits"). Token number `vocab_size` is padding.
    """

    def __init__(self, vocab_size, block_size=40, n_layer=2, n_head=4, n_embd=64):
        super().__init__()
        self.block_size, self.pad = block_size, vocab_size
        self.width = n_embd // n_head
        self.embed = nn.Embedding(vocab_size + 1, n_embd)
        self.layers = nn.ModuleList(
            RotaryAttention(n_embd, n_head, bias=False) for _ in range(n_layer)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(n_embd) for _ in range(n_layer + 1))
        self.readout = nn.Linear(n_embd, vocab_size)

    def forward(self, idx, causal=1.0, scaled=1.0, positions=1.0, heads=None):
        """Tokens (B, T) -> logits (B, T, V), weights (B, n_layer, n_head, T, T).

        The switches are 1 or 0, numbers or (B, 1, 1, 1); `heads` (n_layer, n_head) or
        (B, n_layer, n_head) are gates. ValueError beyond block_size tokens.
        """
        T = idx.shape[1]
        if T > self.block_size:
            raise ValueError(f"{T} tokens; this model sees {self.block_size} at once")
        mask = (causal_mask(T) | (causal == 0)) & padding_mask(idx, self.pad)
        cos, sin = rotary_table(T, self.width)
        turn = (1 + positions * (cos - 1), positions * sin)  # by no angle, if 0
        scale = self.width ** (-0.5 * scaled)
        if heads is None:
            heads = torch.ones(len(self.layers), self.layers[0].n_head)
        x, weights = self.embed(idx), []
        for n, layer in enumerate(self.layers):
            gates = heads[..., n, :, None, None]
            y, seen = layer(self.norms[n](x), mask, turn, scale, gates)
            x = x + y
            weights.append(seen)
        return self.readout(self.norms[-1](x)), torch.stack(weights, 1)


def repeats(idx, vocab_size, count, T, generator=None, text=0.5):
    """Rows of T tokens in which a piece comes again and again: (count, T), and periods.

    A piece has 5 to T // 2 - 2 tokens. A share `text` of them is cut from the text idx
    (N,); the others are the vocabulary shuffled, where nothing comes twice and nothing
    but the repetition can be foreseen.
    """
    period = torch.randint(5, T // 2 - 1, (count,), generator=generator)
    start = torch.randint(len(idx) - T, (count, 1), generator=generator)
    pieces = idx[start + torch.arange(T)]  # (count, T)
    shuffled = torch.rand(count, vocab_size, generator=generator).argsort(1)
    shuffled = shuffled[:, torch.arange(T) % vocab_size]
    is_text = torch.rand(count, 1, generator=generator) < text
    rows = torch.where(is_text, pieces, shuffled)
    return rows.gather(1, torch.arange(T) % period[:, None]), period


def head_scores(weights, period):
    """What each head does with `repeats`, as mean weights: two (n_layer, n_head).

    On the token before; and, once the piece has begun again, on the token that came
    next the last time: the step that copies (Olsson et al. 2022, "prefix matching").
    """
    T = weights.shape[-1]
    t = torch.arange(T)
    before = weights[..., t[1:], t[:-1]].mean((0, 3))
    follower = t - period[:, None] + 1  # (B, T): where the last time it went on
    again = (follower >= 1).float()[:, None, None]  # (B, 1, 1, T)
    index = follower.clamp(min=0)[:, None, None, :, None]
    index = index.expand(*weights.shape[:3], T, 1)
    copied = weights.gather(4, index)[..., 0] * again
    return before, copied.sum((0, 3)) / again.sum()


def repeat_loss(model, rows, period, **switches):
    """Surprise at the next token, in nats: where it is new, and where it was told.

    `rows` (B, T) and `period` are of `repeats`; a target is told from the second token
    of the repetition on, for its first gives no sign yet.
    """
    logits, _ = model(rows[:, :-1], **switches)
    surprise = F.cross_entropy(
        logits.transpose(1, 2), rows[:, 1:], reduction="none"
    )  # (B, T - 1)
    t = torch.arange(1, rows.shape[1])
    told, new = t > period[:, None], t < period[:, None]
    return (surprise * new).sum() / new.sum(), (surprise * told).sum() / told.sum()


def prose():
    """The book's prose in 36 characters, its capitals and line breaks lost."""
    from genlib.data import book_text

    return re.sub("[^a-z,:;?'().-]+", " ", book_text().lower())


def make_step(model, max_steps, lr=6e-3, **switches):
    """A training step on rows (B, T + 1), for `genlib.training.fit`, in nats.

    `switches` are those of `AttentionOnly.forward`.
    """
    adam = torch.optim.Adam(model.parameters(), lr, (0.9, 0.99))
    plan = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda k: min(1, (k + 1) / 50) * max(0.05, 1 - k / max_steps)
    )

    def step(rows):
        logits, _ = model(rows[:, :-1], **switches)  # (B, T, V)
        loss = F.cross_entropy(logits.transpose(1, 2), rows[:, 1:])
        adam.zero_grad()
        loss.backward()
        adam.step()
        plan.step()
        return {"loss": loss}

    return step


def train_on_repeats(max_steps=900, batch_size=24, seed=0, **switches):
    """A trained `AttentionOnly` of characters, its vocabulary, its text, its history.

    The text is `prose`, as tokens (N,), cut by `repeats`. Some 15 s on one core.
    """
    text = prose()
    chars = "".join(sorted(set(text)))
    number = {c: i for i, c in enumerate(chars)}
    idx = torch.tensor([number[c] for c in text])
    generator = seed_everything(seed)
    model = AttentionOnly(len(chars))
    T = model.block_size + 1
    batches = (
        repeats(idx, len(chars), batch_size, T, generator)[0] for _ in range(max_steps)
    )
    history = fit(make_step(model, max_steps, **switches), batches, max_steps)
    return model.eval().requires_grad_(False), chars, idx, history


class Explorable(nn.Module):
    """An `AttentionOnly` as `AttentionExplorer` asks it: all inputs are float tensors.

    idx (B, T), switches (B, 3) for mask, scale and positions, heads (B, n_layer n_head)
    -> weights (B, n_layer n_head, T, T) and the next token's probabilities (B, T, V).
    """

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.n_layer, self.n_head = len(model.layers), model.layers[0].n_head
        self.block_size = model.block_size

    def forward(self, idx, switches, heads):
        causal, scaled, positions = switches[:, :, None, None, None].unbind(1)
        heads = heads.unflatten(1, (self.n_layer, self.n_head))
        logits, weights = self.model(idx.long(), causal, scaled, positions, heads)
        return weights.flatten(1, 2), logits.softmax(-1)
