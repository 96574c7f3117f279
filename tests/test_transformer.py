"""The Transformer against torch's own layers, published counts and other tokenisers."""

import itertools
import json
import math
import sys

import pytest
import regex
import tokenizers
import torch
import torch.nn.functional as F
from test_attention import from_torch
from torch import nn

from genlib.attention import future_leak
from genlib.data import text_file
from genlib.export import export_onnx
from genlib.training import fit
from genlib.transformer import (
    BPE,
    END,
    LANGUAGES,
    PAD,
    SHOWN,
    START,
    DecoderLayer,
    EncoderLayer,
    RecurrentTranslator,
    Transformer,
    TransformerConfig,
    beam_search,
    big,
    byte_symbols,
    cross_maps,
    draw_numbers,
    encode_pairs,
    exact_match,
    forced_accuracy,
    gpt2_bpe,
    greedy,
    held_out,
    label_smoothing_loss,
    learn_merges,
    length_penalty,
    looks_at_unit,
    make_step,
    merge_pair,
    number_bpe,
    number_pairs,
    number_words,
    pad_rows,
    page_panels,
    page_program,
    pair_batches,
    split_words,
    spoil,
    token_at,
    translate,
    warmup_rate,
    write_all,
)

SMALL = {"vocab_size": 11, "n_layer": 2, "n_head": 3, "n_embd": 12, "n_hidden": 20}


