"""Attention against torch's own, and each property of positions and masks."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genlib.attention import (
    AttentionOnly,
    Explorable,
    LearnedPositions,
    MultiHeadAttention,
    RecurrentMemory,
    attention,
    causal_mask,
    frequencies,
    future_leak,
    head_scores,
    make_step,
    merge_heads,
    padding_mask,
    prose,
    recall_accuracy,
    recall_from_noise,
    recall_loss,
    recall_models,
    recall_panels,
    recall_program,
    recall_task,
    repeat_loss,
    repeats,
    rotary_table,
    rotate,
    sinusoidal,
    sinusoidal_shift,
    size,
    split_heads,
    train_on_repeats,
)
from genlib.live import Run


def draw(*shape, seed=0, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


def from_torch(theirs):
    """This book's attention with the weights of a torch.nn.MultiheadAttention."""
    mine = MultiHeadAttention(theirs.embed_dim, theirs.num_heads)
    parts = zip(
        (mine.q, mine.k, mine.v),
        theirs.in_proj_weight.chunk(3),
        theirs.in_proj_bias.chunk(3),
        strict=True,
    )
    with torch.no_grad():
        for linear, weight, bias in parts:
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
        mine.out.load_state_dict(theirs.out_proj.state_dict())
    return mine


def torch_attention(n_embd=12, n_head=3, seed=0):
    torch.manual_seed(seed)
    theirs = nn.MultiheadAttention(n_embd, n_head, batch_first=True)
    nn.init.normal_(theirs.in_proj_bias)
    nn.init.normal_(theirs.out_proj.bias)
    return theirs


# --- scaled dot-product attention -----------------------------------------------------


MASKS = {
    "none": None,
    "causal": causal_mask(7),
    "padding": padding_mask(torch.tensor([[5, 3, 4, 2, 9, 0, 0], [1] * 7]), 0),
    "random": draw(2, 3, 7, 7) > 0,
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_attention_is_torchs_with_its_gradients(mask):
    mine = [draw(2, 3, 7, 4, seed=i, requires_grad=True) for i in range(3)]
    theirs = [x.detach().clone().requires_grad_() for x in mine]
    y, weights = attention(*mine, mask)
    expected = F.scaled_dot_product_attention(*theirs, attn_mask=mask)
    torch.testing.assert_close(y, expected)
    assert weights.shape == (2, 3, 7, 7)
    (y**3).sum().backward()
    (expected**3).sum().backward()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_the_values_may_have_another_width_and_the_scale_be_given():
    q, k, v = draw(2, 5, 4), draw(2, 6, 4, seed=1), draw(2, 6, 9, seed=2)
    y, weights = attention(q, k, v, scale=0.3)
    assert y.shape == (2, 5, 9) and weights.shape == (2, 5, 6)
    expected = F.scaled_dot_product_attention(q, k, v, scale=0.3)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5))


def test_one_who_may_look_nowhere_gets_zeros_and_spoils_nothing():
    q, k, v = (draw(1, 3, 4, seed=i, requires_grad=True) for i in range(3))
    mask = torch.tensor([[True, False, True], [False] * 3, [True] * 3])
    y, weights = attention(q, k, v, mask)
    assert y[0, 1].eq(0).all() and weights[0, 1].eq(0).all()
    y.square().sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))
    assert q.grad[0, 1].eq(0).all()


def test_the_scale_keeps_the_variance_of_scores_at_one():
    for d in (4, 64, 256):
        q, k = draw(2000, d), draw(2000, d, seed=1)
        products = (q * k).sum(1)
        assert products.var().item() == pytest.approx(d, rel=0.2)
        assert (products * d**-0.5).var().item() == pytest.approx(1, rel=0.2)


def test_attention_is_a_soft_dictionary():
    keys, values = 50 * torch.eye(4), draw(4, 3)
    y, weights = attention(50 * torch.eye(4)[[2, 0]], keys, values)
    torch.testing.assert_close(y, values[[2, 0]])  # a key that fits: its value
    y, _ = attention(torch.zeros(1, 4), keys, values)
    torch.testing.assert_close(y[0], values.mean(0))  # no preference: their mean


# --- masks ----------------------------------------------------------------------------


def test_masks_say_where_one_may_look():
    assert causal_mask(3).tolist() == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
    idx = torch.tensor([[4, 2, 9], [7, 9, 9]])
    mask = padding_mask(idx, pad=9)
    assert mask.shape == (2, 1, 1, 3)
    assert mask[:, 0, 0].tolist() == [[True, True, False], [True, False, False]]
    both = mask & causal_mask(3)
    assert both.shape == (2, 1, 3, 3)
    assert both[0, 0].tolist()[2] == [True, True, False]


