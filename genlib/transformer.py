r"""The Transformer of 2017 translates: an encoder reads one sentence, a decoder writes
another, token by token, and asks the encoder at every step what to look at.

Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762. Norms before the
layers: Xiong et al. 2020, arXiv:2002.04745; label smoothing: Szegedy et al. 2016,
arXiv:1512.00567; length normalisation: Wu et al. 2016, arXiv:1609.08144; byte pairs:
Sennrich et al. 2016, arXiv:1508.07909, over bytes: Radford et al. 2019. Its
rival here: attention in a recurrent network, Luong et al. 2015, arXiv:1508.04025.

Shapes: source tokens src (B, S), target tokens idx (B, T), int64, padded with PAD; a
target begins with START and ends with END.
"""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from genlib.attention import MultiHeadAttention, causal_mask, padding_mask, sinusoidal

PAD, START, END = range(3)  # tokens that are no text

# --- the architecture -----------------------------------------------------------------


@dataclass
class TransformerConfig:
    """The sizes of a Transformer, by default those of the paper's base model.

    That has 63.1 million parameters, 18.9 of them in the table of tokens, where the
    paper's table 3 says 65. All eight rows of that table that change depth or width
    come out with 40,932 to 41,160 tokens; the text says "about 37000".
    """

    vocab_size: int = 37_000  # byte pairs of both languages together (section 5.1)
    n_layer: int = 6  # in the encoder, and as many in the decoder
    n_head: int = 8  # attentions side by side
    n_embd: int = 512  # numbers a token carries: 64 for each head
    n_hidden: int = 2048  # width inside the feed-forward layers
    dropout: float = 0.1  # share dropped of each layer's output, and of the embedding
    pre_norm: bool = False  # the paper's norms come after the addition
    max_length: int = 512  # positions; they are computed, so more cost nothing


def big():
    """The paper's big model: 214.2 million parameters, 213 in its table 3."""
    return TransformerConfig(n_head=16, n_embd=1024, n_hidden=4096, dropout=0.3)


class Residual(nn.Module):
    """What stands around each layer: add its output to its input, keep the scale.

    After, as in the paper: norm(x + f(x)). Before: x + f(norm(x)), which trains without
    warm-up (Xiong et al. 2020). Write `x = r.leave(x, f(r.enter(x)))`.
    """

    def __init__(self, config):
        super().__init__()
        self.norm = nn.LayerNorm(config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.pre_norm = config.pre_norm

    def enter(self, x):
        return self.norm(x) if self.pre_norm else x

    def leave(self, x, y):
        x = x + self.drop(y)
        return x if self.pre_norm else self.norm(x)


def feed_forward(config):
    r"""Each position by itself: $\max(0, x W_1 + b_1) W_2 + b_2$ (equation 2)."""
    return nn.Sequential(
        nn.Linear(config.n_embd, config.n_hidden),
        nn.ReLU(),
        nn.Linear(config.n_hidden, config.n_embd),
    )


class EncoderLayer(nn.Module):
    """Every source token asks all others, then thinks: (B, S, C) -> (B, S, C)."""

    def __init__(self, config):
        super().__init__()
        self.attention = MultiHeadAttention(config.n_embd, config.n_head)
        self.mlp = feed_forward(config)
        self.around = nn.ModuleList(Residual(config) for _ in range(2))

    def forward(self, x, mask=None):
        listen, think = self.around
        x = listen.leave(x, self.attention(listen.enter(x), mask=mask)[0])
        return think.leave(x, self.mlp(think.enter(x)))


class DecoderLayer(nn.Module):
    """A target token asks those before it, then the source, then thinks.

    x (B, T, C) and memory (B, S, C) -> (B, T, C), and where it looked in the source
    (B, n_head, T, S).
    """

    def __init__(self, config):
        super().__init__()
        self.attention = MultiHeadAttention(config.n_embd, config.n_head)
        self.cross = MultiHeadAttention(config.n_embd, config.n_head)
        self.mlp = feed_forward(config)
        self.around = nn.ModuleList(Residual(config) for _ in range(3))

    def forward(self, x, memory, mask=None, memory_mask=None):
        listen, ask, think = self.around
        x = listen.leave(x, self.attention(listen.enter(x), mask=mask)[0])
        y, weights = self.cross(ask.enter(x), memory, memory_mask)
        x = ask.leave(x, y)
        return think.leave(x, self.mlp(think.enter(x))), weights


class Encoder(nn.Module):
    """A stack of encoder layers: embedded tokens (B, S, C) -> memory (B, S, C)."""

    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_layer))
        self.norm = last_norm(config)

    def forward(self, x, mask=None):
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)