def build(seed=0, scale=3.0, **sizes):
    torch.manual_seed(seed)
    model = Transformer(TransformerConfig(**SMALL | {"dropout": 0.0} | sizes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale) if p.ndim == 2 else p.add_(0.3 * torch.randn_like(p))
    return model


def tokens(*shape, low=3, high=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator)


def count(module):
    return sum(p.numel() for p in module.parameters())


# --- layers ---------------------------------------------------------------------------


def copy_layer(mine, theirs, kind):
    """Give one of our layers the weights of torch's."""
    mine.attention = from_torch(theirs.self_attn)
    norms = [theirs.norm1, theirs.norm2]
    if kind == "decoder":
        mine.cross = from_torch(theirs.multihead_attn)
        norms.append(theirs.norm3)
    mine.mlp[0].load_state_dict(theirs.linear1.state_dict())
    mine.mlp[2].load_state_dict(theirs.linear2.state_dict())
    for around, norm in zip(mine.around, norms, strict=True):
        around.norm.load_state_dict(norm.state_dict())


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_layers_are_torchs_with_their_gradients(kind, pre_norm):
    torch.manual_seed(0)
    config = TransformerConfig(**SMALL, dropout=0.0, pre_norm=pre_norm)
    classes = {
        "encoder": (EncoderLayer, nn.TransformerEncoderLayer),
        "decoder": (DecoderLayer, nn.TransformerDecoderLayer),
    }
    ours, torchs = classes[kind]
    theirs = torchs(12, 3, 20, dropout=0.0, batch_first=True, norm_first=pre_norm)
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.5)
    mine = ours(config)
    copy_layer(mine, theirs, kind)
    x, memory = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    mine_x, their_x = (x.clone().requires_grad_() for _ in range(2))
    padding = torch.zeros(2, 5 if kind == "encoder" else 7, dtype=torch.bool)
    padding[1, -2:] = True
    real = ~padding[:, None, None]
    if kind == "encoder":
        y = mine(mine_x, real)
        expected = theirs(their_x, src_key_padding_mask=padding)
    else:
        causal = torch.ones(5, 5, dtype=torch.bool).tril()
        y, maps = mine(mine_x, memory, causal, real)
        expected = theirs(
            their_x, memory, tgt_mask=~causal, memory_key_padding_mask=padding
        )
        assert maps.shape == (2, 3, 5, 7) and maps[1, ..., -2:].eq(0).all()
    close = {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(y, expected, **close)
    y.pow(3).sum().backward()
    expected.pow(3).sum().backward()
    torch.testing.assert_close(mine_x.grad, their_x.grad, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(
        mine.mlp[0].weight.grad, theirs.linear1.weight.grad, atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_the_whole_is_torchs(pre_norm):
    torch.manual_seed(0)
    theirs = nn.Transformer(
        12, 3, 2, 2, 20, dropout=0.0, batch_first=True, norm_first=pre_norm
    )
    if not pre_norm:  # torch adds norms at the ends, which the paper has not
        theirs.encoder.norm = theirs.decoder.norm = None
    mine = build(pre_norm=pre_norm)
    for layer, other in zip(mine.encoder.layers, theirs.encoder.layers, strict=True):
        copy_layer(layer, other, "encoder")
    for layer, other in zip(mine.decoder.layers, theirs.decoder.layers, strict=True):
        copy_layer(layer, other, "decoder")
    if pre_norm:
        mine.encoder.norm, mine.decoder.norm = theirs.encoder.norm, theirs.decoder.norm
        nn.init.normal_(mine.decoder.norm.weight)
    src, idx = tokens(2, 6), tokens(2, 4, seed=1)
    src[1, 4:] = PAD
    padding = src == PAD
    out = theirs(
        mine.embed(src),
        mine.embed(idx),
        tgt_mask=~torch.ones(4, 4, dtype=torch.bool).tril(),
        src_key_padding_mask=padding,
        memory_key_padding_mask=padding,
    )
    expected = out @ mine.embedding.weight.T
    torch.testing.assert_close(mine(src, idx), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_no_target_token_sees_the_future_and_none_sees_padding(pre_norm):
    model = build(pre_norm=pre_norm)
    src, idx = tokens(2, 6), tokens(2, 7, seed=1)
    src[:, 4:] = PAD
    other = 3 + (idx - 2) % 8
    assert future_leak(lambda x: model(src, x), idx, other) == 0
    assert (model(src, other) - model(src, idx)).abs().max() > 0.1
    torch.testing.assert_close(
        model(src[:, :4], idx), model(src, idx), atol=1e-5, rtol=1e-5
    )
    swapped = src[:, [1, 0, 2, 3, 4, 5]]  # the order of the source matters
    assert (model(swapped, idx) - model(src, idx)).abs().max() > 0.01


def test_embeddings_are_scaled_and_bounded():
    model = build(max_length=8)
    x = model.embed(tokens(1, 8))
    expected = 12**0.5 * model.embedding(tokens(1, 8)) + model.positions
    torch.testing.assert_close(x, expected)
    with pytest.raises(ValueError, match="9 tokens; this model has 8 positions"):
        model.embed(tokens(1, 9))


def test_weights_start_on_one_scale():
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(300, 1, 4, 64, 256))
    assert model.embedding.weight.std().item() == pytest.approx(1 / 8, rel=0.05)
    assert model.embed(torch.arange(300)[None]).var().item() == pytest.approx(1.5, 0.2)
    for linear in (model.encoder.layers[0].mlp[0], model.decoder.layers[0].cross.k):
        edge = (6 / (linear.in_features + linear.out_features)) ** 0.5
        assert 0.95 * edge < linear.weight.abs().max() <= edge


# Vaswani et al. 2017, table 3: what differs from the base model, millions of parameters
TABLE_3 = [
    ({}, 65),
    ({"n_layer": 2}, 36),
    ({"n_layer": 4}, 50),
    ({"n_layer": 8}, 80),
    ({"n_hidden": 1024}, 53),
    ({"n_hidden": 4096}, 90),
    ({"n_embd": 256}, 28),
    ({"n_embd": 1024}, 168),
]


def test_parameters_of_base_and_big_are_those_of_the_arithmetic():
    def by_hand(V, C, hidden, layers):
        attention, mlp = 4 * (C * C + C), 2 * C * hidden + hidden + C
        encoder, decoder = attention + mlp + 4 * C, 2 * attention + mlp + 6 * C
        return V * C + layers * (encoder + decoder)

    with torch.device("meta"):
        base, large = Transformer(TransformerConfig()), Transformer(big())
    assert count(base) == by_hand(37_000, 512, 2048, 6) == 63_082_496
    assert count(large) == by_hand(37_000, 1024, 4096, 6) == 214_245_376
    # published: 65 and 213 million; the vocabulary is "about 37000" there
    assert count(base) / 65e6 == pytest.approx(1, abs=0.03)
    assert count(large) / 213e6 == pytest.approx(1, abs=0.006)


@pytest.mark.parametrize(("change", "millions"), TABLE_3)
def test_with_some_more_tokens_the_papers_table_comes_out(change, millions):
    with torch.device("meta"):
        model = Transformer(TransformerConfig(vocab_size=40_932, **change))
    width = model.config.n_embd
    most = count(model) + (41_160 - 40_932) * width
    assert round(count(model) / 1e6) == round(most / 1e6) == millions
    if change == {"n_hidden": 1024}:  # and with no less, and no more
        assert round((count(model) - width) / 1e6) != millions
    if change == {"n_layer": 4}:
        assert round((most + width) / 1e6) != millions


# --- training -------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_label_smoothing_is_torchs(smoothing):
    logits = 3 * torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[3, 4, 2, 0, 0], [6, 1, 5, 3, 2]])
    mine, theirs = (logits.clone().requires_grad_() for _ in range(2))
    loss = label_smoothing_loss(mine, targets, smoothing)
    expected = F.cross_entropy(
        theirs.flatten(0, 1),
        targets.flatten(),
        ignore_index=PAD,
        label_smoothing=smoothing,
    )
    torch.testing.assert_close(loss, expected)
    loss.backward(), expected.backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_the_rate_rises_straight_and_falls_with_the_root():
    peak = warmup_rate(4000, 512)
    assert peak == pytest.approx(512**-0.5 * 4000**-0.5)  # 7e-4
    assert warmup_rate(1000, 512) == pytest.approx(peak / 4)
    assert warmup_rate(16_000, 512) == pytest.approx(peak / 2)
    assert warmup_rate(10, 64, 20) == pytest.approx(0.5 * warmup_rate(20, 64, 20))


def test_a_step_is_adams_with_that_rate():
    model, copy = build().double(), build().double()
    src, tgt = tokens(3, 5), tokens(3, 6, seed=1)
    step = make_step(model, lr=2.0, warmup=4, smoothing=0.2)
    adam = torch.optim.Adam(copy.parameters(), betas=(0.9, 0.98), eps=1e-9)
    for k in range(1, 7):
        loss = step((src, tgt))["loss"]
        adam.param_groups[0]["lr"] = 2 * 12**-0.5 * min(k**-0.5, k / 8)
        logits = copy(src, tgt[:, :-1]).flatten(0, 1)
        right = tgt[:, 1:].flatten()
        expected = F.cross_entropy(logits, right, label_smoothing=0.2)
        torch.testing.assert_close(loss, expected)
        adam.zero_grad()
        expected.backward()
        adam.step()


# --- writing --------------------------------------------------------------------------


def all_sentences(model, src, symbols, max_length, alpha):
    """Every sentence that ends, with its score: by enumeration, one at a time."""
    found = []
    for length in range(max_length):
        for body in itertools.product(symbols, repeat=length):
            idx = torch.tensor([[START, *body]])
            logits = model(src[None], idx)[0]
            logits[:, [PAD, START]] = -math.inf
            log_p = logits.log_softmax(-1)
            score = sum(log_p[i, w].item() for i, w in enumerate([*body, END]))
            found.append((score / length_penalty(length + 1, alpha), [*body, END]))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_wide_beam_is_exhaustive(alpha, seed):
    model = build(seed, scale=1.5, vocab_size=5)
    src = tokens(4, low=3, high=5, seed=seed)
    expected = all_sentences(model, src, (3, 4), 5, alpha)
    got = beam_search(model, src, width=40, max_length=5, alpha=alpha)
    assert len(expected) == 31 == len(got)
    for (score, sentence), (best, other) in zip(got, expected, strict=True):
        assert score == pytest.approx(best, abs=1e-4) and sentence == other
    narrow = beam_search(model, src, width=3, max_length=5, alpha=alpha)
    scores = {tuple(sentence): score for score, sentence in expected}
    for score, sentence in narrow:  # true scores, best first, none twice
        assert score == pytest.approx(scores[tuple(sentence)], abs=1e-4)
    assert narrow == sorted(narrow, reverse=True) and len(narrow) == 3
    assert len({tuple(sentence) for _, sentence in narrow}) == 3


def plain_beam(model, src, width, max_length, alpha):
    """The same search with lists, and to the very end."""
    live, ended = [(0.0, [START])], []
    for _ in range(max_length):
        grown = []
        for score, idx in live:
            logits = model(src[None], torch.tensor([idx]))[0, -1]
            logits[[PAD, START]] = -math.inf
            log_p = logits.log_softmax(-1).tolist()
            grown += [(score + log_p[w], [*idx, w]) for w in range(2, len(log_p))]
        grown = sorted(grown, reverse=True)[: 2 * width]
        for score, idx in grown:
            if idx[-1] == END:
                ended.append((score / length_penalty(len(idx) - 1, alpha), idx[1:]))
        live = [(score, idx) for score, idx in grown if idx[-1] != END][:width]
    return sorted(ended, reverse=True)[:width]


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_the_beam_stops_early_only_where_nothing_better_can_come(width, seed):
    model = build(seed, scale=1.5)
    src = tokens(5, seed=seed)
    with torch.no_grad():  # more or less often an end
        model.embedding.weight[END] *= 0.3 * (1 + seed)
    for alpha in (0.0, 0.6, 1.5):
        expected = plain_beam(model, src, width, 8, alpha)
        got = beam_search(model, src, width, 8, alpha)
        if expected:
            assert [x for _, x in got] == [x for _, x in expected]
            scores = [score for score, _ in expected]
            assert [score for score, _ in got] == pytest.approx(scores, abs=1e-4)
        else:
            assert all(END not in sentence for _, sentence in got)


@pytest.mark.parametrize("seed", range(4))
def test_a_beam_of_one_is_greedy(seed):
    model, src = build(seed), tokens(1, 6, seed=seed)
    written = greedy(model, src, 12)[0].tolist()
    (_, sentence), *_ = beam_search(model, src[0], width=1, max_length=12)
    assert sentence == written
    with pytest.raises(ValueError, match="width is 0"):
        beam_search(model, src[0], width=0)


def test_length_normalisation():
    assert length_penalty(1, 0.6) == 1
    assert length_penalty(7, 1.0) == 2
    assert length_penalty(31, 0.5) == pytest.approx(6**0.5)


def test_greedy_writes_each_sentence_as_if_alone_and_stops():
    model, src = build(4, scale=1.0), tokens(20, 5)
    src[2, 3:] = PAD
    together = greedy(model, src, 10)
    assert together.shape[1] == 10
    lengths = {row.tolist().index(END) for row in together if END in row}
    assert len(lengths) > 1  # they end at different places
    for row, alone in zip(together, src, strict=True):
        expected = greedy(model, alone[alone != PAD][None], 10)[0]
        assert row[: len(expected)].tolist() == expected.tolist()
        assert row[len(expected) :].eq(PAD).all()
        text = expected.tolist()
        assert START not in text and PAD not in text and END not in text[:-1]
    with torch.no_grad():  # never END: it stops all the same
        model.decoder.norm = nn.Linear(12, 12)
        nn.init.zeros_(model.decoder.norm.weight)
        model.embedding.weight[:, 0] = 0
        model.embedding.weight[7, 0] = 9
        model.decoder.norm.bias.copy_(F.one_hot(torch.tensor(0), 12))
    assert greedy(model, src, 6).eq(7).all() and greedy(model, src, 6).shape == (20, 6)
    assert beam_search(model, src[0], 2, 3)[0][1] == [7, 7, 7]


def test_teacher_forcing_and_writing_freely():
    model, src = build(4, scale=1.0), tokens(40, 5)
    written = greedy(model, src, 10)
    ended = (written == END).any(1)
    src, written = src[ended], written[ended]
    written = written[:, (written != PAD).any(0)]
    assert len(src) > 5 and written.shape[1] > 2
    own = torch.cat((torch.full_like(src[:, :1], START), written), 1)
    assert forced_accuracy(model, src, own) == 1  # its own words are the truth
    assert exact_match(model, src, own).all()
    wrong = own.clone()
    wrong[0, 1] = 3 + (own[0, 1] - 2) % 8
    matches = exact_match(model, src, wrong)
    assert not matches[0] and matches[1:].all()
    assert 0 < forced_accuracy(model, src, wrong) < 1
    longer = F.pad(own, (0, 3))  # padding changes nothing
    assert exact_match(model, src, longer).all()
    assert forced_accuracy(model, src, longer) == 1


# --- number words ---------------------------------------------------------------------


def test_numbers_in_words():
    words = {k: [number_words(n, k) for n in (0, 21, 99)] for k in LANGUAGES}
    assert words == {
        "en": ["zero", "twenty-one", "ninety-nine"],
        "de": ["null", "einundzwanzig", "neunundneunzig"],
        "fr": ["zéro", "vingt et un", "quatre-vingt-dix-neuf"],
    }
    with pytest.raises(ValueError, match="language 'es'; choose from: en, de, fr"):
        number_words(1, "es")
    for n in (-1, 0.5):
        with pytest.raises(ValueError, match=f"n is {n}; it must be a whole number"):
            number_words(n, "en")
    for language in LANGUAGES:  # no two numbers share their words
        assert len({number_words(n, language) for n in range(3000)}) == 3000


def test_without_num2words_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "num2words", None)
    with pytest.raises(ImportError, match=r"pip install 'genlib\[words\]'"):
        number_words(1, "en")


