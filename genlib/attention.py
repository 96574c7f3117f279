r"""Attention: each position asks a question, and is answered with a mean of what the
others hold, weighted by how well their keys fit. So any distance is one step.

Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762; the first attention:
Bahdanau et al. 2015, arXiv:1409.0473; rotary positions: Su et al. 2021,
arXiv:2104.09864; recurrent units: Cho et al. 2014, arXiv:1406.1078.

Shapes: B examples, T positions that ask, S positions that are asked, C = `n_embd`
numbers a position, d = C / n_head in each head. A mask is True where one may look, as
for `torch.nn.functional.scaled_dot_product_attention`; torch.nn.MultiheadAttention's is
the other way round.
"""

import torch
from torch import nn

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

    def forward(self, items):
        x = self.key(items[..., 0]) + self.value(items[..., 1])  # (B, T, C)
        return self.readout(self.memory(x)[:, -1])


class AttentionMemory(nn.Module):
    """One attention over all that was told: a memory that grows with what it hears."""

    def __init__(self, n_embd, n_head=1):
        super().__init__()
        self.attention = MultiHeadAttention(n_embd, n_head)

    def forward(self, x):
        return self.attention(x)[0]


class RecurrentMemory(nn.Module):
    """A gated recurrent unit (Cho et al. 2014): `width` numbers, however long."""

    def __init__(self, n_embd, width):
        super().__init__()
        self.gru = nn.GRU(n_embd, width, batch_first=True)

    def forward(self, x):
        return self.gru(x)[0]


def recall_models(n_embd=32):
    """An attention and a recurrent model of equal size, to be set the same task.

    The recurrent one gets the width at which it has at least as many parameters.
    """
    attend = Recall(AttentionMemory(n_embd), n_embd, n_embd)
    for width in range(1, n_embd + 1):
        recur = Recall(RecurrentMemory(n_embd, width), n_embd, width)
        if size(recur) >= size(attend):
            return attend, recur


def size(module):
    """How many numbers a module learns."""
    return sum(p.numel() for p in module.parameters())
