r"""A GPT reads a text from left to right and says, at each token, what comes next. That
needs no labels: the text itself is the answer, and so any text will do.

GPT-2: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; GPT:
Radford et al. 2018. The modern recipe: rotary positions, Su et al. 2021,
arXiv:2104.09864; RMSNorm, Zhang and Sennrich 2019, arXiv:1910.07467; QK-norm, Henry et
al. 2020, arXiv:2010.04245; squared ReLU, So et al. 2021, arXiv:2109.08668; Muon, Jordan
et al. 2024, https://kellerjordan.github.io/posts/muon.

Shapes: tokens idx (B, T), int64; logits (B, T, V); C = `n_embd`, d = C / n_head. The
layers bear GPT-2's own names (w for weights, c for the input-output layers that were
convolutions of width 1 there), so that published weights fit.
"""

import bz2
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from genlib.attention import attention, merge_heads, rotary_table, rotate
from genlib.training import Adam, check_fits, read_safetensors, warmup_linear

# --- the architecture -----------------------------------------------------------------


@dataclass
class GPTConfig:
    """The sizes of a GPT, by default those of the smallest GPT-2, and its pieces."""

    vocab_size: int = 50257  # 256 bytes, 50,000 merged pairs, one end of text
    block_size: int = 1024  # tokens that it sees at once
    n_layer: int = 12  # blocks, one after the other
    n_head: int = 12  # attentions side by side in each
    n_embd: int = 768  # numbers that a token carries: 64 for each head
    dropout: float = 0.0  # share dropped in training; GPT-2 had 0.1
    bias: bool = True  # constants in layers and norms, as GPT-2 has them
    # pieces of the modern recipe, all off in GPT-2
    rotary: bool = False  # positions turn queries and keys; nothing is added
    rms_norm: bool = False  # norms without a mean
    qk_norm: bool = False  # queries and keys of length sqrt(d), so scores stay small
    squared_relu: bool = False  # in place of GELU
    zero_init: bool = False  # each block starts as the identity
    # how it runs, not what it computes
    fused: bool = True  # torch's attention kernel; a page needs it off


def modern(**sizes):
    """A `GPTConfig` with all pieces of the modern recipe."""
    pieces = ("rotary", "rms_norm", "qk_norm", "squared_relu", "zero_init")
    return GPTConfig(bias=False, **dict.fromkeys(pieces, True), **sizes)


def rms_norm(x, eps=1e-6):
    """x (..., C) with a mean square of 1 (Zhang and Sennrich 2019, equation 4)."""
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


class RMSNorm(nn.Module):
    """`rms_norm` with a learned gain for each of the C numbers."""

    def __init__(self, n_embd):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_embd))

    def forward(self, x):
        return rms_norm(x) * self.weight


def make_norm(config):
    """The norm of a config: RMSNorm, or GPT-2's LayerNorm."""
    if config.rms_norm:
        return RMSNorm(config.n_embd)
    return nn.LayerNorm(config.n_embd, bias=config.bias)


def make_dropout(config):
    """Dropout, or nothing at all where the share is 0: a page has no dice."""
    return nn.Dropout(config.dropout) if config.dropout else nn.Identity()