def test_held_out_numbers_are_a_tenth_and_never_drawn_for_training():
    held = [n for n in range(100_000) if held_out(n)]
    assert min(held) >= 100
    for digits in (3, 4, 5):
        own = [n for n in held if len(str(n)) == digits]
        assert len(own) / (9 * 10 ** (digits - 1)) == pytest.approx(0.1, abs=0.01)
    generator = torch.Generator().manual_seed(0)
    train = draw_numbers(3000, 4, generator=generator)
    test = draw_numbers(500, 4, held=True, generator=generator)
    assert not set(train) & set(test)
    assert not any(map(held_out, train)) and all(map(held_out, test))
    lengths = [sum(len(str(n)) == k for n in train) / 3000 for k in (1, 2, 3, 4)]
    assert lengths == pytest.approx([0.26] * 2 + [0.24] * 2, abs=0.03)
    assert set(range(10)) <= set(train)
    assert draw_numbers(9, 4, generator=torch.Generator().manual_seed(0)) == train[:9]
    for held, message in [(True, "digits is 2; held-out numbers have at least 3")]:
        with pytest.raises(ValueError, match=message):
            draw_numbers(1, 2, held)
    with pytest.raises(ValueError, match="digits is 0; a number has at least 1"):
        draw_numbers(1, 0)


