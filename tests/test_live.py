"""Programs: the same numbers as torch.optim, as torch's layers, and in ONNX Runtime."""

import hashlib
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genlib.export import ExportError, export_program, run_onnx
from genlib.live import (
    Choice,
    First,
    Normal,
    Phase,
    Program,
    Rows,
    Run,
    Slider,
    normal_noise,
    uniform_noise,
)
from genlib.training import SGD, Adam

# --- noise --------------------------------------------------------------------------


def test_noise_is_uniform_and_normal():
    from scipy import stats

    u = uniform_noise(3, "z", 7, 20_000)
    assert stats.kstest(u, "uniform").pvalue > 0.01
    assert stats.kstest(normal_noise(3, "z", 7, 20_000), "norm").pvalue > 0.01
    pairs = np.corrcoef(normal_noise(3, "z", 7, 20_001).reshape(-1, 3).T)
    assert np.abs(pairs - np.eye(3)).max() < 0.04  # neighbours know nothing


@pytest.mark.parametrize("change", [(4, "z", 7), (3, "x", 7), (3, "z", 8)])
def test_seeds_names_and_steps_have_noise_of_their_own(change):
    a, b = normal_noise(3, "z", 7, 20_000), normal_noise(*change, 20_000)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03
    shifted = [np.corrcoef(a[k:], b[:-k])[0, 1] for k in (1, 2, 3)]
    assert np.abs(shifted).max() < 0.03


def test_noise_is_what_the_page_computes():
    """The first bits, worked out one number at a time in plain 32-bit arithmetic."""

    def mix(x):
        x ^= x >> 16
        x = x * 0x21F0AAAD % 2**32
        x ^= x >> 15
        x = x * 0xD35A2D97 % 2**32
        return x ^ x >> 15

    text = 0x811C9DC5
    for letter in b"z":
        text = (text ^ letter) * 0x01000193 % 2**32
    key = mix((mix(mix(5) ^ text) + 2) % 2**32)
    expected = [
        (mix(mix((key + i) % 2**32) ^ 0x9E3779B9 ^ key) + 0.5) / 2**32 for i in range(4)
    ]
    assert uniform_noise(5, "z", 2, 4).tolist() == expected
    radius = math.sqrt(-2 * math.log(expected[0]))
    angle = 2 * math.pi * expected[1]
    normal = normal_noise(5, "z", 2, 3)
    np.testing.assert_allclose(
        normal[:2], [radius * math.cos(angle), radius * math.sin(angle)], rtol=1e-12
    )
    assert len(normal) == 3


# --- a small GAN, as a program and as a chapter would write it -----------------------


def mlp(n_in, n_out):
    return nn.Sequential(nn.Linear(n_in, 16), nn.LeakyReLU(0.2), nn.Linear(16, n_out))


def d_loss(G, D, x, z):
    fake = G(z).detach()
    return F.softplus(-D(x)).mean() + F.softplus(D(fake)).mean()


def g_loss(G, D, z):
    return F.softplus(-D(G(z))).mean()


def toy_program(d_every=1.0):
    torch.manual_seed(0)
    G, D = mlp(2, 2), mlp(2, 1)
    line = torch.linspace(-2, 2, 5)
    plane = torch.cartesian_prod(line, line)

    def view(z, near):
        fake = G(z).detach().requires_grad_()
        pull = -torch.autograd.grad(F.softplus(-D(fake)).sum(), fake)[0]
        heat = D(plane).sigmoid().view(5, 5)
        return {"heat": heat, "pull": pull, "gap": (fake.mean(0) - near.mean(0)).norm()}

    return Program(
        {"G": G, "D": D},
        [
            Phase("D", "D", lambda x, z: d_loss(G, D, x, z), Adam(), "lr", "d_every"),
            Phase("G", "G", lambda z: g_loss(G, D, z), SGD(0.9), 0.05),
        ],
        {
            "x": Rows("data", 8),
            "z": Normal(8, 2),
            "near": First("data", 4),
            "lr": Slider(0.01, 0.001, 0.1, log=True),
            "d_every": Slider(d_every, 1, 5, integer=True),
        },
        view,
        {"data": {"a": torch.randn(50, 2), "b": torch.randn(3, 2) + 5}},
    )