def test_a_causal_mask_keeps_the_future_out_and_a_leak_is_caught():
    torch.manual_seed(0)
    layer = MultiHeadAttention(12, 3)
    x, changed = draw(2, 6, 12), draw(2, 6, 12, seed=1)
    mask = causal_mask(6)
    assert future_leak(lambda x: layer(x, mask=mask)[0], x, changed) == 0
    assert future_leak(lambda x: layer(x)[0], x, changed) > 0.01
    for t in range(5):  # one hole in the mask is found, wherever it is
        hole = mask.clone()
        hole[t, t + 1] = True
        leak = future_leak(lambda x, m=hole: layer(x, mask=m)[0], x, changed)
        assert leak > 1e-3
    broken = future_leak(lambda x: layer(x, mask=mask)[0] * math.nan, x, changed)
    assert math.isnan(broken)


def test_padding_is_not_read():
    torch.manual_seed(0)
    layer = MultiHeadAttention(12, 3)
    idx = torch.tensor([[3, 8, 2, 0, 0]])
    x, other = draw(1, 5, 12), draw(1, 5, 12, seed=1)
    other[:, :3] = x[:, :3]
    mask = padding_mask(idx, 0)
    y, again = layer(x, mask=mask)[0], layer(other, mask=mask)[0]
    assert torch.equal(y[:, :3], again[:, :3])
    short = layer(x[:, :3])[0]  # as if the padding were not there
    torch.testing.assert_close(y[:, :3], short)


# --- several heads --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["self", "cross"])
@pytest.mark.parametrize("masked", [False, True])
def test_multi_head_attention_is_torchs_with_its_gradients(kind, masked):
    theirs = torch_attention()
    mine = from_torch(theirs)
    x = draw(2, 5, 12, requires_grad=True)
    copy = x.detach().clone().requires_grad_()
    memory = draw(2, 7, 12, seed=3) if kind == "cross" else None
    S = 5 if memory is None else 7
    mask = draw(5, S, seed=4) > -0.5 if masked else None
    padding = torch.zeros(2, S, dtype=torch.bool)
    padding[1, -2:] = masked
    allowed = None if mask is None else mask & ~padding[:, None, None]
    y, weights = mine(x, memory, allowed)
    other = copy if memory is None else memory
    expected, expected_weights = theirs(
        copy,
        other,
        other,
        key_padding_mask=padding,
        attn_mask=None if mask is None else ~mask,  # torch: True is forbidden
        average_attn_weights=False,
    )
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(weights, expected_weights)
    assert weights.shape == (2, 3, 5, S)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, copy.grad)
    grads = torch.cat([p.weight.grad for p in (mine.q, mine.k, mine.v)])
    torch.testing.assert_close(grads, theirs.in_proj_weight.grad)
    torch.testing.assert_close(mine.out.weight.grad, theirs.out_proj.weight.grad)


def test_heads_split_and_merge():
    x = draw(2, 5, 12)
    heads = split_heads(x, 3)
    assert heads.shape == (2, 3, 5, 4)
    assert torch.equal(heads[1, 2, 4], x[1, 4, 8:])  # the last head, the last third
    assert torch.equal(merge_heads(heads), x)
    with pytest.raises(ValueError, match="n_embd is 10: 3 heads"):
        MultiHeadAttention(10, 3)


def test_without_positions_the_order_says_nothing():
    torch.manual_seed(0)
    layer = MultiHeadAttention(12, 3)
    x, order = draw(2, 6, 12), torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(layer(x[:, order])[0], layer(x)[0][:, order])
    placed = x + sinusoidal(6, 12)
    shuffled = x[:, order] + sinusoidal(6, 12)
    gap = layer(shuffled)[0] - layer(placed)[0][:, order]
    assert gap.abs().max() > 0.05


# --- positions ------------------------------------------------------------------------


