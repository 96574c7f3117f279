"""GPT against Hugging Face's GPT-2 with the same random weights, and closed forms."""

import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file

from genlib.attention import future_leak
from genlib.data import DataError, book_text
from genlib.export import export_onnx, export_program, run_onnx
from genlib.gpt import (
    GPT,
    PRINTABLE,
    PUBLISHED,
    TRANSPOSED,
    Characters,
    GPTConfig,
    Muon,
    MuonAdam,
    NextToken,
    NGram,
    RMSNorm,
    attention_maps,
    bits_per_character,
    compressed_bits,
    evaluate,
    generate,
    make_cache,
    make_optimizers,
    make_step,
    modern,
    next_token_loss,
    next_token_probs,
    orthogonalize,
    page_panels,
    page_program,
    penalize,
    repeated,
    text_batches,
)
from genlib.live import Run
from genlib.training import fit

SIZES = {"vocab_size": 40, "block_size": 24, "n_layer": 2, "n_head": 3, "n_embd": 24}
CONFIGS = {
    "classic": GPTConfig(**SIZES),
    "by hand": GPTConfig(**SIZES, fused=False),
    "modern": modern(**SIZES),
    "modern by hand": modern(**SIZES, fused=False),
}


def build(config, seed=0, scale=8.0):
    """A GPT with weights large enough that its output is far from uniform."""
    torch.manual_seed(seed)
    gpt = GPT(config).eval()
    with torch.no_grad():
        for p in gpt.parameters():
            if p.ndim == 2:
                p.normal_(std=0.02 * scale)
            else:  # norms and biases too, or a wrong one would not be seen
                p.add_(0.3 * torch.randn_like(p))
    return gpt


def tokens(*shape, vocab_size=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, shape, generator=generator)


def count(gpt):
    return sum(p.numel() for p in gpt.parameters())