@pytest.fixture(scope="module")
def program():
    return toy_program()


def start_modules(program, run):
    """The program's modules with the weights of the run's state, free to train."""
    import copy

    modules = copy.deepcopy(nn.ModuleDict(program.modules))
    modules.load_state_dict(program.parameters(run.state))
    return modules["G"], modules["D"]


def test_a_program_is_the_step_that_a_chapter_writes(program):
    run = Run(program, seed=4)
    G, D = start_modules(program, run)
    opt_D = torch.optim.Adam(D.parameters(), 0.02)
    opt_G = torch.optim.SGD(G.parameters(), 0.05, momentum=0.9)
    for step in range(1, 41):
        feeds = run.draw(step)
        loss = d_loss(G, D, feeds["x"], feeds["z"])
        opt_D.zero_grad()
        loss.backward()
        opt_D.step()
        expected = [loss.item()]
        loss = g_loss(G, D, feeds["z"])
        opt_G.zero_grad()
        loss.backward()
        opt_G.step()
        metrics, gates = run.step(lr=0.02)
        assert gates.tolist() == [[1, 1]]
        np.testing.assert_allclose(metrics[0], [*expected, loss.item()], rtol=1e-4)
    for name, value in nn.ModuleDict({"G": G, "D": D}).state_dict().items():
        got = program.parameters(run.state)[name]
        np.testing.assert_allclose(got, value, atol=2e-4, err_msg=name)
    assert run.steps == 40 and program.metrics == ["D_loss", "G_loss"]


def test_the_modules_are_left_as_they_are(program):
    before = [p.clone() for m in program.modules.values() for p in m.parameters()]
    run = Run(program)
    run.step(3)
    run.view()
    after = [p for m in program.modules.values() for p in m.parameters()]
    assert all(map(torch.equal, before, after)) and all(p.grad is None for p in after)


def test_the_start_is_torchs_own():
    layers = {"a": nn.Linear(30, 40), "e": nn.Embedding(60, 50), "n": nn.LayerNorm(7)}
    layers["n"].weight.data = torch.arange(7.0)
    layers["o"] = nn.Linear(30, 40)  # says itself how it starts
    layers["o"].weight.init_std, layers["o"].bias.init_std = 0.7, 0.0
    net = nn.ModuleDict(layers)

    def loss(z):
        return sum(p.square().sum() for p in net.parameters()) + z.sum()

    program = Program({"net": net}, [Phase("f", "net", loss, SGD())], {"z": Normal(2)})
    state = {k: v for k, v in program.parameters(program.initial(1)).items()}
    bound = 30**-0.5  # nn.Linear draws weight and bias within 1/sqrt(fan-in)
    assert layers["a"].weight.abs().max() <= bound
    for name in ("net.a.weight", "net.a.bias"):
        assert state[name].abs().max() <= bound
        assert state[name].std() == pytest.approx(bound / 3**0.5, rel=0.2)
    assert state["net.e.weight"].std() == pytest.approx(1, abs=0.05)
    assert state["net.n.weight"].tolist() == list(range(7))
    assert state["net.o.weight"].std() == pytest.approx(0.7, rel=0.1)
    assert state["net.o.weight"].abs().max() > 1.5 and state["net.o.bias"].eq(0).all()
    other = program.parameters(program.initial(2))["net.a.weight"]
    assert not torch.equal(other, state["net.a.weight"])
    again = program.initial(1)
    assert torch.equal(again, program.initial(1)) and len(again) == program.size