class CausalSelfAttention(nn.Module):
    """Each token asks itself and those before it."""

    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        if C % (2 * config.n_head if config.rotary else config.n_head):
            raise ValueError(
                f"n_embd is {C}: {config.n_head} heads cannot share it equally"
                + (", in pairs of numbers to turn" if config.rotary else "")
            )
        self.config = config
        self.c_attn = nn.Linear(C, 3 * C, bias=config.bias)  # q, k and v in one
        self.c_proj = nn.Linear(C, C, bias=config.bias)

    def heads(self, x, turn=None):
        """x (B, T, C) -> q, k, v, each (B, n_head, T, d)."""
        heads = self.c_attn(x).unflatten(-1, (3, self.config.n_head, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        if self.config.qk_norm:
            q, k = rms_norm(q), rms_norm(k)
        if turn is not None:
            q, k = rotate(q, *turn), rotate(k, *turn)
        return q, k, v

    def forward(self, x, t, turn=None, cache=None):
        """x (B, T, C) at positions t (T,): (B, T, C) and, unless fused, the weights."""
        q, k, v = self.heads(x, turn)
        if cache is not None:
            k, v = cache.extend(k, v)  # (B, n_head, S, d)
        T, S = q.shape[2], k.shape[2]
        if self.config.fused and T in (1, S):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
            weights = None
        else:
            past = t[..., None] >= torch.arange(S, device=t.device)  # (T, S)
            y, weights = attention(q, k, v, past.unsqueeze(-3))
        return self.c_proj(merge_heads(y)), weights


class MLP(nn.Module):
    """What each token makes of what it heard, alone: four times as wide inside."""

    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.c_fc = nn.Linear(C, 4 * C, bias=config.bias)
        self.c_proj = nn.Linear(4 * C, C, bias=config.bias)
        self.squared_relu = config.squared_relu

    def forward(self, x):
        x = self.c_fc(x)
        x = x.relu().square() if self.squared_relu else F.gelu(x, approximate="tanh")
        return self.c_proj(x)


class Block(nn.Module):
    """Listen, then think; each adds to what was there. Norms come before, not after."""

    def __init__(self, config):
        super().__init__()
        self.ln_1, self.ln_2 = make_norm(config), make_norm(config)
        self.attn, self.mlp = CausalSelfAttention(config), MLP(config)
        self.drop = make_dropout(config)

    def forward(self, x, t, turn=None, cache=None):
        x = x + self.drop(self.attn(self.ln_1(x), t, turn, cache)[0])
        return x + self.drop(self.mlp(self.ln_2(x)))


class Rotary(nn.Module):
    """The angles by which a position turns queries and keys: t (T,) -> cos, sin."""

    def __init__(self, config):
        super().__init__()
        cos, sin = rotary_table(config.block_size, config.n_embd // config.n_head)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, t):
        return self.cos[t].unsqueeze(-3), self.sin[t].unsqueeze(-3)  # (1, T, d / 2)


class GPT(nn.Module):
    """GPT-2, or the modern recipe: see `GPTConfig`."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # and the readout
        self.drop = make_dropout(config)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = make_norm(config)
        if config.rotary:
            self.rotary = Rotary(config)
        else:
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        initialize(self)

    def embed(self, idx, start=0):
        """Tokens (B, T) -> x (B, T, C), positions t (T,), angles to turn by."""
        t = start + torch.arange(idx.shape[1], device=idx.device)
        if self.config.rotary:
            return self.drop(self.wte(idx)), t, self.rotary(t)
        return self.drop(self.wte(idx) + self.wpe(t)), t, None

    def forward(self, idx, cache=None, last=False):
        """Tokens (B, T) -> logits of the next one at each position (B, T, V).

        `cache`, of `make_cache`, holds the tokens before, and grows; with `last` only
        the last position is read out, (B, 1, V). ValueError beyond block_size tokens.
        """
        start = cache[0].length if cache else 0
        check_length(start + idx.shape[1], self.config.block_size)
        x, t, turn = self.embed(idx, start)
        for layer, block in enumerate(self.h):
            x = block(x, t, turn, cache[layer] if cache else None)
        return F.linear(self.ln_f(x[:, -1:] if last else x), self.wte.weight)

    @staticmethod
    def from_pretrained(name):
        """GPT-2 with its published weights, see `load_pretrained`."""
        return load_pretrained(name)


def initialize(gpt):
    """Draw a GPT's weights as GPT-2's were: normal, of deviation 0.02, biases 0.

    The layers that write into the stream are drawn smaller, by 1 / sqrt(2 n_layer), so
    that it does not grow with depth (Radford et al. 2019, section 2.3). `init_std` on a
    parameter tells the page how to draw it.
    """
    for name, parameter in gpt.named_parameters():
        if "ln_" in name:  # norms start as they are
            continue
        std = 0.0 if name.endswith("bias") else 0.02
        if name.endswith("c_proj.weight"):
            std = 0.0 if gpt.config.zero_init else std / math.sqrt(2 * len(gpt.h))
        nn.init.normal_(parameter, std=std)
        parameter.init_std = std


def check_length(T, block_size):
    """ValueError for more tokens than a model has positions."""
    if T > block_size:
        raise ValueError(
            f"{T} tokens; this model sees {block_size} at once (its block_size)"
        )


@torch.no_grad()
def attention_maps(gpt, idx):
    """Who looks at whom: tokens (B, T) -> weights (B, n_layer, n_head, T, T)."""
    x, t, turn = gpt.embed(idx)
    maps = []
    for block in gpt.h:
        q, k, v = block.attn.heads(block.ln_1(x), turn)
        maps.append(attention(q, k, v, t[:, None] >= t)[1])
        x = block(x, t, turn)
    return torch.stack(maps, 1)


def next_token_loss(gpt, idx, targets):
    """Mean surprise at the next token, in nats; idx and targets are (B, T)."""
    return F.cross_entropy(gpt(idx).flatten(0, 1), targets.flatten())


# --- writing --------------------------------------------------------------------------


class Cache:
    """Keys and values of one layer for all tokens so far: none is computed twice.

    `k` and `v` are (B, n_head, block_size, d), filled up to `length`.
    """

    def __init__(self, config, batch, like):
        d = config.n_embd // config.n_head
        shape = (batch, config.n_head, config.block_size, d)
        self.k, self.v = like.new_empty(shape), like.new_empty(shape)
        self.length = 0

    def extend(self, k, v):
        """Add T keys and values (B, n_head, T, d); return all of them."""
        start, self.length = self.length, self.length + k.shape[2]
        self.k[:, :, start : self.length] = k
        self.v[:, :, start : self.length] = v
        return self.k[:, :, : self.length], self.v[:, :, : self.length]


def make_cache(gpt, batch=1):
    """Empty caches for `batch` texts, one a layer, for `GPT.forward`."""
    return [Cache(gpt.config, batch, gpt.wte.weight) for _ in gpt.h]


def next_token_probs(logits, temperature=1.0, top_k=None, top_p=None):
    """Logits (B, V) -> the probabilities (B, V) that the next token is drawn from.

    `temperature` divides the logits; 0 leaves only the likeliest token. `top_k` keeps
    the k likeliest, all of them where k is V or more; `top_p` then keeps the fewest
    that make up this probability (Holtzman et al. 2020, arXiv:1904.09751). Raises
    ValueError for a temperature below 0, top_k below 1, top_p outside of 0..1.
    """
    check_sampling(temperature, top_k, top_p)
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    probs = logits.softmax(-1)
    if top_p is not None:
        ordered, order = probs.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # probability of what is likelier
        ordered = ordered.masked_fill(before >= top_p, 0.0)
        probs = torch.zeros_like(probs).scatter(-1, order, ordered)
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def check_sampling(temperature, top_k, top_p):
    """ValueError for settings that no distribution has."""
    if not temperature >= 0:
        raise ValueError(
            f"temperature is {temperature}; it must be above 0, or 0 for the likeliest"
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; keep at least 1 token")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be above 0 and at most 1")


def penalize(logits, idx, penalty):
    """Make tokens that stand in idx (B, T) less likely: logits (B, V) -> (B, V).

    Positive logits are divided by `penalty`, negative ones multiplied; 1 changes
    nothing. After Keskar et al. 2019, arXiv:1909.05858, section 4.1, who divide all.
    """
    seen = logits.gather(1, idx)
    seen = torch.where(seen > 0, seen / penalty, seen * penalty)
    return logits.scatter(1, idx, seen)


def generate(
    gpt,
    idx,
    count,
    temperature=1.0,
    top_k=None,
    top_p=None,
    penalty=1.0,
    generator=None,
    cached=True,
):
    """Write on: tokens (B, T) -> (B, T + count). For the settings `next_token_probs`.

    Of a text longer than block_size the last block_size tokens are read, and then the
    cache is of no use: each of them stands at another place. Raises ValueError for an
    empty prompt or a token outside the vocabulary. Call `gpt.eval()` before if it has
    dropout.
    """
    check_prompt(idx, gpt.config.vocab_size)
    check_sampling(temperature, top_k, top_p)
    block_size = gpt.config.block_size
    with torch.inference_mode():  # keeps less account of tensors than no_grad
        cache = make_cache(gpt, len(idx)) if cached else None
        for _ in range(count):
            if cache and idx.shape[1] <= block_size:
                logits = gpt(idx[:, cache[0].length :], cache, last=True)[:, 0]
            else:
                logits = gpt(idx[:, -block_size:], last=True)[:, 0]  # (B, V)
            if penalty != 1:
                logits = penalize(logits, idx, penalty)
            if temperature == 0:
                token = logits.argmax(-1, keepdim=True)
            else:
                probs = next_token_probs(logits, temperature, top_k, top_p)
                token = torch.multinomial(probs, 1, generator=generator)
            idx = torch.cat((idx, token), 1)
    return idx.clone()  # a tensor like any other again


def check_prompt(idx, vocab_size):
    """ValueError unless tokens are (B, T), T at least 1, and of the vocabulary."""
    if idx.ndim != 2 or idx.shape[1] == 0:
        raise ValueError(
            f"the prompt has shape {tuple(idx.shape)}; expected (B, T) with at least "
            "one token: begin with a line break, or the end of another text"
        )
    if idx.min() < 0 or idx.max() >= vocab_size:
        raise ValueError(
            f"the prompt has tokens from {idx.min()} to {idx.max()}; this model knows "
            f"0..{vocab_size - 1}"
        )


def repeated(idx, n=4):
    """Share of a text's n-grams that stood in it before: tokens (T,) -> 0..1."""
    check_text(idx, n)
    grams = [tuple(gram) for gram in idx.unfold(0, n, 1).tolist()]
    return 1 - len(set(grams)) / len(grams)


# --- text -----------------------------------------------------------------------------


class Characters:
    """A vocabulary of the characters of a text: texts <-> tokens, lists of numbers.

    `chars` holds them in order. Raises ValueError for an empty text.
    """

    def __init__(self, text):
        if not text:
            raise ValueError("the text is empty: there is no character to learn")
        self.chars = "".join(sorted(set(text)))
        self.number = {c: i for i, c in enumerate(self.chars)}

    def __len__(self):
        return len(self.chars)

    def encode(self, text):
        """ValueError, naming it, for a character that the vocabulary has not."""
        for place, c in enumerate(text):
            if c not in self.number:
                raise ValueError(
                    f"character {c!r} at place {place} is not among the {len(self)} "
                    "of the vocabulary; replace it, or build the vocabulary with it"
                )
        return [self.number[c] for c in text]

    def decode(self, idx):
        return "".join(self.chars[i] for i in idx)


def text_batches(idx, block_size, batch_size, seed=0):
    """Endless batches of a text (N,): idx and targets, each (batch_size, block_size).

    Windows start anywhere; targets are one token further on. Raises ValueError for a
    text without a whole window.
    """
    check_text(idx, block_size)
    generator = torch.Generator().manual_seed(seed)
    return _text_batches(idx, block_size, batch_size, generator)


def _text_batches(idx, block_size, batch_size, generator):
    windows = idx.unfold(0, block_size + 1, 1)  # (N - block_size, block_size + 1)
    while True:
        start = torch.randint(len(windows), (batch_size,), generator=generator)
        rows = windows[start.to(idx.device)]
        yield rows[:, :-1], rows[:, 1:]


def check_text(idx, block_size):
    """ValueError for a text (N,) that is too short for one window and its target."""
    if len(idx) <= block_size:
        raise ValueError(
            f"the text has {len(idx)} tokens; windows of {block_size} need at least "
            f"{block_size + 1}: take a longer text, or a smaller block_size"
        )


@torch.no_grad()
def evaluate(gpt, idx, batch_size=64):
    """Mean surprise at all tokens of a text (N,) but the first: nats per token.

    The text is cut into windows of block_size, one after the other, so the number is
    the same each time.
    """
    check_text(idx, 1)
    T, device, total = gpt.config.block_size, gpt.wte.weight.device, 0.0
    whole = (len(idx) - 1) // T * T  # tokens in whole windows
    pieces = [*idx[: whole + 1].unfold(0, T + 1, T).split(batch_size)] if whole else []
    if whole < len(idx) - 1:
        pieces.append(idx[None, whole:])
    for rows in pieces:  # (B, T + 1)
        rows = rows.to(device)
        loss = next_token_loss(gpt, rows[:, :-1], rows[:, 1:])
        total += loss.item() * rows[:, 1:].numel()
    return total / (len(idx) - 1)


def bits_per_character(nats, characters_per_token=1.0):
    r"""Nats per token -> bits per character: divided by $\ln 2$ and by the length."""
    return nats / math.log(2) / characters_per_token


def compressed_bits(train, text):
    """Bits per character that bzip2 needs for `text` after it has seen `train`."""
    before, after = (len(bz2.compress(t.encode())) for t in (train, train + text))
    return 8 * (after - before) / len(text)


class NGram:
    r"""Predicts each token from the n - 1 before it, by counting.

    $p_k(w \mid h) = (c(h w) + r(h) \, p_{k-1}(w \mid h')) / (c(h) + r(h))$, where c
    counts, r(h) is the number of different tokens seen after h, h' is h without its
    first token, and $p_0 = 1 / V$ (Witten and Bell 1991, method C, interpolated).
    """

    def __init__(self, n, vocab_size):
        if n < 1 or n * math.log2(vocab_size) >= 63:
            raise ValueError(
                f"n is {n}: n-grams of {vocab_size} tokens must be counted in 63 bits"
            )
        self.n, self.vocab_size, self.tables = n, vocab_size, []

    def fit(self, idx):
        """Count the n-grams, and all shorter ones, of a text (N,)."""
        check_text(idx, self.n)
        sizes = range(1, self.n + 1)
        self.tables = [count_grams(idx, k, self.vocab_size) for k in sizes]
        return self

    def log_prob(self, idx):
        """Log probability of each token given those before, nats: (..., T)."""
        p = torch.full(idx.shape, 1 / self.vocab_size)
        for k, table in enumerate(self.tables[: idx.shape[-1]], start=1):
            grams = gram_codes(idx, k, self.vocab_size)  # of tokens from place k - 1 on
            contexts = grams // self.vocab_size
            count = look_up(table["count"], grams)
            total, kinds = (look_up(table[x], contexts) for x in ("total", "kinds"))
            shorter = p[..., k - 1 :]
            mixed = (count + kinds * shorter) / (total + kinds).clamp(min=1)
            p[..., k - 1 :] = torch.where(total > 0, mixed, shorter)
        return p.log()


def gram_codes(idx, k, vocab_size):
    """One number for each k tokens in a row: (..., T) -> (..., T - k + 1)."""
    place = vocab_size ** torch.arange(k - 1, -1, -1)
    return (idx.unfold(-1, k, 1) * place).sum(-1)


def count_grams(idx, k, vocab_size):
    """How often each k-gram of a text stands there, each context, with how many kinds.

    A dict of pairs: sorted codes, and their numbers.
    """
    grams, counts = gram_codes(idx, k, vocab_size).unique(return_counts=True)
    contexts, place = (grams // vocab_size).unique(return_inverse=True)
    total = torch.zeros(len(contexts)).index_add(0, place, counts.float())
    return {
        "count": (grams, counts.float()),
        "total": (contexts, total),
        "kinds": (contexts, place.bincount().float()),
    }


def look_up(table, codes):
    """The values of sorted keys, 0 for keys that are not there."""
    keys, values = table
    place = torch.searchsorted(keys, codes).clamp(max=len(keys) - 1)
    return values[place] * (keys[place] == codes)


# --- training -------------------------------------------------------------------------


def orthogonalize(g, steps=5, coefficients=(3.4445, -4.7750, 2.0315)):
    r"""A matrix (..., m, n) with all its singular values brought near 1, by products.

    $X \leftarrow a X + (b X X^T + c (X X^T)^2) X$ changes a singular value s into
    $a s + b s^3 + c s^5$ and turns nothing. These coefficients lift small ones fast and
    leave all in about 0.7 to 1.2 (Jordan et al. 2024); (15/8, -5/4, 3/8) tend to 1.
    """
    a, b, c = coefficients
    x = g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # all singular values <= 1
    wide = g.shape[-2] <= g.shape[-1]
    x = x if wide else x.mT
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    r"""Momentum whose step is made orthogonal: every direction moves alike.

    $m \leftarrow \mu m + g$, and w moves by $\eta \sqrt{\max(1, rows / cols)}$ times
    `orthogonalize` of $g + \mu m$ (Jordan et al. 2024). For the matrices inside a
    network; embeddings, gains and biases want Adam. All in the weights' precision:
    where bfloat16 is slow, torch's own Muon is.
    """

    def __init__(self, params, lr=0.02, momentum=0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            mu = group["momentum"]
            for w in group["params"]:
                if w.grad is None:
                    continue
                if not self.state[w]:
                    self.state[w]["momentum"] = torch.zeros_like(w)
                m = self.state[w]["momentum"].mul_(mu).add_(w.grad)
                rate = group["lr"] * max(1, w.shape[0] / w.shape[1]) ** 0.5
                w.sub_(rate * orthogonalize(w.grad + mu * m))


def make_optimizers(gpt, lr=1e-3, muon=None):
    """Adam for all weights, or, where `muon` is a rate, Muon for the blocks' matrices.

    Adam's second memory is 0.99 long: with small batches 0.999 is too slow.
    """
    matrices = [p for p in gpt.h.parameters() if p.ndim == 2] if muon else []
    chosen = {id(p) for p in matrices}
    others = [p for p in gpt.parameters() if id(p) not in chosen]
    adam = torch.optim.Adam(others, lr, betas=(0.9, 0.99))
    return [adam, Muon(matrices, muon)] if matrices else [adam]


def make_step(gpt, max_steps, lr=1e-3, muon=None, warmup=0.1):
    """The training step of a run of `max_steps`: step((idx, targets)) -> metrics.

    For `genlib.training.fit`. Rates rise in the first share `warmup`, then fall to 0.
    `step.objects` is what a `Checkpoint` has to keep beside the model.
    """
    optimizers = make_optimizers(gpt, lr, muon)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            o, lambda k: warmup_linear(k, max_steps, warmup)
        )
        for o in optimizers
    ]

    def step(batch):
        # Score: how surprised is it at each next token?
        loss = next_token_loss(gpt, *batch)
        # Blame: how does each weight change that?
        gpt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)  # one odd batch does no harm
        # Move: a small step against the gradient
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        return {"loss": loss}

    kept = (*optimizers, *schedules)
    step.objects = {f"{type(x).__name__}_{i}": x for i, x in enumerate(kept)}
    return step


# --- published weights ----------------------------------------------------------------

PUBLISHED = {  # name: (address, SHA-256, size)
    "gpt2": (
        "https://huggingface.co/openai-community/gpt2/resolve/main/model.safetensors",
        "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
        "548 MB",
    )
}
TRANSPOSED = tuple(
    f"{name}.weight"
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
)


def load_pretrained(name):
    """GPT-2 with its published weights: "gpt2", or a folder that holds them.

    A folder has `config.json` and `model.safetensors`, as published at
    https://huggingface.co/openai-community/gpt2; "gpt2" is downloaded (548 MB) where it
    is not yet stored. Raises ValueError for anything else, and for weights that do not
    fit; `genlib.data.DataError` where the download fails.
    """
    file, config = find_pretrained(name)
    with torch.device("meta"):  # shapes alone: the weights come from the file
        gpt = GPT(config)
    weights = published_weights(file)
    check_fits(gpt, weights, file)
    gpt.load_state_dict(weights, assign=True)
    return gpt


def find_pretrained(name):
    """The file of a published GPT-2, downloaded if need be, and its `GPTConfig`."""
    folder = Path(name)
    if folder.is_dir():
        file = folder / "model.safetensors"
        if not file.is_file():
            raise ValueError(
                f"the folder {name} has no model.safetensors; download it from "
                f"{PUBLISHED['gpt2'][0]}"
            )
        return file, read_config(folder / "config.json")
    if str(name) in PUBLISHED:
        return download_pretrained(str(name)), GPTConfig()
    raise ValueError(
        f"{str(name)!r} is neither a folder here nor a published model that this book "
        f"knows ({', '.join(PUBLISHED)}); download config.json and model.safetensors "
        "into a folder and give its path"
    )


def download_pretrained(name):
    """Where the weights of `name` are stored; DataError where they cannot be had."""
    from genlib.data import DataError, _download, _folder, _sha256

    url, sha256, size = PUBLISHED[name]
    path = _folder(name) / "model.safetensors"
    try:
        if not path.exists():
            _download(url, path, sha256)
        if _sha256(path) == sha256:
            return path
        reason = f"{path} is damaged, or half of it: delete it"
    except (OSError, ValueError) as error:
        reason = f"{url} gave no whole file ({type(error).__name__})"
    raise DataError(
        f"cannot load {name!r}, {size}: {reason}. Check network and disk, or put "
        "config.json and model.safetensors into a folder and give its path: "
        'GPT.from_pretrained("path/to/gpt2")'
    )


def read_config(path):
    """The `GPTConfig` of a published config.json; ValueError if it is of no GPT-2."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path} ({type(error).__name__})") from error
    expected = {
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
    }
    for key, value in expected.items():
        if found.get(key) != value:
            raise ValueError(
                f"{path} says {key}: {found.get(key)!r}; this class is GPT-2, {value!r}"
            )
    sizes = ("vocab_size", "n_layer", "n_head", "n_embd")
    return GPTConfig(block_size=found["n_positions"], **{k: found[k] for k in sizes})


def published_weights(file):
    """Published tensors under this class's names and in its layout.

    Published are matrices (in, out), from the days of convolutions of width 1; `Linear`
    has (out, in). Masks and a second copy of the embedding are left out.
    """
    tensors, weights = read_safetensors(file)[0], {}
    for name, x in tensors.items():
        name = name.removeprefix("transformer.")
        if name.endswith((".attn.bias", "masked_bias")) or name == "lm_head.weight":
            continue
        weights[name] = (x.T.contiguous() if name.endswith(TRANSPOSED) else x).float()
    return weights


# --- in the page ----------------------------------------------------------------------


class CacheInPage:
    """As `Cache`, with shapes that never change: for a graph that is drawn once.

    `table` (B, 2, n_head, block_size, d) holds all places, `at` (B, 1) is the place of
    the new token; places after it are masked, as their number is higher.
    """

    def __init__(self, table, at):
        self.table, self.length = table, at

    def extend(self, k, v):
        """Put one key and value (B, n_head, 1, d) into their place; return all."""
        places = torch.arange(self.table.shape[3], device=self.length.device)
        here = (places == self.length)[:, None, None, :, None]
        self.table = torch.where(here, torch.stack((k, v), 1), self.table)
        return self.table[:, 0], self.table[:, 1]


class NextToken(nn.Module):
    """One token of a text, with a cache that the page keeps between calls.

    Token (B,) and its place (B,), int64, and cache (B, n_layer, 2, n_head, block_size,
    d) -> logits of the next token (B, V), the new cache, and whom this token looks at
    (B, n_layer, n_head, block_size). Build the GPT with `fused=False`.
    """

    def __init__(self, gpt):
        super().__init__()
        self.gpt = gpt

    def forward(self, token, at, cache):
        tables = [CacheInPage(table, at[:, None]) for table in cache.unbind(1)]
        x, t, turn = self.gpt.embed(token[:, None], at[:, None])
        maps = []
        for block, table in zip(self.gpt.h, tables, strict=True):
            y, weights = block.attn(block.ln_1(x), t, turn, table)
            x = x + y
            x = x + block.mlp(block.ln_2(x))
            maps.append(weights[:, :, 0])
        logits = F.linear(self.gpt.ln_f(x[:, 0]), self.gpt.wte.weight)
        return logits, torch.stack([c.table for c in tables], 1), torch.stack(maps, 1)


class MuonAdam:
    """The optimisers of `make_optimizers`, on the flat vector of a `Program`.

    Of the parameters of `gpt` the blocks' matrices move as `Muon` moves them, at
    `ratio` times the rate, all others as Adam does. As `genlib.training.Adam`.
    """

    slots = 2

    def __init__(self, gpt, ratio=4.0, momentum=0.95):
        self.shapes = [p.shape for p in gpt.parameters()]
        inside = {id(p) for p in gpt.h.parameters() if p.ndim == 2}
        self.matrix = [id(p) in inside for p in gpt.parameters()]
        self.ratio, self.momentum = ratio, momentum
        self.adam = Adam(betas=(0.9, 0.99))

    def update(self, w, g, slots, t, lr):
        """Weights w (S,), gradient g (S,) -> new weights and new slots."""
        sizes = [shape.numel() for shape in self.shapes]
        parts = zip(*(x.split(sizes) for x in (w, g, *slots)), strict=True)
        new = [
            self.turn(w, g, m, s, shape, lr)
            if is_matrix
            else self.adam.update(w, g, (m, s), t, lr)
            for (w, g, m, s), shape, is_matrix in zip(
                parts, self.shapes, self.matrix, strict=True
            )
        ]
        w = torch.cat([w for w, _ in new])
        m, s = (torch.cat([kept[i] for _, kept in new]) for i in range(2))
        return w, (m, s)

    def turn(self, w, g, m, s, shape, lr):
        """Muon's step on one matrix, all flat; s is Adam's, and stays 0."""
        m = self.momentum * m + g
        step = orthogonalize((g + self.momentum * m).view(shape)).flatten()
        rate = self.ratio * lr * max(1, shape[0] / shape[1]) ** 0.5
        return w - rate * step, (m, s)


def check_vocabulary(gpt, chars):
    """ValueError unless a model was built for a vocabulary of this size."""
    if len(chars) != gpt.config.vocab_size:
        raise ValueError(
            f"the vocabulary has {len(chars)} characters; this model was built for "
            f"{gpt.config.vocab_size}"
        )


# What the page's GPT reads: all that a plain keyboard writes
PRINTABLE = Characters("\n" + "".join(map(chr, range(32, 127))))


def page_program(text=None, chars=PRINTABLE, config=None, batch=16):
    """A small GPT learns a text by characters, in the page (see `genlib.live`).

    `text` is by default the book's own prose; `chars` is larger than it needs, so that
    the reader may bring another. The reader sets the rate, Adam's; Muon's is four times
    that. The views are of a window of text, the beginning at first: each next
    character's probability at each place (T, V), and whom each asks, as images
    (n_layer * n_head, 1, T, T).
    """
    from genlib.data import book_text
    from genlib.live import First, Phase, Program, Rows, Slider

    sizes = {"block_size": 32, "n_layer": 2, "n_head": 4, "n_embd": 64}
    gpt = GPT(config or modern(vocab_size=len(chars), fused=False, **sizes))
    check_vocabulary(gpt, chars)
    idx = torch.tensor(chars.encode(book_text() if text is None else text))
    T = gpt.config.block_size
    check_text(idx, T)
    rows = idx.unfold(0, T + 1, T).float()  # (N, T + 1)

    def loss(rows):
        rows = rows.long()
        nats = next_token_loss(gpt, rows[:, :-1], rows[:, 1:])
        return {"loss": nats, "bits": bits_per_character(nats)}

    def views(prompt):
        idx = prompt.long()
        maps = attention_maps(gpt, idx)[0].flatten(0, 1)[:, None]
        return {"next": gpt(idx)[0].softmax(-1), "maps": maps}

    feeds = {
        "rows": Rows("text", batch),
        "lr": Slider(5e-3, 1e-4, 3e-2, log=True, label="learning rate"),
        "prompt": First("prompt", 1),
    }
    phase = Phase("gpt", "gpt", loss, MuonAdam(gpt), "lr")
    tables = {"text": {"the book": rows}, "prompt": {"prompt": rows[:1, :-1]}}
    texts = dict.fromkeys(tables, chars.chars)
    return Program({"gpt": gpt}, [phase], feeds, views, tables, texts)


def page_panels(text=None, chars=PRINTABLE):
    """Panels and curves of the lab that trains `page_program`.

    Landmarks are what n-grams need on the last tenth of the text, having counted the
    rest.
    """
    from genlib.data import book_text
    from genlib.widgets.training_lab import curve, images, panel
    from genlib.widgets.training_lab import text as written

    idx = torch.tensor(chars.encode(book_text() if text is None else text))
    cut = len(idx) * 9 // 10
    marks = [(math.log2(len(chars)), "guessing evenly")]
    names = {1: "letters alone", 2: "1 letter before", 3: "2 before", 5: "4 before"}
    for n, name in names.items():
        nats = -NGram(n, len(chars)).fit(idx[:cut]).log_prob(idx[cut:]).mean().item()
        marks.append((bits_per_character(nats), name))
    panels = [
        panel(
            "What it writes",
            written("next", "prompt"),
            description="The text that the model writes while it learns, one character "
            "with each picture.",
        ),
        panel(
            "Whom each of 32 characters asks",
            images("maps", 4),
            description="Attention of the four heads of both layers: rows ask, columns "
            "are asked, light is much.",
        ),
    ]
    plot = curve("surprise", ("bits", "GPT"), unit="bits per character", lines=marks)
    return panels, [plot]