def test_sinusoidal_is_the_papers_formula():
    table = sinusoidal(50, 16)
    for t, i in [(0, 0), (7, 3), (49, 7)]:
        angle = t / 10_000 ** (2 * i / 16)
        assert table[t, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
        assert table[t, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)
    assert frequencies(16)[0] == 1 and frequencies(16)[-1] < 1e-3
    for function in (frequencies, lambda n: sinusoidal(4, n)):
        with pytest.raises(ValueError, match="a width of 15 is odd"):
            function(15)


@pytest.mark.parametrize("distance", [1, 9, -4])
def test_a_shift_of_sinusoidal_positions_is_one_linear_map(distance):
    table, shift = sinusoidal(60, 16), sinusoidal_shift(16, distance)
    t = torch.arange(10, 50)
    torch.testing.assert_close(
        table[t] @ shift.T, table[t + distance], atol=1e-5, rtol=0
    )
    torch.testing.assert_close(shift @ shift.T, torch.eye(16), atol=1e-6, rtol=0)


def test_rotary_products_depend_on_the_distance_only():
    cos, sin = rotary_table(40, 8)
    q, k = draw(8), draw(8, seed=1)
    turned_q, turned_k = (
        rotate(q.expand(40, 8), cos, sin),
        rotate(k.expand(40, 8), cos, sin),
    )
    products = turned_q @ turned_k.T  # (40, 40)
    for distance in (-20, -1, 0, 3, 39):
        line = products.diagonal(distance)
        torch.testing.assert_close(line, line[:1].expand_as(line), atol=1e-5, rtol=0)
    assert products[0].std() > 0.1  # and on the distance they do depend
    torch.testing.assert_close(products.diagonal(), (q @ k).expand(40))
    torch.testing.assert_close(turned_q.norm(dim=1), q.norm().expand(40))


def test_rotation_is_a_product_of_complex_numbers():
    x = draw(2, 3, 10, 8)
    turned = rotate(x, *rotary_table(10, 8))
    z = torch.complex(x[..., :4], x[..., 4:])
    angles = torch.arange(10)[:, None] * frequencies(8)
    expected = z * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(turned, torch.cat((expected.real, expected.imag), -1))


def test_learned_positions_are_added_and_end_somewhere():
    layer = LearnedPositions(5, 3)
    x = draw(2, 4, 3)
    torch.testing.assert_close(layer(x) - x, layer.table.weight[:4].expand(2, 4, 3))
    assert size(layer) == 15
    with pytest.raises(ValueError, match="6 positions; .* learned 5"):
        layer(draw(2, 6, 3))


# --- the task for memory --------------------------------------------------------------


def test_the_recall_task_has_one_right_answer():
    generator = torch.Generator().manual_seed(0)
    items, answers, back = recall_task(500, 6, 10, 4, generator)
    assert items.shape == (500, 7, 2)
    for row, answer, distance in zip(
        items.tolist(), answers.tolist(), back.tolist(), strict=True
    ):
        *pairs, (key, blank) = row
        assert blank == 4 and dict(map(tuple, pairs))[key] == answer
        assert len({k for k, _ in pairs}) == 6
        assert pairs[-distance][0] == key
    assert sorted(set(back.tolist())) == [1, 2, 3, 4, 5, 6]
    assert items[:, :-1, 0].unique().tolist() == list(range(10))
    again = recall_task(500, 6, 10, 4, torch.Generator().manual_seed(0))
    assert torch.equal(again[0], items) and torch.equal(again[1], answers)
    _, _, back = recall_task(9, 6, distance=4)
    assert back.eq(4).all()


def test_a_recall_task_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="11 pairs of different keys, out of 10"):
        recall_task(1, 11, n_keys=10)
    for distance in (0, 7):
        with pytest.raises(ValueError, match=r"distance is \d; .* 1..6"):
            recall_task(1, 6, distance=distance)


def test_attention_recalls_what_a_recurrent_memory_of_its_size_loses():
    torch.manual_seed(0)
    shares = []
    attend, recur = recall_models(32)
    assert size(attend) <= size(recur) <= 1.05 * size(attend)
    for model in (attend, recur):
        generator = torch.Generator().manual_seed(1)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(150):
            items, answers, _ = recall_task(64, 12, generator=generator)
            loss = F.cross_entropy(model(items), answers)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        items, answers, _ = recall_task(1000, 12, generator=generator)
        shares.append((model(items).argmax(1) == answers).float().mean().item())
    assert shares[0] > 0.99 and shares[1] < 0.5


def test_accuracy_is_told_by_distance():
    class Listens(nn.Module):
        """Knows the last two pairs and nothing else."""

        def forward(self, items):
            keys, values, asked = (
                items[:, -3:-1, 0],
                items[:, -3:-1, 1],
                items[:, -1:, 0],
            )
            logits = torch.zeros(len(items), 8)
            for pair in (0, 1):
                known = keys[:, pair] == asked[:, 0]
                logits[known, values[known, pair]] = 9.0
            logits[:, 0] += 1.0  # else it says 0
            return logits

    shares = recall_accuracy(Listens(), 5)
    assert shares[:2].eq(1).all() and (shares[2:] < 0.25).all()
    items, answers, _ = recall_task(400, 2, generator=torch.Generator().manual_seed(0))
    found = recall_loss(Listens(), items, answers)
    assert found["accuracy"] == 1
    torch.testing.assert_close(
        found["loss"], F.cross_entropy(Listens()(items), answers)
    )