def test_the_same_seed_gives_the_same_run_in_pieces(program):
    whole, pieces = Run(program, 7), Run(program, 7)
    together, _ = whole.step(6)
    parts = [pieces.step(n)[0] for n in (1, 2, 3)]
    assert torch.equal(together, torch.cat(parts))
    assert torch.equal(whole.state, pieces.state)
    assert not torch.equal(whole.state, Run(program, 8).state)
    pieces.reset(7)
    assert pieces.steps == 0 and torch.equal(pieces.step(6)[0], together)


def test_phases_keep_their_rhythm():
    program = toy_program(d_every=3.0)
    run = Run(program)
    before = program.parameters(run.state)
    _, gates = run.step(2)
    assert gates.tolist() == [[0, 1], [0, 1]]
    now = program.parameters(run.state)
    moved = {name for name in now if not torch.equal(now[name], before[name])}
    assert moved == {k for k in now if k.startswith("G.")}
    metrics, gates = run.step(1)
    assert gates.tolist() == [[1, 1]] and metrics[0, 0] > 0
    metrics, gates = run.step(1, gates={"D": True, "G": False})
    assert gates.tolist() == [[1, 0]] and metrics[0, 1] == 0
    assert run.step(1, d_every=1.0)[1].tolist() == [[1, 1]]


def test_the_data_can_be_chosen_and_drawn(program):
    run = Run(program)
    rows = program.tables["data"]["a"].rows
    drawn = run.draw(3)["x"]
    assert all((rows == row).all(1).any() for row in drawn)
    run.choose("data", "b")
    assert run.draw(3)["x"].mean() > 3
    assert torch.equal(*run.draw(0, view=True)["near"][[3, 0]])  # 3 rows repeat
    run.replace("data", torch.ones(1, 2))
    assert (run.draw(3)["x"] == 1).all()
    run.step(2)
    before = run.view()["heat"]
    run.step(4)
    assert not torch.equal(run.view()["heat"], before)
    still = [run.view()["pull"] for _ in range(2)]
    assert torch.equal(*still)  # the view's noise stands still


def test_an_update_in_place_of_a_loss():
    G, average = nn.Linear(1, 1), nn.Linear(1, 1)

    def follow():
        new = {}
        for key, value in average.named_parameters():
            new[f"A.{key}"] = 0.9 * value + 0.1 * dict(G.named_parameters())[key]
        return new

    program = Program(
        {"G": G, "A": average},
        [
            Phase("G", "G", lambda z: (G(z) - 3).square().mean(), SGD(), 0.1),
            Phase("A", "A", update=follow),
        ],
        {"z": Normal(4, 1)},
    )
    run = Run(program)
    expected = program.parameters(run.state)["A.weight"].clone()
    for _ in range(5):
        run.step()
        now = program.parameters(run.state)
        expected = 0.9 * expected + 0.1 * now["G.weight"]
        torch.testing.assert_close(now["A.weight"], expected)
    assert program.metrics == ["G_loss"]


def test_an_update_may_tell_metrics_and_take_the_same_rows_in_each_step(tmp_path):
    """A step to the mean of a table: reached at once, and kept."""
    centre, rows = nn.Embedding(1, 2), torch.tensor([[1.0, 2.0], [3.0, 8.0]])

    def update(x):
        far = (x - centre.weight).square().sum(1).mean()
        return {"c.weight": x.mean(0, keepdim=True)}, {"distance": far}

    program = Program(
        {"c": centre},
        [Phase("c", "c", update=update)],
        {"x": First("t", 4)},
        tables={"t": {"a": rows}},
    )
    run = Run(program, 1)
    start = program.parameters(run.state)["c.weight"]
    metrics, _ = run.step(2)
    assert program.metrics == ["distance"] and program.step_feeds == ["x"]
    torch.testing.assert_close(
        program.parameters(run.state)["c.weight"], torch.tensor([[2.0, 5.0]])
    )
    # From any point: the variance about the mean and the squared way to the mean
    way = (start - torch.tensor([2.0, 5.0])).square().sum() + 10
    torch.testing.assert_close(metrics[:, 0], torch.stack([way, torch.tensor(10.0)]))
    export_program(program, tmp_path / "mean.json")  # compares with PyTorch itself