class Decoder(nn.Module):
    """A stack of decoder layers: embedded tokens (B, T, C), memory -> (B, T, C), maps.

    The maps, where each token looked in the source, are (B, n_layer, n_head, T, S).
    """

    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.n_layer))
        self.norm = last_norm(config)

    def forward(self, x, memory, mask=None, memory_mask=None):
        maps = []
        for layer in self.layers:
            x, weights = layer(x, memory, mask, memory_mask)
            maps.append(weights)
        return self.norm(x), torch.stack(maps, 1)


def last_norm(config):
    """With norms before the layers, the sum that leaves the last one has none yet."""
    return nn.LayerNorm(config.n_embd) if config.pre_norm else nn.Identity()


class Transformer(nn.Module):
    """Encoder and decoder; one table embeds both languages and reads the logits out."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        positions = sinusoidal(config.max_length, config.n_embd)
        self.register_buffer("positions", positions, persistent=False)
        self.drop = nn.Dropout(config.dropout)
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        initialize(self)

    def embed(self, idx):
        """Tokens (B, T) -> (B, T, C): times sqrt(C) (section 3.4), plus positions."""
        T, C = idx.shape[1], self.config.n_embd
        check_length(T, self.config.max_length)
        return self.drop(math.sqrt(C) * self.embedding(idx) + self.positions[:T])

    def encode(self, src):
        """Source tokens (B, S) -> memory (B, S, C) and its mask (B, 1, 1, S)."""
        mask = padding_mask(src, PAD)
        return self.encoder(self.embed(src), mask), mask

    def decode(self, idx, memory, memory_mask):
        """Target tokens so far (B, T) -> logits of the next (B, T, V) and maps."""
        mask = causal_mask(idx.shape[1], idx.device)
        x, maps = self.decoder(self.embed(idx), memory, mask, memory_mask)
        return F.linear(x, self.embedding.weight), maps

    def forward(self, src, idx):
        """Source (B, S), target so far (B, T) -> logits of what follows (B, T, V)."""
        return self.decode(idx, *self.encode(src))[0]


def check_length(T, max_length):
    """ValueError for a sentence of more tokens than a model has positions."""
    if T > max_length:
        raise ValueError(
            f"{T} tokens; this model has {max_length} positions (its max_length)"
        )


def initialize(model):
    """Matrices uniform by Glorot and Bengio 2010; the table normal, as 1 / sqrt(C)."""
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)
    nn.init.normal_(model.embedding.weight, std=model.config.n_embd**-0.5)


# --- training -------------------------------------------------------------------------


def label_smoothing_loss(logits, targets, smoothing=0.1):
    r"""Cross-entropy with a target that is a little unsure, mean over tokens, nats.

    $-\sum_v q_v \log p_v$, where q has $1 - \epsilon$ at the right token and another
    $\epsilon / V$ at each (Szegedy et al. 2016, section 7). Logits (B, T, V), targets
    (B, T); PAD does not count.
    """
    V = logits.shape[-1]
    right = targets[..., None] == torch.arange(V, device=targets.device)  # (B, T, V)
    q = (1 - smoothing) * right + smoothing / V
    loss = -(q * logits.log_softmax(-1)).sum(-1)  # (B, T)
    real = (targets != PAD).to(loss.dtype)
    return (loss * real).sum() / real.sum()


def warmup_rate(step, n_embd, warmup=4000):
    r"""$C^{-1/2} \min(t^{-1/2}, t \cdot warmup^{-3/2})$, t from 1 (equation 3).

    A straight rise, then a fall with the root of the steps.
    """
    return n_embd**-0.5 * min(step**-0.5, step * warmup**-1.5)


def make_step(model, lr=1.0, warmup=4000, smoothing=0.1):
    """A training step: step((src, tgt)) -> {"loss"}, for `genlib.training.fit`.

    Adam and its rate, `lr` times `warmup_rate`, as in section 5.3. The decoder is told
    the true tokens so far, whatever it would have written: teacher forcing.
    """
    adam = torch.optim.Adam(model.parameters(), lr, betas=(0.9, 0.98), eps=1e-9)
    rate = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda k: warmup_rate(k + 1, model.config.n_embd, warmup)
    )

    def step(batch):
        src, tgt = batch
        # Score: how surprised is it at each token, told those before?
        loss = label_smoothing_loss(model(src, tgt[:, :-1]), tgt[:, 1:], smoothing)
        # Blame: how does each weight change that?
        adam.zero_grad()
        loss.backward()
        # Move: a small step against the gradient
        adam.step()
        rate.step()
        return {"loss": loss}

    return step


# --- writing --------------------------------------------------------------------------


def next_log_probs(model, idx, memory, mask):
    """Log probabilities of the token after idx (B, T): (B, V). No PAD, no START."""
    logits = model.decode(idx, memory, mask)[0][:, -1]
    logits[:, [PAD, START]] = -math.inf
    return logits.log_softmax(-1)


@torch.no_grad()
def greedy(model, src, max_length=64):
    """Write the likeliest token, again and again: sources (B, S) -> (B, T).

    Without START; END closes a sentence and PAD fills up. A sentence that has no END
    within max_length tokens stops there.
    """
    memory, mask = model.encode(src)
    idx = torch.full_like(src[:, :1], START)
    done = torch.zeros_like(idx, dtype=torch.bool)
    for _ in range(max_length):
        token = next_log_probs(model, idx, memory, mask).argmax(-1, keepdim=True)
        token = token.masked_fill(done, PAD)
        idx, done = torch.cat((idx, token), 1), done | (token == END)
        if done.all():
            break
    return idx[:, 1:]


def length_penalty(length, alpha):
    r"""$((5 + length) / 6)^\alpha$, by which log probabilities are divided.

    Each token makes a sentence less likely, so that without it the short ones win. 0
    changes nothing (Wu et al. 2016, equation 14).
    """
    return ((5 + length) / 6) ** alpha


@torch.no_grad()
def beam_search(model, src, width=4, max_length=64, alpha=0.6):
    """Keep the `width` likeliest beginnings: source (S,) -> [(score, tokens), ...].

    Best first; tokens are a list that ends in END, scores are log probabilities divided
    by `length_penalty`. The paper has width 4 and alpha 0.6 (section 6.1). If nothing
    ends within max_length tokens, the beginnings are returned as they are.
    """
    if width < 1:
        raise ValueError(f"width is {width}; a beam keeps at least 1 sentence")
    memory, mask = model.encode(src[None])
    beams, scores, ended = src.new_full((1, 1), START), memory.new_zeros(1), []
    for length in range(1, max_length + 1):
        log_p = next_log_probs(model, beams, memory.expand(len(beams), -1, -1), mask)
        beams, scores = extend_beams(beams, scores, log_p, 2 * width)
        over, penalty = beams[:, -1] == END, length_penalty(length, alpha)
        finished = (scores[over] / penalty).tolist(), beams[over, 1:].tolist()
        ended = sorted([*ended, *zip(*finished, strict=True)], reverse=True)[:width]
        beams, scores = beams[~over][:width], scores[~over][:width]
        if not len(beams):
            break
        # A log probability only falls: can any beam still come among the best?
        hope = scores.max().item() / length_penalty(max_length, alpha)
        if len(ended) == width and hope <= ended[-1][0]:
            break
    open_ends = zip((scores / penalty).tolist(), beams[:, 1:].tolist(), strict=True)
    return ended or list(open_ends)


def extend_beams(beams, scores, log_p, count):
    """The `count` likeliest continuations by one token, best first.

    Beginnings (n, T), their log probabilities (n,), those of the next token (n, V) ->
    (count, T + 1) and (count,). Of twice the beam's width at most half can end here.
    """
    total = (scores[:, None] + log_p).flatten()
    best = total.topk(min(count, total.isfinite().sum().item()))
    beam, token = best.indices // log_p.shape[1], best.indices % log_p.shape[1]
    return torch.cat((beams[beam], token[:, None]), 1), best.values


@torch.no_grad()
def forced_accuracy(model, src, tgt):
    """Share of right tokens where each is written after the true ones before it.

    src (B, S), tgt (B, T) from START to END: teacher forcing, one mistake stays one.
    """
    logits, targets = model(src, tgt[:, :-1]), tgt[:, 1:]
    logits[..., [PAD, START]] = -math.inf
    real = targets != PAD
    return (logits.argmax(-1) == targets)[real].float().mean().item()


@torch.no_grad()
def exact_match(model, src, tgt):
    """Which sentences come out right as a whole, written freely: bool (B,).

    src (B, S), tgt (B, T) from START to END. What is longer than the truth is wrong.
    """
    written, truth = greedy(model, src, tgt.shape[1] - 1), tgt[:, 1:]
    written = F.pad(written, (0, truth.shape[1] - written.shape[1]), value=PAD)
    return (written == truth).all(1)


# --- number words ---------------------------------------------------------------------

LANGUAGES = ("en", "de", "fr")


def number_words(n, language):
    """A whole number from 0 on in words: 21 -> "einundzwanzig" in "de".

    Needs num2words, which the extra `genlib[words]` brings.
    """
    try:
        from num2words import num2words
    except ModuleNotFoundError as error:
        raise ImportError(
            "number words need num2words; pip install 'genlib[words]' brings it"
        ) from error
    if language not in LANGUAGES:
        have = ", ".join(LANGUAGES)
        raise ValueError(f"unknown language {language!r}; choose from: {have}")
    if n < 0 or n != int(n):
        raise ValueError(f"n is {n}; it must be a whole number from 0 on")
    return num2words(int(n), lang=language)


def held_out(n):
    """Whether a number is kept for testing, in every language and direction.

    One in ten from 100 on, spread evenly by a hash (Knuth 1973, section 6.4). Those
    below 100 are the vocabulary: who never saw "zero" cannot write it.
    """
    return n >= 100 and (n * 2_654_435_761) % 2**32 < 2**32 // 10


def draw_numbers(count, digits, held=False, generator=None):
    """`count` numbers of 1 to `digits` digits, all lengths alike, as a list.

    `held` chooses between those held out, which have 3 digits at least, and the others.
    Raises ValueError where there are none.
    """
    low = 3 if held else 1
    if digits < low:
        what = "held-out numbers have" if held else "a number has"
        raise ValueError(f"digits is {digits}; {what} at least {low}")
    numbers = []
    while len(numbers) < count:
        length = torch.randint(low, digits + 1, (), generator=generator).item()
        first = 10 ** (length - 1) if length > 1 else 0
        n = torch.randint(first, 10**length, (), generator=generator).item()
        if held_out(n) == held:
            numbers.append(n)
    return numbers


def number_pairs(numbers, source="en", target="de"):
    """Numbers -> pairs of texts: [("twenty-one", "einundzwanzig"), ...]."""
    return [(number_words(n, source), number_words(n, target)) for n in numbers]


def number_bpe(languages=("en", "de"), merges=89):
    """Byte pairs of number words: 89 cut 21 into ein|und|zwanzig, 100 no longer."""
    numbers = [*range(100)] * 10
    numbers += draw_numbers(1000, 4, generator=torch.Generator().manual_seed(0))
    words = [number_words(n, language) for n in numbers for language in languages]
    return BPE(learn_merges("\n".join(words), merges))


def pad_rows(rows):
    """Lists of tokens -> one tensor (B, T), filled up with PAD at the end."""
    T = max(map(len, rows))
    return torch.tensor([[*row, *[PAD] * (T - len(row))] for row in rows])


def encode_pairs(bpe, pairs):
    """Pairs of texts -> src (B, S), ending in END, and tgt (B, T), START to END."""
    src, tgt = zip(*pairs, strict=True)
    return (
        pad_rows([[*bpe.encode(text), END] for text in src]),
        pad_rows([[START, *bpe.encode(text), END] for text in tgt]),
    )


def pair_batches(src, tgt, batch_size, seed=0):
    """Endless batches of pairs, drawn with return: src (B, S) and tgt (B, T).

    Each is as long as its longest sentence. All is drawn from a generator of `seed`.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        index = torch.randint(len(src), (batch_size,), generator=generator)
        yield tuple(x[:, : (x != PAD).sum(1).max()] for x in (src[index], tgt[index]))