# --- equal to GPT-2 -------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    """Hugging Face's GPT-2, small and random."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=40,
        n_positions=24,
        n_embd=24,
        n_layer=2,
        n_head=3,
        bos_token_id=0,
        eos_token_id=None,
        attn_implementation="eager",
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def publish(model, folder, **changes):
    """Write a checkpoint in the layout in which GPT-2 is published."""
    tensors = {}
    for name, x in model.transformer.state_dict().items():
        tensors[name] = x.contiguous()
    for layer in range(model.config.n_layer):  # published, though no weights
        mask = torch.ones(24, 24).tril()[None, None]
        tensors[f"h.{layer}.attn.bias"] = mask
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads(model.config.to_json_string(use_diff=False)) | changes
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def pretrained(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    publish(reference, folder)
    return GPT.from_pretrained(folder).eval()


def test_logits_and_loss_are_gpt2s(reference, pretrained):
    idx = tokens(3, 24)
    expected = reference(idx, labels=idx)
    torch.testing.assert_close(pretrained(idx), expected.logits, atol=1e-5, rtol=1e-4)
    assert expected.logits.std() > 0.5
    loss = next_token_loss(pretrained, idx[:, :-1], idx[:, 1:])
    torch.testing.assert_close(loss, expected.loss)


def test_gradients_are_gpt2s(reference, pretrained):
    idx = tokens(3, 24, seed=1)
    reference.zero_grad(), pretrained.zero_grad()
    reference(idx, labels=idx).loss.backward()
    next_token_loss(pretrained, idx[:, :-1], idx[:, 1:]).backward()
    for name, p in pretrained.named_parameters():
        theirs = reference.transformer.get_parameter(name).grad
        mine = p.grad.T if name.endswith(TRANSPOSED) else p.grad
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("cached", [True, False])
def test_greedy_text_is_gpt2s(reference, pretrained, cached):
    prompt = tokens(2, 3, seed=2)
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    expected = reference.generate(
        prompt, attention_mask=torch.ones_like(prompt), use_cache=cached, **options
    )
    assert expected.shape == (2, 23) and expected[:, 3:].unique().numel() > 2
    got = generate(pretrained, prompt, 20, temperature=0, cached=cached)
    assert torch.equal(got, expected)


def test_attention_maps_are_gpt2s(reference, pretrained):
    idx = tokens(2, 10)
    expected = reference(idx, output_attentions=True).attentions
    maps = attention_maps(pretrained, idx)
    assert maps.shape == (2, 2, 3, 10, 10)
    torch.testing.assert_close(maps, torch.stack(expected, 1), atol=1e-5, rtol=1e-4)


def test_save_pretrained_can_be_read_too(reference, pretrained, tmp_path):
    reference.save_pretrained(tmp_path)  # with the prefix "transformer."
    again = GPT.from_pretrained(str(tmp_path))
    for name, p in pretrained.named_parameters():
        assert torch.equal(again.get_parameter(name), p)
    generate(again, tokens(1, 2), 2)
    next_token_loss(again, tokens(1, 4), tokens(1, 4)).backward()  # it can be trained


PARAMETERS = {  # Radford et al. 2019, table 2; the table's own counts came out too low
    "small": ((12, 12, 768), 124_439_808),
    "medium": ((24, 16, 1024), 354_823_168),
    "large": ((36, 20, 1280), 774_030_080),
    "xl": ((48, 25, 1600), 1_557_611_200),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_parameter_counts(name):
    (n_layer, n_head, n_embd), expected = PARAMETERS[name]
    with torch.device("meta"):
        gpt = GPT(GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd))
    assert count(gpt) == expected
    if name == "small":
        with torch.device("meta"):
            assert count(GPT(GPTConfig())) == expected


# --- weights that cannot be loaded ----------------------------------------------------


def test_a_folder_that_holds_no_gpt2_is_named(reference, tmp_path):
    with pytest.raises(ValueError, match=r"no model.safetensors; download it from"):
        GPT.from_pretrained(tmp_path)
    publish(reference, tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"cannot read .*config.json"):
        GPT.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'gpt3' is neither a folder .*gpt2"):
        GPT.from_pretrained("gpt3")
    (tmp_path / "model.safetensors").write_bytes(b"no weights at all")
    (tmp_path / "other.json").rename(tmp_path / "config.json")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_embd": 36}, r"of another model: h.0.attn.c_attn.bias is \(72,\) there"),
        ({"n_layer": 3}, r"of another model: h.2.* is missing there"),
        ({"model_type": "opt"}, "says model_type: 'opt'; this class is GPT-2, 'gpt2'"),
        ({"activation_function": "relu"}, "says activation_function: 'relu'"),
        ({"layer_norm_epsilon": 1e-6}, "says layer_norm_epsilon: 1e-06"),
    ],
)
def test_weights_of_another_model_are_refused(reference, tmp_path, change, message):
    publish(reference, tmp_path, **change)
    with pytest.raises(ValueError, match=message):
        GPT.from_pretrained(tmp_path)


def test_without_a_network_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("GENLIB_DATA", str(tmp_path))
    _, sha256, size = PUBLISHED["gpt2"]
    monkeypatch.setitem(PUBLISHED, "gpt2", ("http://127.0.0.1:9/m", sha256, size))
    with pytest.raises(DataError, match=r"cannot load 'gpt2', 548 MB: .*a folder"):
        GPT.from_pretrained("gpt2")
    assert not list(tmp_path.rglob("*.safetensors"))
    half = tmp_path / "gpt2" / "model.safetensors"
    half.parent.mkdir(exist_ok=True)
    half.write_bytes(b"half")
    with pytest.raises(DataError, match=r"damaged, or half of it: delete it"):
        GPT.from_pretrained("gpt2")


# --- the architecture and its modern pieces -------------------------------------------


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_no_token_sees_the_future(config):
    gpt = build(config)
    idx = tokens(2, 24)
    assert future_leak(gpt, idx, (idx + 1) % 40) == 0
    assert (gpt((idx + 1) % 40) - gpt(idx)).abs().max() > 0.1