def test_pairs_become_padded_rows():
    bpe = BPE([])
    src, tgt = encode_pairs(bpe, [("ab", "c"), ("a", "def")])
    a, b, c = bpe.encode("abc")
    assert src.tolist() == [[a, b, END], [a, END, PAD]]
    assert tgt[0].tolist() == [START, c, END, PAD, PAD]
    assert [bpe.decode(row.tolist()) for row in tgt] == ["c", "def"]
    assert pad_rows([[1], [2, 3]]).tolist() == [[1, PAD], [2, 3]]


def test_a_small_model_learns_to_swap_tens_and_units():
    numbers = [n for n in range(100) if n % 10 != 7 or n < 20]
    pairs = [(number_words(n, "en"), number_words(n, "de")) for n in numbers]
    bpe = BPE(learn_merges(" ".join(text for pair in pairs for text in pair), 60))
    src, tgt = encode_pairs(bpe, pairs)
    torch.manual_seed(0)
    config = TransformerConfig(len(bpe), 1, 4, 32, 64, dropout=0.0)
    model = Transformer(config)
    step = make_step(model, lr=1.0, warmup=60, smoothing=0.0)
    fit(step, itertools.repeat((src, tgt)), 150, progress=False)
    model.eval()
    assert exact_match(model, src, tgt).float().mean() > 0.9
    free = exact_match(model, src, tgt).float().mean().item()
    assert forced_accuracy(model, src, tgt) >= free
    known = set(src.flatten().tolist())
    assert translate(model, bpe, "fifty-two", known) == "zweiundfünfzig"
    assert translate(model, bpe, "fifty-two", width=1) == "zweiundfünfzig"
    with pytest.raises(ValueError, match="in 'zweiundfünfzig' stood in no source text"):
        translate(model, bpe, "zweiundfünfzig", known)
    with pytest.raises(ValueError, match="the text is empty"):
        translate(model, bpe, "")