def test_noise_makes_the_same_task():
    items, answers = recall_from_noise(draw(600, 10), draw(600, 6, seed=1), 4)
    assert items.shape == (600, 7, 2) and answers.shape == (600,)
    for i, (row, answer) in enumerate(
        zip(items.tolist(), answers.tolist(), strict=True)
    ):
        *pairs, (key, blank) = row
        assert blank == 4 and pairs[i % 6] == [key, answer]
        assert len({k for k, _ in pairs}) == 6
    for counts, each in (
        (items[:, :-1, 0].flatten().bincount(minlength=10), 360),
        (items[:, :-1, 1].flatten().bincount(minlength=4), 900),
    ):
        assert (counts / each - 1).abs().max() < 0.15, "all equally often"


def test_the_lab_sets_both_the_same_task_and_shows_it_by_distance():
    program = recall_program(n_pairs=5, n_keys=8)
    assert program.metrics == [
        f"{name}_{what}"
        for name in ("attention", "GRU")
        for what in ("loss", "accuracy")
    ]
    shapes = {"attention": (5,), "GRU": (5,), "map": (5, 6)}
    assert program.outputs == shapes
    run = Run(program, seed=0)
    metrics, _ = run.step(150)
    view = run.view()
    assert view["attention"].min() > 0.95 and view["GRU"].max() < 0.9
    torch.testing.assert_close(view["map"].sum(1), torch.ones(5))
    # Row d - 1 is of the pair d back, which stands at place 5 - d
    assert view["map"].argmax(1).tolist() == [4, 3, 2, 1, 0]
    assert metrics[-1, 1] > 0.95
    panels, plots = recall_panels(5)
    assert panels[1]["extent"] == [0.5, 6.5, 0.5, 5.5] and len(plots) == 2


def test_the_page_draws_the_recurrent_unit_as_torch_does():
    memory = RecurrentMemory(32, 26)
    for weight in memory.gru.parameters():
        assert weight.std().item() == pytest.approx(weight.init_std, rel=0.25)
    assert memory.gru.weight_hh_l0.std().item() == pytest.approx(
        memory.gru.weight_hh_l0.init_std, rel=0.05
    )


# --- the small language model ---------------------------------------------------------


def small(seed=0, **sizes):
    torch.manual_seed(seed)
    sizes = {"block_size": 12, "n_layer": 2, "n_head": 2, "n_embd": 16} | sizes
    return AttentionOnly(7, **sizes).eval()


def tokens(*shape, seed=0, high=7):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def test_each_layer_is_rotary_attention_after_a_norm():
    model, idx = small(), tokens(3, 9)
    logits, weights = model(idx)
    x, turn = model.embed(idx), rotary_table(9, 8)
    for norm, layer in zip(model.norms, model.layers, strict=False):
        z = norm(x)
        q, k, v = (split_heads(f(z), 2) for f in (layer.q, layer.k, layer.v))
        q, k = rotate(q, *turn), rotate(k, *turn)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + layer.out(merge_heads(y))
    torch.testing.assert_close(logits, model.readout(model.norms[-1](x)))
    assert weights.shape == (3, 2, 2, 9, 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 2, 9))
    with pytest.raises(ValueError, match="13 tokens; this model sees 12"):
        model(tokens(1, 13))


def test_the_small_model_sees_no_future_unless_it_is_told_to():
    model, idx = small(), tokens(3, 9)
    changed = (idx + 1) % 7
    assert future_leak(lambda x: model(x)[0], idx, changed) < 1e-6
    assert future_leak(lambda x: model(x, causal=0)[0], idx, changed) > 1e-3