@pytest.mark.parametrize("name", ["classic", "modern"])
def test_the_fused_kernel_and_our_attention_agree(name):
    one, two = build(CONFIGS[name]), build(CONFIGS["by hand"])
    if name == "modern":
        two = build(CONFIGS["modern by hand"])
    idx = tokens(2, 24)
    torch.testing.assert_close(one(idx), two(idx), atol=1e-5, rtol=1e-4)


def test_the_pieces_are_what_they_are_called():
    x = 3 * torch.randn(4, 24) + 1
    norm = RMSNorm(24)
    torch.nn.init.normal_(norm.weight)
    torch.testing.assert_close(
        norm(x), F.rms_norm(x, (24,), norm.weight, eps=1e-6), atol=1e-5, rtol=1e-4
    )
    gpt = build(CONFIGS["modern"])
    q, k, _ = gpt.h[0].attn.heads(x[None], gpt.rotary(torch.arange(4)))
    for heads in (q, k):
        torch.testing.assert_close(heads.norm(dim=-1), torch.full((1, 3, 4), 8**0.5))
    mlp = gpt.h[0].mlp
    hidden = (x @ mlp.c_fc.weight.T).clamp(min=0) ** 2
    torch.testing.assert_close(mlp(x), hidden @ mlp.c_proj.weight.T)
    names = dict(gpt.named_parameters())
    assert (
        not any(name.endswith("bias") for name in names) and "wpe.weight" not in names
    )


def test_rotary_positions_see_distances_only():
    torch.manual_seed(0)
    gpt = build(modern(**SIZES))
    idx = tokens(1, 9)
    x, t, turn = gpt.embed(idx)
    _, later, turned = gpt.embed(idx, start=11)
    y = gpt.h[0].attn(x, t, turn)[0]
    torch.testing.assert_close(y, gpt.h[0].attn(x, later, turned)[0], atol=1e-5, rtol=0)
    unturned = gpt.h[0].attn(x, t)[0]
    assert (y - unturned).abs().max() > 0.01


def test_weights_start_as_gpt2s_and_the_modern_ones_as_the_identity():
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=500, block_size=50, n_layer=8, n_head=2, n_embd=64)
    gpt = GPT(config)
    for name, p in gpt.named_parameters():
        if name.endswith("bias"):
            assert p.eq(0).all()
        elif "ln_" in name:
            assert p.eq(1).all()
        else:
            std = 0.02 / 4 if name.endswith("c_proj.weight") else 0.02
            assert p.std().item() == pytest.approx(std, rel=0.05), name
    gpt = GPT(modern(**SIZES))
    x = torch.randn(1, 5, 24)
    assert torch.equal(gpt.h[0](x, torch.arange(5)), x)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="n_embd is 24: 5 heads"):
        GPT(GPTConfig(40, 24, 1, 5, 24))
    with pytest.raises(ValueError, match="in pairs of numbers"):
        GPT(modern(vocab_size=40, n_layer=1, n_head=8, n_embd=24))
    gpt = GPT(CONFIGS["classic"])
    with pytest.raises(ValueError, match="25 tokens; this model sees 24"):
        gpt(tokens(1, 25))
    cache = make_cache(gpt)
    gpt(tokens(1, 20), cache)
    with pytest.raises(ValueError, match="25 tokens"):
        gpt(tokens(1, 5), cache)


def test_dropout_drops_in_training_only():
    torch.manual_seed(0)
    gpt = build(GPTConfig(**SIZES, dropout=0.5))
    idx = tokens(1, 9)
    assert torch.equal(gpt(idx), gpt(idx))
    gpt.train()
    assert not torch.equal(gpt(idx), gpt(idx))