@torch.no_grad()
def cross_maps(model, src, tgt):
    """Where each written token looked in the source: (B, n_layer, n_head, T - 1, S).

    src (B, S), tgt (B, T) from START on. Row t is the moment in which token t + 1 of
    `tgt` is written, when those up to t are known.
    """
    return model.decode(tgt[:, :-1], *model.encode(src))[1]


def looks_at_unit(model, bpe, numbers):
    """Share of numbers whose German unit is written with the eye on the English one.

    Of "thirty-two" -> "zweiunddreißig": does the token that begins "zwei" give most of
    its weight to a token of "two"? For each layer and head: (n_layer, n_head). The
    numbers end in 21..99, without the tens 30, 40, ...
    """
    seen = []
    for n in numbers:
        english, german = number_pairs([n])[0]
        src, tgt = encode_pairs(bpe, [(english, german)])
        unit = english.rindex("-") + 1
        tail = len(number_words(n % 100, "de"))
        row = token_at(bpe, tgt[0, 1:], len(german) - tail)
        first = token_at(bpe, src[0], unit)
        looked = cross_maps(model, src, tgt)[0, :, :, row].argmax(-1)  # (L, n_head)
        seen.append((looked >= first) & (looked < src.shape[1] - 1))  # no END
    return torch.stack(seen).float().mean(0)


