"""The translator that ships: its file, what it refuses, the BLEU that it reaches."""

import itertools

import pytest
import torch

from genlib.data import available
from genlib.multi30k import (
    STEPS,
    WEIGHTS,
    Translator,
    bleu,
    cached_merges,
    config,
    finish,
    load_translator,
    rate,
    read,
    sentence_batches,
    train_translator,
    translate_all,
)
from genlib.transformer import BPE, END, PAD, START, Transformer, learn_merges

GREEDY, BEAM = 39.5, 40.4  # BLEU of the 1,000 sentences of 2016

PAIRS = [  # of our own, for machines without the files
    ("Ein Hund läuft durch den Schnee.", "A dog runs through the snow."),
    ("Ein Mann spielt Gitarre.", "A man is playing a guitar."),
    ("Zwei Kinder spielen im Park.", "Two children are playing in the park."),
    ("Eine Frau liest ein Buch.", "A woman is reading a book."),
    ("Ein Junge springt ins Wasser.", "A boy jumps into the water."),
    ("Menschen gehen eine Straße entlang.", "People are walking down a street."),
]
FRENCH = [
    "Un homme avec un chapeau rouge marche dans la rue.",
    "Deux enfants jouent au football dans le parc.",
    "Une femme lit un livre sur un banc.",
]

needs_files = pytest.mark.skipif(
    not available("multi30k"), reason="Multi30k: its files are not on this machine"
)


@pytest.fixture(scope="module")
def translator():
    return load_translator()


def toy(seed=0):
    """A translator that knows nothing, of a few sentences."""
    bpe = BPE(learn_merges(" ".join(itertools.chain(*PAIRS)), 40))
    torch.manual_seed(seed)
    return finish(Transformer(config(len(bpe))), bpe, PAIRS)


# --- the file -------------------------------------------------------------------------


def test_the_file_is_small_and_the_model_is_what_the_code_builds(translator):
    assert WEIGHTS.stat().st_size < 3_000_000
    model, bpe = translator.model, translator.bpe
    assert len(bpe) == 3 + 256 + 3000 == model.config.vocab_size
    sizes = vars(config(len(bpe))) | {"max_length": 80}
    assert vars(model.config) == sizes and not model.training
    assert translator.counts.shape == (len(bpe),) and translator.counts.sum() > 4e5


def test_what_is_saved_comes_back_in_half_precision(tmp_path):
    one = toy()
    assert one.model.config.max_length == 80  # it has learned from 67 tokens at most
    one.save(tmp_path / "t.safetensors")
    two = load_translator(tmp_path / "t.safetensors")
    assert two.bpe.tokens == one.bpe.tokens and torch.equal(two.counts, one.counts)
    for (name, a), (_, b) in zip(
        one.model.state_dict().items(), two.model.state_dict().items(), strict=True
    ):
        torch.testing.assert_close(a.half().float(), b, rtol=0, atol=0, msg=name)


def test_it_translates_a_few_sentences_of_our_own(translator):
    german, english = zip(*PAIRS, strict=True)
    said = translate_all(translator, german)
    assert bleu(said, english)[0] > 40, said
    assert translator.translate(german[0]) == said[0]


# --- what it refuses ------------------------------------------------------------------


@pytest.mark.parametrize("text", FRENCH)
def test_french_is_refused_and_translated_only_on_request(translator, text):
    with pytest.raises(ValueError, match="another language") as error:
        translator.translate(text)
    assert repr(text) in str(error.value)
    assert isinstance(translator.translate(text, check=False), str)


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "empty"),
        ("  ", "empty"),
        ("Ein Mann \u65e5\u672c.", "another language"),
        ("Ein Mann \x07", "another language"),
        ("Ein Hund. " * 40, "122 tokens; this model has 80 positions"),
    ],
)
def test_other_bad_input_is_a_clear_error(translator, text, words):
    with pytest.raises(ValueError, match=words):
        translator.translate(text)


def test_surprise_is_by_hand():
    bpe = BPE([])
    counts = torch.zeros(len(bpe))
    counts[bpe.encode("a")] = 3.0
    one = Translator(Transformer(config(len(bpe))), bpe, counts)
    p = 3.5 / (3 + 0.5 * len(bpe))
    expected = -2 * torch.tensor(p).log().item() / 2
    assert one.surprise("aa") == pytest.approx(expected, rel=1e-5)


@needs_files
def test_german_passes_and_english_does_not(translator):
    def passes(text):
        try:
            translator.check(text)
        except ValueError:
            return False
        return True

    german, english = zip(*read("val"), strict=True)
    assert max(map(translator.surprise, german)) < 3
    assert sum(map(passes, german)) / len(german) > 0.97
    assert sum(map(passes, english)) / len(english) < 0.05