def test_the_page_can_translate(tmp_path):
    model = build(n_layer=1, pre_norm=True, max_length=8)

    def look(src, idx):
        return model.decode(idx, *model.encode(src))

    inputs = {"src": tokens(3, 6), "idx": tokens(3, 5, seed=1)}
    inputs["src"][1, 3:] = PAD
    export_onnx(look, inputs, tmp_path / "m.onnx", ["logits", "maps"])  # compares


# --- byte pairs -----------------------------------------------------------------------

TEXT = (
    "Low, lower, lowest: the newest widest river flows slower than the old one did. "
    "It's the river's width, they'll say; we've 1024 or 2048 reasons, don't we?  "
    "ein-und-zwanzig, neunundneunzig, dreißig, quatre-vingt-dix-neuf, zéro!\n\n\t\x1c"
    "日本語 と 한국어, naïve Ⅷ ½ x² 'tis 'twas ''' 🙂🙂 \u00a0\u2003nbsp \r\n end "
)


def test_each_byte_has_a_printable_symbol():
    symbols = byte_symbols()
    assert len(set(symbols.values())) == 256
    assert symbols[ord("a")] == "a" and symbols[32] == "Ġ" and symbols[10] == "Ċ"
    assert all(s.isprintable() and not s.isspace() for s in symbols.values())