def token_at(bpe, idx, place):
    """Which of the tokens holds the character at `place` of their text."""
    for i in range(len(idx)):
        if len(bpe.decode(idx[: i + 1].tolist())) > place:
            return i
    raise ValueError(f"the text has no character {place}")


def spoil(tgt, share, generator=None):
    """Replace a share of the tokens by others of the same batch: tgt (B, T) -> (B, T).

    START, END and PAD stay. A decoder that reads this in training meets mistakes.
    """
    words = tgt[tgt > END]
    drawn = words[torch.randint(len(words), tgt.shape, generator=generator)]
    struck = torch.rand(tgt.shape, generator=generator) < share
    return torch.where(struck & (tgt > END), drawn, tgt)


# --- a recurrent rival ----------------------------------------------------------------


class RecurrentTranslator(nn.Module):
    """Two gated recurrent units, one attention between them (Luong et al. 2015).

    It has the methods of `Transformer`, so `make_step`, `greedy` and the rest take it.
    """

    def __init__(self, config):
        super().__init__()
        self.config, C = config, config.n_embd
        self.embedding = nn.Embedding(config.vocab_size, C)
        self.reader = nn.GRU(C, C, batch_first=True, bidirectional=True)
        self.memory = nn.Linear(2 * C, C)
        self.writer = nn.GRU(C, C, batch_first=True)
        self.cross = MultiHeadAttention(C, 1)
        self.mix = nn.Linear(2 * C, C)
        initialize(self)

    def encode(self, src):
        """Source tokens (B, S) -> memory (B, S, C) and its mask (B, 1, 1, S)."""
        real = (src != PAD).sum(1).cpu()
        pack = nn.utils.rnn.pack_padded_sequence
        x = pack(self.embed(src), real, batch_first=True, enforce_sorted=False)
        x, _ = nn.utils.rnn.pad_packed_sequence(
            self.reader(x)[0], batch_first=True, total_length=src.shape[1]
        )
        return self.memory(x), padding_mask(src, PAD)

    def embed(self, idx):
        return self.embedding(idx) * math.sqrt(self.config.n_embd)

    def decode(self, idx, memory, memory_mask):
        """Target tokens so far (B, T) -> logits of the next (B, T, V) and maps."""
        x = self.writer(self.embed(idx))[0]  # (B, T, C)
        y, weights = self.cross(x, memory, memory_mask)
        x = self.mix(torch.cat((x, y), -1)).tanh()
        return F.linear(x, self.embedding.weight), weights[:, None]

    def forward(self, src, idx):
        """Source (B, S), target so far (B, T) -> logits of what follows (B, T, V)."""
        return self.decode(idx, *self.encode(src))[0]