def test_tables_are_rounded_as_the_page_has_them(program):
    table = program.tables["data"]["a"]
    assert table.dtype == "i2" and table.scale < 2e-4
    n = nn.Linear(1, 1)
    grey = Program(
        {"n": n},
        [Phase("f", "n", lambda x: n(x).sum(), SGD())],
        {"x": Rows("t", 2)},
        tables={"t": {"digits": torch.arange(17.0).reshape(17, 1) / 16}},
    )
    digits = grey.tables["t"]["digits"]
    assert digits.dtype == "u1"
    assert torch.equal(digits.rows[:, 0], torch.arange(17.0) / 16)


# --- in ONNX Runtime ------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(program, tmp_path_factory):
    path = tmp_path_factory.mktemp("live") / "gan" / "toy.json"
    return path, export_program(program, path, {"widget": "training_lab"})


def onnx_inputs(program, run, steps, gates=None, **scalars):
    feeds = [run.draw(t, **scalars) for t in range(1, steps + 1)]
    given = {k: torch.stack([f[k] for f in feeds]) for k in program.step_feeds}
    for phase in program.phases:
        opened = [
            (gates or run.gates(t, f))[phase.name] for t, f in enumerate(feeds, 1)
        ]
        given[f"run_{phase.name}"] = torch.tensor(opened).float()
    return {"state": run.state, **given}


@pytest.mark.parametrize("steps, d_every", [(1, 1.0), (20, 1.0), (7, 3.0)])
def test_onnx_runtime_trains_as_pytorch_does(program, exported, steps, d_every):
    run = Run(program, 11)
    given = onnx_inputs(program, run, steps, d_every=d_every)
    got = run_onnx(exported[0].with_name("toy.step.onnx"), given)
    metrics, gates = run.step(steps, d_every=d_every)
    assert got["metrics"].shape == (steps, 2)
    np.testing.assert_allclose(got["metrics"], metrics, atol=1e-5)
    np.testing.assert_allclose(got["next_state"], run.state, atol=1e-4)
    assert gates[:, 0].sum() == steps // d_every


def test_onnx_runtime_sees_what_pytorch_sees(program, exported):
    run = Run(program, 2)
    run.step(5)
    feeds = {"state": run.state, **run.draw(0, view=True)}
    got = run_onnx(exported[0].with_name("toy.view.onnx"), feeds)
    for name, value in run.view().items():
        np.testing.assert_allclose(got[name], value, atol=1e-5, err_msg=name)
    assert list(got) == ["heat", "pull", "gap"]