def test_words_are_cut_as_gpt2_cuts_them():
    assert split_words("It's  12 o'clock, they'll!!") == [
        *("It", "'s", " ", " 12", " o", "'", "clock", ",", " they", "'ll", "!!"),
    ]
    pattern = (
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        picks = torch.randint(len(TEXT), (30,), generator=generator).tolist()
        text = "".join(TEXT[i] for i in picks)
        assert split_words(text) == regex.findall(pattern, text)
        assert "".join(split_words(text)) == text
    assert split_words(TEXT) == regex.findall(pattern, TEXT)
    assert split_words("") == []


def test_merges_are_learned_as_in_the_papers_example():
    # Sennrich et al. 2016, section 3.2: low 5, lowest 2, newer 6, wider 3
    text = " ".join(["low"] * 5 + ["lowest"] * 2 + ["newer"] * 6 + ["wider"] * 3)
    merges = learn_merges(text, 3)
    assert merges[0] == ("e", "r")
    assert merge_pair(tuple("abcabab"), ("a", "b")) == ("ab", "c", "ab", "ab")
    assert merge_pair(tuple("aaa"), ("a", "a")) == ("aa", "a")
    bpe = BPE(learn_merges(text, 50))
    assert len(bpe.encode(" newer")) == 1 and len(bpe.encode(" lower")) == 2
    assert learn_merges("ab", 10) == []  # a pair that stands once is not joined


def test_merges_are_those_of_tokenizers():
    words = TEXT.replace("🙂", "") * 3 + " " + " ".join(map(str, range(300)))
    reference = tokenizers.Tokenizer(tokenizers.models.BPE())
    reference.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=256 + 120,
        min_frequency=2,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    reference.train_from_iterator([words], trainer)
    expected = json.loads(reference.to_str())["model"]["merges"]
    expected = [
        tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in expected
    ]
    assert learn_merges(words, 120) == expected
    bpe = BPE(expected, special=())
    for text in (TEXT, "slowest flower 2048", ""):
        assert bpe.encode(text) == reference.encode(text).ids


def test_any_text_comes_back():
    bpe = BPE(learn_merges(TEXT, 40))
    for text in (TEXT, "", " ", "\n\n", "ß🙂", "neunundneunzig"):
        assert bpe.decode(bpe.encode(text)) == text
    assert len(bpe) == 3 + 256 + len(bpe.rank) and bpe.tokens[:3][PAD] == "<pad>"
    assert bpe.tokens[START] == "<start>" and bpe.tokens[END] == "<end>"
    assert bpe.decode([START, *bpe.encode("so"), END, PAD]) == "so"
    half = bpe.encode("ß")[:1] if len(bpe.encode("ß")) > 1 else []
    assert bpe.decode(half) in ("", "\ufffd")
    assert len(bpe.encode(TEXT)) < len(TEXT.encode())


def test_gpt2s_byte_pairs(require_data):
    require_data("gpt2_bpe")
    bpe = gpt2_bpe(text_file("gpt2_bpe", "vocab.bpe"))
    encoder = json.loads(text_file("gpt2_bpe", "encoder.json").read_text("utf-8"))
    assert len(bpe) == len(encoder) == 50_257
    assert bpe.number == encoder
    assert bpe.encode("Hello world") == [15496, 995]
    assert bpe.encode(" Hello world") == [18435, 995]
    merges = sorted(bpe.rank, key=bpe.rank.get)
    reference = tokenizers.Tokenizer(tokenizers.models.BPE(encoder, merges))
    reference.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False
    )
    assert bpe.encode(TEXT) == reference.encode(TEXT).ids
    assert bpe.decode(bpe.encode(TEXT)) == TEXT


# --- the chapter's task ---------------------------------------------------------------