# --- byte pairs -----------------------------------------------------------------------


def byte_symbols():
    """A printable character for each of the 256 bytes, as GPT-2 has them.

    Bytes that are printable in Latin-1 stand for themselves; the others, in order, get
    characters from 256 on. A space is "Ġ".
    """
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    odd = [b for b in range(256) if b not in plain]
    return {b: chr(b if b in plain else 256 + odd.index(b)) for b in range(256)}


def split_words(text):
    """A text in words, each with the space before it, as GPT-2 cuts it.

    Letters, digits and other signs never share a word; 's, 't, 're, 've, 'm, 'll and 'd
    stand alone. Joined, the words are the text.
    """
    spans = WORD.finditer("".join(map(kind, text)))
    return [text[m.start() : m.end()] for m in spans]


# What `kind` makes of a text: letters, 0 for digits, space, tab for other blanks, signs
WORD = re.compile(
    r"'(?:s|t|re|ve|m|ll|d)| ?[a-zA-Z]+| ?0+| ?[!']+|\s+(?!\S)|\s+"  # GPT-2's
)


def kind(c):
    """One ASCII character that tells what kind of character this is."""
    category = unicodedata.category(c)[0]
    if category == "L":
        return c if c.isascii() else "x"
    if category == "N":
        return "0"
    if c.isspace() and not "\x1c" <= c <= "\x1f":
        return c if c == " " else "\t"
    return c if c == "'" else "!"