# --- the run --------------------------------------------------------------------------


def test_the_rate_rises_stays_and_falls_and_may_be_made_longer():
    values = [rate(k, 1000, warmup=100) for k in range(1001)]
    assert values[0] == 0.01 and values[99] == 1 and values[1000] == 0
    assert set(values[99:501]) == {1.0} and values[750] == pytest.approx(0.5)
    assert values[:500] == [rate(k, 5000, warmup=100) for k in range(500)]


def test_batches_hold_each_pair_once_an_epoch_in_neighbours_of_length():
    bpe = BPE([])
    pairs = [("a" * n, "b" * (n % 7 + 1)) for n in range(1, 61)]
    stream = sentence_batches(pairs, bpe, tokens=200)
    seen, epochs = [], []
    for src, tgt in itertools.islice(stream, 500):
        assert src.numel() <= 200 + src.shape[1] and tgt[:, 0].eq(START).all()
        assert src.eq(END).sum() == len(src) == tgt.eq(END).sum()
        lengths = (src != PAD).sum(1) - 1
        assert lengths.max() - lengths.min() <= len(src) + 2
        seen += lengths.tolist()
        if len(seen) == 60:
            epochs.append(seen)
            seen = []
        if len(epochs) == 2:
            break
    assert len(epochs) == 2 and sorted(epochs[0]) == list(range(1, 61))
    assert sorted(epochs[1]) == sorted(epochs[0])
    assert epochs[0] != epochs[1]
    again = sentence_batches(pairs, bpe, tokens=200)
    first = next(sentence_batches(pairs, bpe, tokens=200))
    assert all(torch.equal(a, b) for a, b in zip(next(again), first, strict=True))


def test_a_run_learns_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    bpe = BPE(learn_merges(" ".join(itertools.chain(*PAIRS)), 40))
    whole = train_translator(tmp_path / "a", 12, PAIRS, bpe)
    monkeypatch.setattr("genlib.multi30k.rate", lambda k, steps: rate(k, 12))
    train_translator(tmp_path / "b", 5, PAIRS, bpe)
    parts = train_translator(tmp_path / "b", 12, PAIRS, bpe)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.equal(whole.model.embedding.weight, toy().model.embedding.weight)


def test_merges_are_learned_once(tmp_path):
    path = tmp_path / "merges.json"
    first = cached_merges(path, PAIRS, 10)
    assert len(first) == 10 and cached_merges(path, [], 10) == first


# --- BLEU -----------------------------------------------------------------------------


def test_bleu_is_that_of_the_formula():
    """Papineni et al. 2002, of one sentence, by hand."""
    said, truth = "the cat sat on the mat today", "the cat sat on a mat today"
    grams = [
        [tuple(t.split()[i : i + n]) for i in range(8 - n)]
        for t in (said, truth)
        for n in (1, 2, 3, 4)
    ]
    p = 1.0
    for mine, theirs in zip(grams[:4], grams[4:], strict=True):
        p *= sum(min(mine.count(g), theirs.count(g)) for g in set(mine)) / len(mine)
    score, signature = bleu([said], [truth])
    assert score == pytest.approx(100 * p**0.25, abs=1e-6) and p > 0
    assert "case:mixed" in signature and "tok:13a" in signature
    short = bleu(["the cat sat on"], ["the cat sat on a mat"])[0]
    assert short == pytest.approx(100 * torch.tensor(1 - 6 / 4).exp().item(), abs=1e-4)


def test_the_missing_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(ImportError, match=r"genlib\[words\]"):
        bleu(["a"], ["a"])


@needs_files
def test_bleu_on_the_2016_test_set(translator):
    """All 1,000 sentences, greedily; the command measures the beam too."""
    german, english = zip(*read("test_2016_flickr"), strict=True)
    assert len(german) == 1000
    score, _ = bleu(translate_all(translator, german, width=1), english)
    print(f"\nBLEU, greedy: {score:.2f}")
    assert score == pytest.approx(GREEDY, abs=0.5)


@needs_files
def test_the_beam_of_four_adds_a_little(translator):
    """All 1,000 too, a sentence at a time: two minutes of one core."""
    german, english = zip(*read("test_2016_flickr"), strict=True)
    score, signature = bleu(translate_all(translator, german), english)
    print(f"\nBLEU, beam of 4: {score:.2f} ({signature})")
    assert score == pytest.approx(BEAM, abs=0.5)


@needs_files
def test_the_files_are_read(translator):
    train = read("train")
    assert len(train) == 29_000 and STEPS == 6000
    assert train[0][1] == "Two young, White males are outside near many bushes."
    counts = finish(translator.model, translator.bpe, train[:200]).counts
    assert (counts <= translator.counts).all() and counts.sum() > 2000