def test_number_words_are_cut_where_they_are_glued():
    bpe = number_bpe()

    def cut(text):
        return [bpe.decode([i]) for i in bpe.encode(text)]

    assert cut("einundzwanzig") == ["ein", "und", "zwanzig"]
    assert cut("twenty-one") == ["twenty", "-", "one"]
    assert number_pairs([97], "en", "fr") == [("ninety-seven", "quatre-vingt-dix-sept")]
    texts = [text for pair in number_pairs(range(100)) for text in pair]
    for text in texts:
        assert bpe.decode(bpe.encode(text)) == text
    assert [bytes(b).decode() for b in bpe.pieces()[-3:]] == [
        bpe.decode([i]) for i in range(len(bpe) - 3, len(bpe))
    ]
    assert bpe.pieces()[:3] == [[], [], []]


def test_batches_of_pairs_are_whole_rows_without_needless_padding():
    src, tgt = encode_pairs(number_bpe(), number_pairs(range(100)))
    rows = {(*a.tolist(), *b.tolist()) for a, b in zip(src, tgt, strict=True)}
    one, other = (pair_batches(src, tgt, 7, seed=3) for _ in range(2))
    seen = set()
    for _ in range(40):
        (s, t), same = next(one), next(other)
        assert torch.equal(s, same[0]) and torch.equal(t, same[1])
        assert s[:, -1].ne(PAD).any() and t[:, -1].ne(PAD).any()
        s = F.pad(s, (0, src.shape[1] - s.shape[1]), value=PAD)
        t = F.pad(t, (0, tgt.shape[1] - t.shape[1]), value=PAD)
        found = {(*a.tolist(), *b.tolist()) for a, b in zip(s, t, strict=True)}
        assert found <= rows
        seen |= found
    assert len(seen) > 85


def test_spoiling_strikes_words_only_and_as_often_as_said():
    tgt = torch.tensor([[START, 5, 6, 7, END, PAD]] * 4000)
    told = spoil(tgt, 0.3, torch.Generator().manual_seed(0))
    assert (told[:, [0, 4, 5]] == tgt[:, [0, 4, 5]]).all()
    changed = (told != tgt)[:, 1:4].float().mean().item()
    assert changed == pytest.approx(0.3 * 2 / 3, abs=0.02)  # a third draws itself
    assert told[:, 1:4].unique().tolist() == [5, 6, 7]
    assert torch.equal(spoil(tgt, 0.0), tgt)


def test_where_it_looked_is_counted_at_the_unit():
    """A model of which only the maps matter: it looks where we say."""
    bpe, config = number_bpe(), TransformerConfig(n_layer=1, n_head=2)

    class Looker:
        def __init__(self, place):
            self.place, self.config = place, config

        def encode(self, src):
            return src, None

        def decode(self, idx, memory, mask):
            weights = torch.zeros(1, 1, 2, idx.shape[1], memory.shape[1])
            weights[..., 0] = 0.5
            for t in range(idx.shape[1]):
                weights[0, 0, 1, t, self.place(memory[0], t)] = 0.9
            return None, weights

    numbers = [21, 42, 187, 999]
    at_unit = Looker(lambda src, t: len(src) - 2)  # before END; "seven" is one token
    assert looks_at_unit(at_unit, bpe, numbers).tolist() == [[0.0, 1.0]]
    at_end = Looker(lambda src, t: len(src) - 1)
    assert looks_at_unit(at_end, bpe, numbers).tolist() == [[0.0, 0.0]]
    # Only at the row of the unit: 0 for 21 (ein), 2 for 187 (ein hundert sieben)
    late = Looker(lambda src, t: len(src) - 2 if t == 2 else 0)
    assert looks_at_unit(late, bpe, [21, 187]).tolist() == [[0.0, 0.5]]


def test_token_at_a_character():
    bpe = number_bpe()
    idx = torch.tensor(bpe.encode("einundzwanzig"))
    assert [token_at(bpe, idx, k) for k in (0, 2, 3, 5, 6, 12)] == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="no character 13"):
        token_at(bpe, idx, 13)


def test_cross_maps_are_those_of_the_decoder():
    model, src, tgt = build(), tokens(2, 5), tokens(2, 4, seed=1)
    maps = cross_maps(model, src, tgt)
    assert maps.shape == (2, 2, 3, 3, 5)
    torch.testing.assert_close(maps, model.decode(tgt[:, :-1], *model.encode(src))[1])
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 2, 3, 3))


# --- the recurrent rival --------------------------------------------------------------


def rival(seed=0):
    torch.manual_seed(seed)
    return RecurrentTranslator(TransformerConfig(11, n_embd=12)).eval()