def merge_pair(symbols, pair):
    """Join a pair wherever it stands: (a, b, c, a, b) with (a, b) -> (ab, c, ab)."""
    merged, i = [], 0
    while i < len(symbols):
        if symbols[i : i + 2] == pair:
            merged.append("".join(pair))
            i += 2
        else:
            merged.append(symbols[i])
            i += 1
    return tuple(merged)


def learn_merges(text, count):
    """Join the commonest pair of neighbours, `count` times: a list of pairs, in order.

    Sennrich et al. 2016, algorithm 1. Only words that hold the pair are looked at
    again. Of equals the pair with the older symbols comes first; a pair that stands
    only once is not joined.
    """
    names = byte_symbols()
    rank = {symbol: i for i, symbol in enumerate(sorted(names.values()))}
    words = Counter(split_words(text))
    spelled = [tuple(names[b] for b in word.encode()) for word in words]
    often, pairs, where = list(words.values()), Counter(), defaultdict(set)
    for i, symbols in enumerate(spelled):
        for pair in pairwise(symbols):
            pairs[pair] += often[i]
            where[pair].add(i)
    merges = []
    while len(merges) < count and pairs:
        best = max(pairs, key=lambda p: (pairs[p], -rank[p[0]], -rank[p[1]]))
        if pairs[best] < 2:
            break
        merges.append(best)
        rank["".join(best)] = len(rank)
        for i in where.pop(best):
            for pair in pairwise(spelled[i]):
                pairs[pair] -= often[i]
            spelled[i] = merge_pair(spelled[i], best)
            for pair in pairwise(spelled[i]):
                pairs[pair] += often[i]
                where[pair].add(i)
        del pairs[best]
    return merges