def test_the_manifest_says_all_that_the_page_needs(program, exported):
    path, manifest = exported
    assert json.loads(path.read_text()) == manifest
    told = manifest["program"]
    for name in ("step", "view"):
        data = path.with_name(told[name]["onnx"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == told[name]["sha256"]
        for trace in (b".py", b"site-packages", b"/work", b"/home"):
            assert trace not in data
    assert manifest["widget"] == "training_lab"
    assert told["state"] == program.size
    covered = sum(e["size"] for e in told["init"])
    assert covered == sum(
        v.numel() for v in program.parameters(program.initial()).values()
    )
    assert told["feeds"]["x"] == {"kind": "rows", "table": "data", "shape": [8, 2]}
    assert told["feeds"]["near"] == {"kind": "first", "table": "data", "shape": [4, 2]}
    assert told["feeds"]["z"] == {"kind": "normal", "shape": [8, 2]}
    assert told["step_inputs"] == ["x", "z", "lr", "d_every"]
    assert told["view_inputs"] == ["z", "near"]
    assert [p["every"] for p in told["phases"]] == ["d_every", None]
    assert told["tables"]["data"]["b"]["shape"] == [3, 2]


def test_a_penalty_on_the_gradient_exports(tmp_path):
    """R1 differentiates a gradient once more; the page does, too."""
    torch.manual_seed(0)
    D = mlp(2, 1)

    def loss(x):
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
        return {"loss": slope.square().sum(1).mean(), "out": D(x).mean()}

    program = Program({"D": D}, [Phase("D", "D", loss, Adam())], {"x": Normal(6, 2)})
    assert program.metrics == ["loss", "out"]
    export_program(program, tmp_path / "r1.json")  # compares with PyTorch itself


def small(loss, tmp_path, views=None, **options):
    net = options.pop("net", nn.Linear(2, 2))
    program = Program(
        {"net": net},
        [Phase("f", "net", lambda z: loss(net(z)), SGD())],
        {"z": Normal(4, 2)},
        views,
    )
    return export_program(program, tmp_path / "p.json")


def test_an_operation_without_a_form_is_named_with_its_line(tmp_path):
    with pytest.raises(ExportError, match=r"lgamma.* \(test_live.py, line \d+\)"):
        small(lambda y: torch.lgamma(y.square() + 1).mean(), tmp_path)
    with pytest.raises(ExportError, match=r"bessel_j0.* \(test_live.py, line \d+\)"):
        views = {"f": lambda z: {"j": torch.special.bessel_j0(z)}}
        small(lambda y: y.mean(), tmp_path, views["f"])
    with pytest.raises(ExportError, match="test_live.py, line"):
        small(lambda y: y.mean() if y.sum() > 0 else -y.mean(), tmp_path)
    assert not list(tmp_path.iterdir()), "nothing is half written"


def test_a_heavy_program_is_refused(tmp_path):
    big = nn.Linear(2, 2)
    constant = torch.randn(300_000)

    def views(z):
        return {"v": constant * z.sum()}

    with pytest.raises(ValueError, match=r"p would cost the page 1,\d+,\d+ bytes"):
        small(lambda y: y.mean(), tmp_path, views, net=big)
    assert not list(tmp_path.iterdir())


def test_numbers_that_differ_are_refused(program, tmp_path, monkeypatch):
    import genlib.export

    real = genlib.export.run_onnx

    def wrong(source, feeds):
        return {k: v + 0.01 for k, v in real(source, feeds).items()}

    monkeypatch.setattr(genlib.export, "run_onnx", wrong)
    with pytest.raises(ExportError, match="metrics differs by"):
        export_program(program, tmp_path / "toy.json")
    assert not list(tmp_path.iterdir())


# --- wrong programs -------------------------------------------------------------------


NET = nn.Linear(2, 1)


def make(**change):
    net = NET
    arguments = {
        "modules": {"net": net},
        "phases": [Phase("f", "net", lambda z: net(z).mean(), SGD(), "lr")],
        "feeds": {"z": Normal(3, 2), "lr": Slider(0.1, 0.0, 1.0)},
        "tables": {"t": {"a": torch.zeros(2, 2)}},
    }
    return Program(**(arguments | change))


def phase(**change):
    arguments = {"name": "f", "moves": "net", "loss": lambda: 0, "optimizer": SGD()}
    return [Phase(**(arguments | change))]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"phases": phase(moves="gen")}, "moves 'gen'; the modules are net"),
        ({"phases": phase(optimizer=None)}, "phase f needs an optimizer"),
        ({"phases": phase(update=dict)}, "either a loss or an update"),
        ({"phases": phase(lr="rate")}, "no feed: 'rate'"),
        ({"phases": phase(every="often")}, "no feed: 'often'"),
        ({"phases": 2 * phase()}, "moved by the phases f and f"),
        ({"feeds": {"z": Rows("u", 2), "lr": Slider(1, 0, 2)}}, "rows of 'u'.* are t"),
        ({"modules": {"net": nn.Linear(2, 1, device="meta")}}, "is on meta"),
        ({"tables": {"t": {"a": torch.zeros(0, 2)}}}, r"table of shape \(0, 2\)"),
        ({"tables": {"t": {"a": torch.full((2,), torch.nan)}}}, "finite rows"),
        (
            {"phases": phase(loss=lambda z: {"loss": NET(z).sum(), "two": z[0]})},
            r"two of phase f has shape \(2,\)",
        ),
        ({"phases": phase(update=lambda: {"w": 1}, loss=None)}, "returns 'w'"),
        (
            {"phases": phase(loss=lambda q: q.sum())},
            "asks for no feed: 'q'; have z, lr",
        ),
        ({"views": lambda q: {}}, "asks for no feed: 'q'"),
        ({"phases": phase(loss=lambda z: z.sum())}, "does not depend on what it"),
    ],
)
def test_one_error_names_what_is_wrong(change, words):
    make()
    with pytest.raises(ValueError, match=words):
        make(**change)