def test_the_rival_reads_no_padding_and_no_future():
    model, src, idx = rival(), tokens(3, 5), tokens(3, 6, seed=1)
    longer = F.pad(src, (0, 4), value=PAD)
    torch.testing.assert_close(model(longer, idx), model(src, idx))
    with torch.no_grad():
        other = 3 + (idx - 2) % 8
        assert future_leak(lambda x: model(src, x), idx, other) == 0
    moved = src.clone()
    moved[:, 0] = 3 + (moved[:, 0] - 2) % 8
    assert (model(moved, idx) - model(src, idx)).abs().amax((1, 2)).min() > 1e-4


def copied(model):
    """A model that has learned to copy sentences, and these: src, tgt."""
    src = torch.cat((tokens(16, 5), torch.full((16, 1), END)), 1)
    tgt = torch.cat((torch.full((16, 1), START), src), 1)
    fit(make_step(model, 0.5, 50), itertools.repeat((src, tgt)), 150, progress=False)
    return model.eval(), src, tgt


def test_the_rival_is_trained_and_written_with_as_the_transformer_is():
    model, src, tgt = copied(rival())
    assert exact_match(model, src, tgt).float().mean() > 0.8
    assert beam_search(model, src[0], 1)[0][1] == greedy(model, src[:1])[0].tolist()


# --- the page -------------------------------------------------------------------------


def test_what_the_page_writes_is_greedy():
    torch.manual_seed(0)
    fresh = Transformer(TransformerConfig(**SMALL, dropout=0.0, pre_norm=True))
    model, src, tgt = copied(fresh)
    with torch.no_grad():
        written, maps = write_all(model, src, 7)
    expected = greedy(model, src, 7)
    assert (expected[:, :5] == src[:, :5]).float().mean() > 0.8  # it says something
    for mine, theirs in zip(written.tolist(), expected.tolist(), strict=True):
        end = mine.index(END) + 1 if END in mine else 7
        assert mine[:end] == theirs[:end]
    told = torch.cat((torch.full((16, 1), START), written), 1)
    torch.testing.assert_close(maps, cross_maps(model, src, told))


def test_the_page_program_learns_and_its_views_are_true():
    from genlib.live import Run

    program, bpe = page_program(), number_bpe()
    run = Run(program, seed=1)
    before = run.view()
    assert before["exact"] < 5
    run.step(250, lr=2e-3)
    view = run.view(n=387.0)
    assert view["exact"] > 85 and view["forced"] > view["exact"]
    rows = [row[: row.index(END)] for row in view["written"].round().long().tolist()]
    truth = [german for _, german in number_pairs(SHOWN)]
    right = [bpe.decode(row) == text for row, text in zip(rows, truth, strict=True)]
    assert sum(right) >= 6
    asked = view["asked"].long().tolist()
    assert bpe.decode(asked[: asked.index(END)]) == number_words(387, "en")
    model = program.modules["model"]
    values = {
        k.removeprefix("model."): v for k, v in program.parameters(run.state).items()
    }
    model.load_state_dict(values)
    held = [n for n in range(1000) if held_out(n)]
    pairs = encode_pairs(bpe, number_pairs(held))
    share = 100 * exact_match(model, *pairs).float().mean().item()
    assert view["exact"].item() == pytest.approx(share, abs=0.01)
    tokens_right = 100 * forced_accuracy(model, *pairs)
    assert view["forced"].item() == pytest.approx(tokens_right, abs=0.01)


def test_the_page_trains_on_nothing_that_is_held_out():
    program = page_program()
    rows = {
        tuple(row) for row in program.tables["pairs"]["pairs"].rows.round().tolist()
    }
    held = program.tables["held out"]["held out"].rows.round().tolist()
    assert len(rows) + len(held) == 1000 and not rows & {tuple(row) for row in held}


def test_the_page_starts_as_wide_as_here():
    model = page_program().modules["model"]
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            assert parameter.init_std == pytest.approx(parameter.std().item(), rel=0.1)
        else:
            assert not hasattr(parameter, "init_std"), name


def test_the_panels_fit_the_program():
    from genlib.widgets import TrainingLab

    panels, plots = page_panels()
    lab = TrainingLab(page_program(), panels, plots, poster_steps=30)
    png, alt = lab.poster()
    assert png[:4] == b"\x89PNG" and "in German" in alt