def join_pairs(symbols, rank):
    """Join the pair that was learned first, again and again, while there is one."""
    while len(symbols) > 1:
        best = min(pairwise(symbols), key=lambda p: rank.get(p, math.inf))
        if best not in rank:
            break
        symbols = merge_pair(symbols, best)
    return symbols


class BPE:
    """Texts <-> tokens that are frequent pieces of words: byte-pair encoding.

    `merges` are pairs of symbols, in the order in which they were learned. Tokens are
    numbered: `special` ones first (names for PAD, START, END), then bytes, then merges,
    then those `after`. Any text can be encoded, if need be byte by byte.
    """

    def __init__(self, merges, special=("<pad>", "<start>", "<end>"), after=()):
        self.names = byte_symbols()
        joined = ["".join(pair) for pair in merges]
        self.tokens = [*special, *sorted(self.names.values()), *joined, *after]
        self.number = {token: i for i, token in enumerate(self.tokens)}
        self.rank = {pair: i for i, pair in enumerate(merges)}
        self.silent = {*special, *after}  # that are no text
        self.known = {}  # words encoded before

    def __len__(self):
        return len(self.tokens)

    def encode(self, text):
        """A text -> its tokens, a list of numbers."""
        idx = []
        for word in split_words(text):
            if word not in self.known:
                symbols = tuple(self.names[b] for b in word.encode())
                symbols = join_pairs(symbols, self.rank)
                self.known[word] = [self.number[s] for s in symbols]
            idx += self.known[word]
        return idx

    def pieces(self):
        """The bytes of each token, as lists; special ones have none."""
        byte = {name: b for b, name in self.names.items()}
        return [
            [] if token in self.silent else [byte[c] for c in token]
            for token in self.tokens
        ]

    def decode(self, idx):
        """Tokens -> their text, without special ones; half a character is U+FFFD."""
        text = "".join(t for i in idx if (t := self.tokens[i]) not in self.silent)
        byte = {name: b for b, name in self.names.items()}
        return bytes(byte[c] for c in text).decode(errors="replace")