def test_buffers_that_change_are_named():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match=r"buffer net\.1\.running_mean changes"):
        make(modules={"net": net}, phases=phase(loss=lambda z: net(z).sum()))


def test_settings_out_of_range_are_named():
    feeds = {"z": Normal(3, 2), "lr": Slider(0.1, 0.0, 1.0), "c": Choice(("a", "b"))}
    run = Run(make(feeds=feeds))
    with pytest.raises(ValueError, match=r"lr is 2; it must be in 0\.\.1"):
        run.step(lr=2.0)
    with pytest.raises(ValueError, match=r"lr is nan"):
        run.step(lr=math.nan)
    with pytest.raises(ValueError, match=r"c is 2; it must be one of 0 \(a\), 1 \(b\)"):
        run.step(c=2)
    with pytest.raises(ValueError, match="no slider 'beta'; there are: lr, c"):
        run.step(beta=1.0)
    with pytest.raises(ValueError, match="seed is -1"):
        run.reset(-1)
    with pytest.raises(ValueError, match="t has no option 'b'; choose from: a"):
        run.choose("t", "b")
    for rows in (torch.zeros(0, 2), torch.zeros(3), torch.full((1, 2), torch.inf)):
        with pytest.raises(ValueError, match=r"expected finite \(N, 2\)"):
            run.replace("t", rows)
    assert run.steps == 0, "nothing is lost"


def text_program(rows, **texts):
    net = nn.Embedding(5, 1)
    phase = Phase("f", "net", lambda t: net(t.long()).square().mean(), SGD())
    return Program(
        {"net": net}, [phase], {"t": Rows("t", 2)}, None, {"t": {"a": rows}}, texts
    )


@pytest.mark.parametrize("bad", [-1.0, 5.0, 0.5])
def test_rows_of_a_text_number_its_characters(bad):
    run = Run(text_program(torch.tensor([[0.0, 4, 1], [2, 3, 0]]), t="abcde"))
    run.replace("t", torch.tensor([[4.0, 4, 4]]))
    with pytest.raises(
        ValueError, match=r"rows of t hold .*; they number the char.*0..4"
    ):
        run.replace("t", torch.tensor([[4.0, bad, 4]]))
    with pytest.raises(ValueError, match=r"shape \(1, 2\); expected finite \(N, 3\)"):
        run.replace("t", torch.tensor([[4.0, 4]]))
    assert run.tables["t"].tolist() == [[4, 4, 4]], "a refused table changes nothing"
    with pytest.raises(ValueError, match="whole numbers in 0..3"):
        text_program(torch.tensor([[0.0, 4, 1]]), t="abcd")
    with pytest.raises(ValueError, match="texts names 'u', which is no table"):
        text_program(torch.tensor([[0.0, 4, 1]]), u="abcde")