# --- the cache ------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_cache_changes_no_logit(config):
    gpt, idx = build(config), tokens(2, 24)
    expected, cache = gpt(idx), make_cache(gpt, 2)
    got, at = [], 0
    for T in (7, 1, 1, 5, 1, 9):  # a prompt, single tokens, and several at once
        got.append(gpt(idx[:, at : at + T], cache))
        at += T
    torch.testing.assert_close(torch.cat(got, 1), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_cached_text_is_the_same_even_beyond_the_context(config):
    gpt, prompt = build(config), tokens(2, 5)
    for options in ({"temperature": 0}, {"temperature": 0.8, "top_k": 10}):
        one, two = (
            generate(
                gpt,
                prompt,
                40,
                cached=cached,
                generator=torch.Generator().manual_seed(1),
                **options,
            )
            for cached in (True, False)
        )
        assert torch.equal(one, two) and one.shape == (2, 45)


def test_of_a_long_prompt_the_end_is_read():
    gpt, prompt = build(CONFIGS["classic"]), tokens(1, 60)
    text = generate(gpt, prompt, 3, temperature=0)
    assert torch.equal(text[:, :60], prompt)
    again = generate(gpt, prompt[:, -24:], 3, temperature=0)
    assert torch.equal(text[:, -3:], again[:, -3:])


# --- sampling -------------------------------------------------------------------------


def test_probabilities_are_those_of_the_reference():
    logits = 2 * torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    for temperature, k, p in [(1.0, None, 0.9), (0.7, 5, None), (1.5, 12, 0.6)]:
        warpers = [transformers.TemperatureLogitsWarper(temperature)]
        if k:
            warpers.append(transformers.TopKLogitsWarper(k))
        if p:
            warpers.append(transformers.TopPLogitsWarper(p))
        expected = logits
        for warp in warpers:
            expected = warp(None, expected)
        got = next_token_probs(logits, temperature, k, p)
        torch.testing.assert_close(got, expected.softmax(-1))
    idx = torch.tensor([[3, 3, 7]]).expand(5, 3)
    expected = transformers.RepetitionPenaltyLogitsProcessor(1.3)(idx, logits)
    torch.testing.assert_close(penalize(logits, idx, 1.3), expected)


def test_what_each_setting_leaves():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()

    def probs(*settings):
        return next_token_probs(logits, *settings)[0].tolist()

    assert probs() == pytest.approx([0.5, 0.3, 0.15, 0.05])
    assert probs(0) == [1, 0, 0, 0]
    assert probs(1.0, 2) == pytest.approx([0.625, 0.375, 0, 0])
    assert probs(1.0, 99) == probs(1.0, 4) == probs()  # more than there are: all
    assert probs(1.0, None, 0.6) == pytest.approx([0.625, 0.375, 0, 0])
    assert probs(1.0, None, 0.4) == [1, 0, 0, 0]  # never nothing
    assert probs(1.0, None, 1.0) == pytest.approx(probs())
    squared = torch.tensor([0.25, 0.09, 0.0225, 0.0025])
    assert probs(0.5) == pytest.approx((squared / squared.sum()).tolist())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must be above 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0; keep at least 1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    gpt = build(CONFIGS["classic"])
    with pytest.raises(ValueError, match=message):
        generate(gpt, tokens(1, 3), 2, **settings)


def test_prompts_that_cannot_be_are_refused():
    gpt = build(CONFIGS["classic"])
    for prompt, message in [
        (torch.zeros(1, 0, dtype=torch.int64), r"shape \(1, 0\); .* at least one"),
        (torch.zeros(3, dtype=torch.int64), r"shape \(3,\)"),
        (torch.tensor([[1, 40]]), r"tokens from 1 to 40; this model knows 0..39"),
        (torch.tensor([[-1, 3]]), r"tokens from -1 to 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            generate(gpt, prompt, 1)


def test_tokens_are_drawn_by_their_probabilities():
    gpt, prompt = build(CONFIGS["classic"]), tokens(1, 4)
    expected = next_token_probs(gpt(prompt)[:, -1], 0.8, 12)[0]
    generator = torch.Generator().manual_seed(0)
    many = prompt.expand(4000, 4)
    drawn = generate(gpt, many, 1, 0.8, 12, generator=generator)[:, -1]
    seen = drawn.bincount(minlength=40) / 4000
    assert (seen - expected).abs().max() < 0.03
    assert seen[expected == 0].sum() == 0


def test_a_penalty_makes_repetition_rarer():
    gpt, prompt = build(CONFIGS["classic"]), tokens(1, 4)
    plain, cured = (
        generate(gpt, prompt, 60, temperature=0, penalty=p)[0] for p in (1.0, 3.0)
    )
    assert repeated(plain) > repeated(cured)
    assert repeated(torch.tensor([1, 2, 1, 2, 1]), 2) == 0.5
    assert repeated(torch.arange(9), 4) == 0


# --- text -----------------------------------------------------------------------------


def test_characters_and_back():
    chars = Characters("to be or not")
    assert chars.chars == " benort" and len(chars) == 7
    assert chars.decode(chars.encode("not to be")) == "not to be"
    assert chars.encode(" b") == [0, 1] and chars.encode("") == []
    with pytest.raises(ValueError, match="character 'x' at place 2 is not among the 7"):
        chars.encode("boxer")
    with pytest.raises(ValueError, match="the text is empty"):
        Characters("")


def test_batches_are_windows_and_their_successors():
    text = torch.arange(100)
    batches = text_batches(text, 8, 16, seed=3)
    starts = set()
    for idx, targets in itertools.islice(batches, 60):
        assert idx.shape == targets.shape == (16, 8)
        assert torch.equal(idx + 1, targets) and idx.diff().eq(1).all()
        starts |= set(idx[:, 0].tolist())
    assert starts == set(range(92))  # first to last window
    again = next(text_batches(text, 8, 16, seed=3))[0]
    assert torch.equal(again, next(text_batches(text, 8, 16, seed=3))[0])
    with pytest.raises(ValueError, match="8 tokens; windows of 8 need at least 9"):
        text_batches(torch.arange(8), 8, 1)


@pytest.mark.parametrize("length", [2, 25, 26, 48, 49, 100])
def test_evaluation_covers_each_token_once(length):
    gpt, idx = build(CONFIGS["classic"]), tokens(length, seed=5)
    total = 0.0
    for start in range(0, length - 1, 24):
        part = idx[start : start + 25]
        log_p = gpt(part[None, :-1])[0].log_softmax(-1)
        total -= log_p[torch.arange(len(part) - 1), part[1:]].sum().item()
    got = evaluate(gpt, idx, batch_size=2)
    assert got == pytest.approx(total / (length - 1), rel=1e-5)
    with pytest.raises(ValueError, match="1 tokens"):
        evaluate(gpt, idx[:1])


def test_bits():
    assert bits_per_character(math.log(2)) == pytest.approx(1)
    assert bits_per_character(math.log(256), 4) == pytest.approx(2)
    assert compressed_bits("ab" * 4000, "ab" * 400) < 0.1
    noise = "".join(map(chr, tokens(4000, vocab_size=64).add(48).tolist()))
    assert compressed_bits(noise[:3000], noise[3000:]) > 5.5  # of 6


def test_n_grams_are_distributions_and_count_as_written():
    text = tokens(400, vocab_size=5, seed=1)
    text[1::2] = (text[::2] + 1) % 5  # every second token is certain
    model = NGram(3, 5).fit(text)
    contexts = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    rows = contexts.repeat_interleave(5, 0)
    rows = torch.cat((rows, torch.arange(5).repeat(25)[:, None]), 1)  # (125, 3)
    p = model.log_prob(rows)[:, -1].exp().view(25, 5)
    torch.testing.assert_close(p.sum(1), torch.ones(25))
    # the recursion by hand, in Python
    words = text.tolist()

    def by_hand(h, w):
        if h is None:
            return 1 / 5
        seen = [
            words[i + len(h)]
            for i in range(len(words) - len(h))
            if words[i : i + len(h)] == h
        ]
        shorter = by_hand(h[1:] if h else None, w)
        if not seen:
            return shorter
        kinds = len(set(seen))
        return (seen.count(w) + kinds * shorter) / (len(seen) + kinds)

    for (a, b), row in zip(contexts.tolist()[::3], p[::3], strict=True):
        expected = [by_hand([a, b], w) for w in range(5)]
        assert row.tolist() == pytest.approx(expected, rel=1e-4)
    held_out = tokens(300, vocab_size=5, seed=2)
    held_out[1::2] = (held_out[::2] + 1) % 5
    bits = [
        -NGram(n, 5).fit(text).log_prob(held_out).mean().item() / math.log(2)
        for n in (1, 2, 3)
    ]
    assert bits[2] < bits[1] < bits[0]
    assert model.log_prob(held_out[:2]).shape == (2,)  # shorter than n
    with pytest.raises(ValueError, match="n is 0"):
        NGram(0, 5)
    with pytest.raises(ValueError, match="63 bits"):
        NGram(11, 65)


# --- Muon and training ----------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 64), (3, 8, 20)])
def test_newton_schulz_gives_the_orthogonal_factor(shape):
    g = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    U, S, V = torch.linalg.svd(g, full_matrices=False)
    exact = U @ V
    converged = orthogonalize(g, 60, (15 / 8, -5 / 4, 3 / 8))
    torch.testing.assert_close(converged, exact, atol=2e-4, rtol=0)
    fast = orthogonalize(g)
    values = U.mT @ fast @ V.mT  # diagonal: the directions are kept
    diagonal = values.diagonal(dim1=-2, dim2=-1)
    assert (values - torch.diag_embed(diagonal)).abs().max() < 1e-4
    # each singular value goes the way of the scalar polynomial
    s = S / S.norm(dim=-1, keepdim=True)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(diagonal, s, atol=1e-3, rtol=0)
    large = S / S.norm(dim=-1, keepdim=True) > 0.02
    assert diagonal[large].min() > 0.6 and diagonal.max() < 1.3


def test_muon_takes_the_steps_of_torchs():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch: this version has no Muon of its own")
    torch.manual_seed(0)
    mine = [torch.randn(*shape, requires_grad=True) for shape in [(24, 8), (8, 40)]]
    theirs = [p.detach().clone().requires_grad_() for p in mine]
    options = {"lr": 0.02, "momentum": 0.95}
    ours = Muon(mine, **options)
    reference = torch.optim.Muon(
        theirs, weight_decay=0, adjust_lr_fn="original", **options
    )
    start = [p.detach().clone() for p in mine]
    for _ in range(5):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        ours.step()
        reference.step()
    for p, q, p0 in zip(mine, theirs, start, strict=True):
        moved = (q - p0).norm()
        # torch averages where we sum, and rounds to bfloat16; direction and size agree
        assert (p - q).norm() < 0.05 * moved


def test_muon_gets_the_matrices_of_the_blocks():
    gpt = GPT(modern(**SIZES))
    adam, muon = make_optimizers(gpt, 1e-3, muon=0.02)
    matrices = muon.param_groups[0]["params"]
    assert len(matrices) == 2 * 4 and all(p.ndim == 2 for p in matrices)
    others = adam.param_groups[0]["params"]
    assert sum(p.numel() for p in matrices + others) == count(gpt)
    assert any(p is gpt.wte.weight for p in others)
    assert len(make_optimizers(gpt)) == 1


@pytest.mark.parametrize("muon", [None, 0.02])
def test_the_step_is_adams_with_a_rate_that_rises_and_falls(muon):
    text = tokens(300)
    batches = list(itertools.islice(text_batches(text, 12, 4), 10))
    one, two = GPT(CONFIGS["classic"]), GPT(CONFIGS["classic"])
    two.load_state_dict(one.state_dict())
    step = make_step(one, 10, lr=0.01, muon=muon, warmup=0.2)
    optimizers = make_optimizers(two, 0.01, muon)
    rates = [0.5, 1.0] + [(10 - k) / 8 for k in range(2, 10)]
    for batch, rate in zip(batches, rates, strict=True):
        loss = step(batch)["loss"]
        for optimizer, lr in zip(optimizers, (0.01, muon), strict=False):
            optimizer.param_groups[0]["lr"] = rate * lr
        expected = next_token_loss(two, *batch)
        torch.testing.assert_close(loss, expected)
        two.zero_grad()
        expected.backward()
        grads = torch.cat([p.grad.flatten() for p in two.parameters()])
        for p in two.parameters():
            p.grad *= min(1, 1 / (grads.norm().item() + 1e-6))
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize(("name", "muon"), [("classic", None), ("modern", 0.02)])
def test_a_gpt_learns_a_text(name, muon):
    text = "the cat sat on the mat; the dog sat on the log; " * 20
    chars = Characters(text)
    idx = torch.tensor(chars.encode(text))
    sizes = SIZES | {"vocab_size": len(chars), "n_head": 2}
    torch.manual_seed(0)
    gpt = GPT(modern(**sizes) if muon else GPTConfig(**sizes))
    before = evaluate(gpt, idx)
    assert before == pytest.approx(math.log(len(chars)), abs=0.3)
    step = make_step(gpt, 120, lr=0.01, muon=muon)
    fit(step, text_batches(idx, 24, 16), 120, progress=False)
    after = evaluate(gpt, idx)
    assert after < 0.3
    told = generate(gpt, torch.tensor([chars.encode("the cat sat")]), 12, 0)
    assert chars.decode(told[0]) == "the cat sat on the mat;"


# --- in the page ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def program():
    text = "a rose is a rose is a rose. " * 12
    torch.manual_seed(0)
    sizes = {"vocab_size": 8, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8}
    config = modern(**sizes, fused=False)
    return page_program(text, Characters(text), config, batch=4)


def test_the_page_trains_a_gpt_with_pytorchs_numbers(program, tmp_path):
    manifest = export_program(program, tmp_path / "gpt.json")  # compares them
    assert manifest["program"]["metrics"] == ["loss", "bits"]
    assert manifest["program"]["view_outputs"] == ["next", "maps"]
    draws = {entry["name"]: entry["scale"] for entry in manifest["program"]["init"]}
    assert draws["gpt.wte.weight"] == 0.02
    assert draws["gpt.h.0.attn.c_proj.weight"] == 0


def test_muon_and_adam_in_one_vector_are_the_two_optimizers():
    torch.manual_seed(0)
    config = modern(**SIZES)
    gpt, rule = build(config), MuonAdam(build(config))
    optimizers = make_optimizers(gpt, lr=5e-3, muon=0.02)
    w = torch.cat([p.detach().flatten() for p in gpt.parameters()])
    slots = [torch.zeros_like(w)] * 2
    for t in range(1, 5):
        loss = next_token_loss(gpt, tokens(3, 8, seed=t), tokens(3, 8, seed=9 + t))
        gpt.zero_grad()
        loss.backward()
        g = torch.cat([p.grad.flatten() for p in gpt.parameters()])
        for optimizer in optimizers:
            optimizer.step()
        w, slots = rule.update(w, g, slots, t, 5e-3)
        expected = torch.cat([p.detach().flatten() for p in gpt.parameters()])
        torch.testing.assert_close(w, expected, atol=1e-6, rtol=1e-5)
    assert len(optimizers) == 2 and sum(rule.matrix) == 4 * config.n_layer


def test_the_labs_landmarks_are_n_grams_on_unseen_text():
    panels, [plot] = page_panels()
    [bits] = plot["series"]
    assert bits[0] == "bits" and plot["unit"] == "bits per character"
    values = [line["value"] for line in plot["lines"]]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(math.log2(96))
    idx = torch.tensor(PRINTABLE.encode(book_text()))
    cut = len(idx) * 9 // 10
    best = -NGram(5, 96).fit(idx[:cut]).log_prob(idx[cut:]).mean().item()
    assert values[-1] == pytest.approx(best / math.log(2))
    assert [p["layers"][0]["mark"] for p in panels] == ["text", "images"]


def test_a_plain_keyboard_can_write_all_that_the_lab_reads():
    assert len(PRINTABLE) == 96 and PRINTABLE.encode("\n ~") == [0, 1, 95]
    assert set(book_text()) <= set(PRINTABLE.chars)


def test_the_program_is_the_chapters_step(program):
    run, gpt = Run(program, seed=3), program.modules["gpt"]
    weights = program.parameters(run.state)
    gpt.load_state_dict({k.removeprefix("gpt."): v for k, v in weights.items()})
    rows = run.draw(1)["rows"].long()
    expected = next_token_loss(gpt, rows[:, :-1], rows[:, 1:])
    metrics, _ = run.step(1, lr=0.01)
    torch.testing.assert_close(metrics[0, 0], expected.detach())
    torch.testing.assert_close(metrics[0, 1], expected.detach() / math.log(2))
    assert gpt.wte.weight.std().item() == pytest.approx(0.02, rel=0.3)
    views, prompt = run.view(), program.tables["prompt"]["prompt"].rows.long()
    assert views["next"].shape == (8, 8) and views["maps"].shape == (2, 1, 8, 8)
    weights = program.parameters(run.state)
    gpt.load_state_dict({k.removeprefix("gpt."): v for k, v in weights.items()})
    torch.testing.assert_close(views["next"], gpt(prompt)[0].softmax(-1))
    torch.testing.assert_close(views["maps"][:, 0], attention_maps(gpt, prompt)[0, 0])
    letters = Characters("abcdefnorst ")
    larger = page_program("to be or not to be " * 3, letters, batch=2)
    assert larger.outputs["next"] == (32, 12) and larger.texts["text"] == letters.chars
    with pytest.raises(ValueError, match="18 tokens; windows of 32"):
        page_program("to be or not to be")
    with pytest.raises(ValueError, match="96 characters; this model was built for 8"):
        page_program("to be or not to be", config=gpt.config)
    run.step(60, lr=0.02)
    assert run.step(1)[0][0, 0].item() < 1.0


def write_with(step, idx, config):
    """Feed tokens one by one to `step`, as the page does: logits and maps of each."""
    d = config.n_embd // config.n_head
    shape = (len(idx), config.n_layer, 2, config.n_head, config.block_size, d)
    cache, outputs = torch.zeros(shape), []
    for t in range(idx.shape[1]):
        logits, cache, maps = step(idx[:, t], torch.full((len(idx),), t), cache)
        outputs.append((logits, maps))
    return [torch.stack(x, 1) for x in zip(*outputs, strict=True)]


@pytest.mark.parametrize("name", ["by hand", "modern by hand"])
def test_token_by_token_the_page_has_the_same_logits(name):
    gpt, idx = build(CONFIGS[name]), tokens(2, 24)
    logits, maps = write_with(NextToken(gpt), idx, CONFIGS[name])
    torch.testing.assert_close(logits, gpt(idx), atol=1e-5, rtol=1e-4)
    expected = attention_maps(gpt, idx)  # (B, n_layer, n_head, T, T)
    torch.testing.assert_close(maps.permute(0, 2, 3, 1, 4), expected)


def test_the_page_writes_with_onnx_runtime(tmp_path):
    config = modern(**SIZES | {"n_layer": 1}, fused=False)
    gpt, idx, path = build(config), tokens(2, 4), tmp_path / "next.onnx"
    at, cache = torch.tensor([0, 2]), torch.randn(2, 1, 2, 3, 24, 8)
    inputs = {"token": idx[:, 0], "at": at, "cache": cache}
    export_onnx(NextToken(gpt), inputs, path, ["logits", "new_cache", "maps"])

    def step(*inputs):
        got = run_onnx(path, dict(zip(("token", "at", "cache"), inputs, strict=True)))
        return [torch.from_numpy(x) for x in got.values()]

    got, expected = (write_with(s, idx, config) for s in (step, NextToken(gpt)))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