def gpt2_bpe(path):
    """GPT-2's byte pairs, from its published vocab.bpe; the last token ends a text."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()[1:]
    merges = [tuple(line.split(" ")) for line in lines if line]
    return BPE(merges, special=(), after=("<|endoftext|>",))


# --- all together ---------------------------------------------------------------------


def translate(model, bpe, text, known=None, width=4, max_length=64):
    """A text in another language, by beam search.

    `known`, a set of tokens that stood in the source texts of the training, guards
    against a text in another language: the model would translate it into something.
    Raises ValueError for an empty text, or naming the piece that is not known.
    """
    src = bpe.encode(text)
    if not src:
        raise ValueError("the text is empty: there is nothing to translate")
    for token in src:
        if known is not None and token not in known:
            raise ValueError(
                f"{bpe.decode([token])!r} in {text!r} stood in no source text that "
                "this model has seen: is it another language?"
            )
    device = model.embedding.weight.device
    src = torch.tensor([*src, END], device=device)
    return bpe.decode(beam_search(model, src, width, max_length)[0][1])


# --- in the page ----------------------------------------------------------------------


def write_all(model, src, T):
    """As `greedy`, always T tokens, and the maps: (B, T), (B, n_layer, n_head, T, S).

    Nothing depends on what is written, so that a page can run it: no END stops it.
    """
    memory, mask = model.encode(src)
    idx = torch.full_like(src[:, :1], START).expand(-1, T)  # what stands beyond t
    for t in range(T):  # is not seen
        logits, maps = model.decode(idx, memory, mask)
        token = logits[:, t, END:].argmax(-1, keepdim=True) + END
        idx = torch.cat((idx[:, : t + 1], token, idx[:, t + 2 :]), 1)
    return idx[:, 1:], maps


SHOWN = (21, 42, 76, 107, 294, 583, 815, 999)  # what a page translates all the time


def page_program(batch=32):
    """Numbers below 1,000 from English to German, in the page (see `genlib.live`).

    The reader sets the rate, the label smoothing, and the number `n` to look into. The
    views are those of `page_views`.
    """
    from genlib.live import First, Phase, Program, Rows, Slider
    from genlib.training import Adam

    bpe = number_bpe()
    model = Transformer(TransformerConfig(len(bpe), 1, 1, 48, 96, 0.0, True, 16)).eval()
    page_starts(model)
    src, tgt = encode_pairs(bpe, number_pairs(range(1000)))
    S, rows = src.shape[1], torch.cat((src, tgt), 1).float()
    held = torch.tensor([held_out(n) for n in range(1000)])

    def loss(rows, smoothing):
        rows = rows.round().long()
        src, tgt = rows[:, :S], rows[:, S:]
        return label_smoothing_loss(model(src, tgt[:, :-1]), tgt[:, 1:], smoothing)

    feeds = {
        "rows": Rows("pairs", batch),
        "numbers": First("numbers", 1000),
        "test": First("held out", int(held.sum())),
        "n": Slider(21, 0, 999, integer=True, label="a number to look into"),
        "lr": Slider(1.5e-3, 1e-4, 3e-2, log=True, label="learning rate"),
        "smoothing": Slider(0.1, 0.0, 0.5, label="label smoothing"),
    }
    tables = {"pairs": rows[~held], "numbers": rows, "held out": rows[held]}
    tables = {name: {name: rows} for name, rows in tables.items()}
    phase = Phase("translator", "model", loss, Adam(betas=(0.9, 0.98)), "lr")
    return Program({"model": model}, [phase], feeds, page_views(model, S), tables)


def page_views(model, S):
    """What the page sees of a model that reads S tokens.

    What it writes for SHOWN (8, T) and for `n`, as tokens; where it looked for `n`
    (T, S); of the numbers held out, the share in % that is right as a whole, and that
    of tokens that are right when told those before.
    """

    def views(n, numbers, test):
        rows = torch.cat((torch.tensor(SHOWN), n.round().long()[None]))
        chosen = numbers.round().long().index_select(0, rows)[:, :S]
        T = numbers.shape[1] - S - 1
        written, maps = write_all(model, chosen, T)
        test = test.round().long()
        truth = test[:, S + 1 :]
        hits = model(test[:, :S], test[:, S:-1]).argmax(-1) == truth
        real = (truth != PAD).float()
        hits = hits.float() * real
        whole = (hits.sum(1) - real.sum(1)).abs() < 0.5
        return {
            "written": written[:-1], "chosen": written[-1], "asked": chosen[-1],
            "map": maps[-1, -1, 0], "exact": 100 * whole.float().mean(),
            "forced": 100 * hits.sum() / real.sum(),
        }  # fmt: skip

    return views


def page_starts(model):
    """Tell the page to draw each matrix as wide as `initialize` does."""
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.init_std = (2 / sum(parameter.shape)) ** 0.5  # Glorot and Bengio
    model.embedding.weight.init_std = model.config.n_embd**-0.5


def page_panels():
    """Panels and curves of the lab that trains `page_program`."""
    from genlib.widgets.training_lab import alignment, curve, panel, sentences

    bpe = number_bpe()
    english, german = zip(*number_pairs(SHOWN), strict=True)
    writes = panel(
        "What it writes",
        sentences("written", bpe.pieces(), english, german),
        description="English numbers and what the model writes for each in German, "
        "marked as right or wrong.",
    )
    looks = panel(
        "Where it looks",
        alignment("map", "chosen", "asked", bpe.pieces()),
        description="A table of the number chosen: a row for each German token, in the "
        "order in which it is written, a column for each English one, dark where the "
        "model looks.",
    )
    plots = [
        curve("loss", "loss", unit="nats"),
        curve("held-out numbers", ("exact", "whole words right"),
              ("forced", "tokens right, told the ones before"), unit="%"),
    ]  # fmt: skip
    return [writes, looks], plots
