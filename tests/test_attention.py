"""Attention against torch's own, and each property of positions and masks."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genlib.attention import (
    LearnedPositions,
    MultiHeadAttention,
    attention,
    causal_mask,
    frequencies,
    future_leak,
    merge_heads,
    padding_mask,
    recall_models,
    recall_task,
    rotary_table,
    rotate,
    sinusoidal,
    sinusoidal_shift,
    size,
    split_heads,
)


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