def test_the_switches_do_what_they_say():
    model, idx = small(), tokens(3, 9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    plain = model(idx, causal=0, positions=0)[0]
    torch.testing.assert_close(
        model(idx[:, order], causal=0, positions=0)[0], plain[:, order]
    )
    assert not torch.allclose(model(idx[:, order], causal=0)[0], plain[:, order])
    sharp = small()
    with torch.no_grad():  # without the scale: as if queries were sqrt(d) longer
        for layer in sharp.layers:
            layer.q.weight *= 8**0.5
    torch.testing.assert_close(model(idx, scaled=0)[0], sharp(idx)[0])
    silent = small()
    with torch.no_grad():  # head 2 of layer 1 says nothing
        silent.layers[0].out.weight[:, 8:] = 0
    gates = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(model(idx, heads=gates)[0], silent(idx)[0])


def test_a_batch_may_hold_different_switches_and_padding():
    model = small()
    idx = torch.full((2, 12), model.pad)
    idx[:, :9] = tokens(1, 9)
    explorable = Explorable(model)
    assert (explorable.n_layer, explorable.n_head, explorable.block_size) == (2, 2, 12)
    switches = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    heads = torch.tensor([[1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]])
    weights, probs = explorable(idx.float(), switches, heads)
    for i, (causal, scaled, positions) in enumerate(switches.tolist()):
        logits, alone = model(
            idx[i : i + 1, :9], causal, scaled, positions, heads[i].view(2, 2)
        )
        torch.testing.assert_close(probs[i, :9], logits[0].softmax(-1))
        torch.testing.assert_close(weights[i, :, :9, :9], alone[0].flatten(0, 1))
        assert weights[i, :, :, 9:].eq(0).all(), "nobody looks at padding"


def test_repeats_repeat():
    text = torch.arange(500) % 36
    generator = torch.Generator().manual_seed(0)
    rows, period = repeats(text, 36, 300, 41, generator)
    assert rows.shape == (300, 41) and period.unique().tolist() == list(range(5, 19))
    for row, p in zip(rows, period.tolist(), strict=True):
        assert torch.equal(row[p:], row[:-p])
        assert len(row[:p].unique()) == p, "an alphabet, or a text without repetition"
    in_order = ((rows[:, 1] - rows[:, 0]) % 36 == 1) & (
        (rows[:, 2] - rows[:, 1]) % 36 == 1
    )
    assert 0.4 < in_order.float().mean() < 0.6, "half of the pieces are of the text"
    assert not ((rows - rows[:, :1]) == 0).all()


def test_scores_tell_the_two_habits_apart():
    rows, period = repeats(torch.arange(99) % 36, 36, 50, 30, None)
    T = 30
    before = torch.eye(T).roll(-1, 1)  # row t has its one at t - 1
    before[0] = torch.eye(T)[0]
    copies = torch.zeros(50, T, T)
    for i, p in enumerate(period.tolist()):
        for t in range(T):
            copies[i, t, t - p + 1 if t >= p else t] = 1
    weights = torch.stack((before.expand(50, T, T), copies), 1)[:, None]
    looks_before, looks_on = head_scores(weights, period)
    torch.testing.assert_close(looks_before[0, 0], torch.tensor(1.0))
    torch.testing.assert_close(looks_on[0, 1], torch.tensor(1.0))
    assert looks_before[0, 1] < 0.1 and looks_on[0, 0] < 0.1


def test_surprise_is_told_apart_by_what_was_told():
    rows, period = repeats(torch.arange(99) % 36, 36, 40, 30, None)

    class Copies:
        """Foretells by the period, and nothing in the first round."""

        def __call__(self, idx):
            logits = torch.zeros(*idx.shape, 36)
            for i, p in enumerate(period.tolist()):
                for t in range(p, idx.shape[1]):
                    logits[i, t, rows[i, t + 1 - p]] = 30.0
            return logits, None

    new, told = repeat_loss(Copies(), rows, period)
    assert new.item() == pytest.approx(math.log(36), abs=1e-4) and told < 1e-4


def test_the_books_prose_has_36_characters():
    text = prose()
    assert len(set(text)) == 36 and len(text) > 70_000 and "  " not in text
    assert text == text.lower() and text.count("the") > 300


def test_a_step_warms_up_and_cools_down():
    model = small()
    step = make_step(model, 100, lr=1e-2)
    before = model.readout.weight.clone()
    rows = tokens(4, 11)
    assert step(rows)["loss"].item() == pytest.approx(math.log(7), abs=0.7)
    first = (model.readout.weight - before).abs().max().item()
    assert first == pytest.approx(1e-2 / 50, rel=0.01), "Adam's first step is the rate"
    losses = [step(rows)["loss"].item() for _ in range(60)]
    assert losses[-1] < losses[0] - 0.3


def test_training_finds_the_two_heads():
    """The chapter's claim, with another seed and fewer steps."""
    model, chars, text, history = train_on_repeats(400, seed=3)
    assert history.steps == 400 and not model.training
    rows, period = repeats(text, len(chars), 100, 41, torch.Generator().manual_seed(1))
    before, copied = head_scores(model(rows[:, :-1])[1], period)
    assert before[0].max() > 0.4 and copied[1].max() > 0.25
    assert copied[0].max() < 0.2
    new, told = repeat_loss(model, rows, period)
    assert told < 0.8 < 2.5 < new
    for layer in (0, 1):
        gates = torch.ones(2, 4)
        gates[layer] = 0
        assert repeat_loss(model, rows, period, heads=gates)[1] > 2
