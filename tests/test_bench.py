"""The bench runs, measures the same thing for all, and tells when it must not be read.

Real code on made-up images; the figures themselves are `make bench`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from bench import gan, gpt, harness, live, transformer, webgpu
from bench import vae as bench
from conftest import require_or_skip
from genlib.attention import future_leak
from genlib.data import Images
from genlib.gan import discriminator_loss, generator_loss
from genlib.live import Normal, Phase, Program, Run, Slider
from genlib.training import SGD, Adam
from tools.serve import serving

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (300, 1, 28, 28), generator=generator)
    pixels[:, :, :, :4] = 0  # like the margin of a digit
    labels = torch.arange(300) % 10
    return Images("noise", pixels.to(torch.uint8), labels, tuple("0123456789"))


def test_peer_crosses_a_target_it_can_reach(images):
    run = bench.run_peer(images, images, 0, target=550.0, max_epochs=3, max_steps=2)
    assert 0 < run["compute"] < run["whole"]
    assert run["loss"] == 550.0
    assert run["curve"][-1][2] <= 550.0


def test_peer_that_does_not_cross_has_no_time(images):
    run = bench.run_peer(images, images, 0, target=1.0, max_epochs=1, max_steps=1)
    assert run["whole"] is run["compute"] is None
    assert run["loss"] > 1.0


@pytest.mark.parametrize("name", bench.CONTENDERS)
def test_genlib_learns(images, name):
    settings = bench.CONTENDERS[name] | {"max_steps": 4, "lr": 1e-3}
    run = bench.run_genlib(images, images, 0, **settings)
    assert 0 < run["compute"] < run["whole"]
    assert run["loss"] < 28 * 28 * 0.6931  # grey noise costs log 2 a pixel


def test_same_network_has_the_peers_weights():
    def shapes(module):
        return sorted(tuple(p.shape) for p in module.parameters())

    def count(module):
        return sum(p.numel() for p in module.parameters())

    same, peer = bench.same_network(torch.zeros(1, 28, 28)), bench.Peer()
    assert count(same) == count(peer) == 652_824
    # The library keeps mu and logvar in one layer; all else is the same.
    split = [(20, 400), (20,)] * 2
    joined = [(40, 400), (40,)]
    assert sorted([*shapes(peer), *joined]) == sorted([*shapes(same), *split])
    assert count(bench.free_network(torch.zeros(1, 28, 28))) < count(peer)


def test_peer_reads_images_as_the_library_does(images):
    x, label = bench.ImageFiles(images)[7]
    assert torch.equal(x, images.x()[7])
    assert label == 7


def test_loss_is_the_bound_of_the_whole_set(images):
    """With q = N(0, 1) and fixed logits the bound is the cross-entropy alone."""
    logits = torch.linspace(-1, 1, 784)

    def encode(x):
        return torch.zeros(len(x), 2), torch.zeros(len(x), 2)

    def decode(z):
        return logits.expand(len(z), -1)

    x = images.x().flatten(1)
    expected = F.binary_cross_entropy(logits.sigmoid().expand_as(x), x) * 784
    assert bench.test_loss(images, encode, decode) == pytest.approx(expected.item())
    shifted = bench.test_loss(
        images, lambda x: (encode(x)[0] + 2, encode(x)[1]), decode
    )
    assert shifted == pytest.approx(expected.item() + 2 * 0.5 * 2**2)


def test_crossing_is_between_the_epochs_around_it():
    curve = [(0.0, 0.0, 500.0), (10.0, 4.0, 110.0), (20.0, 8.0, 100.0)]
    found = bench.crossing(curve, 105.0)
    assert (found["whole"], found["compute"]) == (15.0, 6.0)


def result(loss=106.0, after=100.0):
    run = {"whole": 10.0, "compute": 5.0, "loss": loss}
    peer = {"whole": 100.0, "compute": 50.0, "loss": bench.TARGET}
    return {
        "machine": harness.machine(),
        "target": bench.TARGET,
        "gemm": [100.0, after],
        "runs": {"peer": [peer, peer], "same": [run, run], "free": [run, run]},
    }


def test_report_gives_ratios_and_warns():
    text = bench.report(result())
    assert "same, end to end: 10.0 times faster (10.0 to 10.0)" in text
    assert "WARNING" not in text
    assert "WARNING" in bench.report(result(after=80.0))
    assert "free, steps only: no ratio" in bench.report(result(loss=106.2))


def test_stored_result_is_of_this_bench():
    stored = json.loads(bench.RESULTS.read_text())
    assert stored["target"] == bench.TARGET
    assert list(stored["runs"]) == ["peer", *bench.CONTENDERS]
    assert bench.report(stored)


@pytest.mark.parametrize("module", ["bench.vae", "bench.gan"])
def test_without_data_the_bench_says_what_it_needs(tmp_path, module):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"half a file")
    result = subprocess.run(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env={**os.environ, "GENLIB_DATA": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "the bench needs MNIST" in result.stderr
    assert "Traceback" not in result.stderr


# --- the GAN against its peer -------------------------------------------------------


def same_players(peer_g, peer_d):
    """genlib's G and D of the same architecture, with the peer's weights."""
    G, D = gan.normed_players(*gan.CONTENDERS["same"]["sizes"])
    for own, peer in ((G.net, peer_g), (D.net, peer_d)):
        values = zip(own.parameters(), peer.parameters(), strict=True)
        with torch.no_grad():
            for a, b in values:
                a.copy_(b)
    return G, D


def test_gans_of_the_same_architecture_compute_the_same():
    torch.manual_seed(0)
    peer_g, peer_d = gan.peer_players()
    sizes = [sum(p.numel() for p in x.parameters()) for x in (peer_g, peer_d)]
    assert sizes == [1_510_032, 533_505]  # summed by hand from the configuration
    G, D = same_players(peer_g, peer_d)
    z, x = torch.randn(64, 100), torch.rand(64, 1, 28, 28) * 2 - 1
    torch.testing.assert_close(G(z).flatten(1), peer_g(z))
    torch.testing.assert_close(D(x).sigmoid()[:, None], peer_d(x.flatten(1)))
    free = gan.normed_players(*gan.CONTENDERS["free"]["sizes"])
    count = [sum(p.numel() for p in player.parameters()) for player in free]
    assert count[0] <= sizes[0] and count[1] <= sizes[1]


def test_the_peers_round_has_the_librarys_losses():
    torch.manual_seed(0)
    peer_g, peer_d = gan.peer_players()
    G, D = same_players(peer_g, peer_d)
    x = torch.rand(64, 1, 28, 28) * 2 - 1
    torch.manual_seed(1)
    loss_d, loss_g = gan.peer_step(peer_g, peer_d)(x)
    torch.manual_seed(1)
    z = torch.randn(64, 100)
    assert loss_g == pytest.approx(generator_loss(G, D, z).item(), rel=1e-5)
    # The peer's D sees what G drew before it moved; its loss is a mean of two
    half = discriminator_loss(G, D, x, z).item() / 2
    assert loss_d == pytest.approx(half, rel=1e-5)


def test_genlibs_round_moves_both_players_once():
    """Both moves come from one batch of noise; D is left able to learn."""
    torch.manual_seed(0)
    G, D = same_players(*gan.peer_players())
    before = [p.clone() for p in (*G.parameters(), *D.parameters())]
    metrics = gan.genlib_step(G, D, 10, 1e-3)(torch.rand(64, 1, 28, 28))
    after = [*G.parameters(), *D.parameters()]
    # Adam's first step is the rate itself, here a tenth of a step into its rise
    steps = [(a - b).abs().max().item() for a, b in zip(after, before, strict=True)]
    assert max(steps) == pytest.approx(gan.rate(0, 10) * 1e-3, rel=1e-2)
    assert min(steps) > 0
    assert all(p.requires_grad for p in after)
    assert metrics.keys() == {"loss_d", "loss_g"}


def test_rate_rises_stays_and_falls():
    rates = [gan.rate(k, 100) for k in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[4:50] == [1.0] * 46
    assert rates[75] == pytest.approx(0.5) and 0 < rates[99] <= 0.02


def test_the_peers_pixels_are_the_librarys_in_minus_one_to_one(images):
    x, label = gan.NormalizedFiles(images)[7]
    torch.testing.assert_close(x, 2 * images.x()[7] - 1)
    assert label == 7


def test_distance_is_frechets_in_the_judges_features():
    from scipy.linalg import sqrtm

    class Corner(torch.nn.Module):
        """A judge whose features are the first three pixels."""

        def body(self, x):
            return x.flatten(1)[:, :3]

    pixels = torch.randint(0, 256, (3000, 1, 28, 28)).to(torch.uint8)
    test = Images("noise", pixels, torch.zeros(3000).long(), ("0",))
    distance = gan.make_distance(Corner(), test, samples=2500)

    def draw(z):
        assert z.shape[1] == 5
        return z[:, :3].cumsum(1)[:, None]

    z = torch.randn(2500, 5, generator=torch.Generator().manual_seed(1))
    a, b = draw(z)[:, 0].double(), test.x().flatten(1)[:, :3].double()
    c, d = (x.T.cov().numpy() for x in (a, b))
    expected = (a.mean(0) - b.mean(0)).square().sum() + (c + d).trace()
    expected = expected - 2 * sqrtm(c @ d).real.trace()
    assert distance(draw, 5) == pytest.approx(float(expected), rel=1e-4)


def by_brightness(draw, latent=100):
    """A stand-in distance that costs nothing: mean brightness."""
    with torch.no_grad():
        return draw(torch.zeros(8, latent)).mean().item()


def test_the_peer_gan_crosses_or_does_not(images):
    def run(target, part=2):
        return gan.run_peer(images, by_brightness, 0, target, max_epochs=2, part=part)

    missed = run(-1.0)
    assert missed["whole"] is missed["compute"] is None
    # 300 images are 5 batches, looked at after 2, 4 and all of an epoch, twice
    assert len(missed["curve"]) == 1 + 2 * 3
    assert len(run(-1.0, part=5)["curve"]) == 1 + 2
    assert sorted(missed["curve"]) == missed["curve"], "time runs on"
    spent = missed["spent"]
    assert missed["curve"][-1][:2] == [round(spent[c], 3) for c in ("whole", "compute")]
    crossed = run(2.0)
    assert crossed["loss"] == 2.0 and len(crossed["curve"]) == 2


@pytest.mark.parametrize("name", gan.CONTENDERS)
def test_genlibs_gan_trains(images, name):
    settings = gan.CONTENDERS[name] | {"max_steps": 3}
    run = gan.run_genlib(images, by_brightness, 0, **settings)
    assert 0 < run["compute"] < run["whole"]
    assert 0 < run["loss"] < 1


def stored_result(module):
    """What the module's bench last stored; skips where it has not run yet."""
    if not module.RESULTS.is_file():
        require_or_skip("bench", f"{module.RESULTS.name} is missing; run `make bench`")
    return json.loads(module.RESULTS.read_text())


def gan_result(loss=gan.TARGET - 1, after=100.0):
    run = {"whole": 10.0, "compute": 5.0, "loss": loss}
    peer = {"whole": 100.0, "compute": 75.0, "loss": gan.TARGET}
    return {
        "machine": harness.machine(),
        "target": gan.TARGET,
        "judge": {"accuracy": 0.99, "floor": 2.0, "gaussian": 400.0},
        "gemm": [100.0, after],
        "runs": {"peer": [peer, peer], "same": [run, run], "free": [run, run]},
    }


def test_gan_report_gives_ratios_and_warns():
    text = gan.report(gan_result())
    assert "same, end to end: 10.0 times faster (10.0 to 10.0)" in text
    assert "free, steps only: 15.0 times faster" in text
    assert "WARNING" not in text
    assert "WARNING" in gan.report(gan_result(after=120.0))
    missed = gan.report(gan_result(loss=gan.TARGET + 0.1))
    assert "free, end to end: no ratio" in missed


def test_gan_report_says_where_the_peer_did_not_arrive():
    result = gan_result()
    spent = {"whole": 200.0, "compute": 150.0}
    late = {"whole": None, "compute": None, "loss": 900.0, "spent": spent}
    result["runs"]["peer"][0] = late
    text = gan.report(result)
    assert "not reached in 5 epochs, 1 of 2" in text
    assert "same, end to end: at least 15.0 times faster (10.0 to 20.0)" in text
    assert "at least" not in gan.report(gan_result())
    assert gan.TARGET < gan_result()["judge"]["gaussian"]


def test_the_judges_gaussian_stands_pixels_that_never_vary(images, monkeypatch):
    monkeypatch.setattr(gan, "SAMPLES", 200)
    found = gan.references(gan.Judge().requires_grad_(False), images, images)
    assert found["gaussian"] > found["floor"] >= 0


def test_stored_gan_result_is_of_this_bench():
    stored = stored_result(gan)
    assert stored["target"] == gan.TARGET
    assert list(stored["runs"]) == ["peer", *gan.CONTENDERS]
    assert gan.report(stored)


# --- programs in the page against eager PyTorch -------------------------------------


def average_program():
    """A program with all that a phase can have: rhythm, momentum, an update."""
    torch.manual_seed(0)
    nets = {name: torch.nn.Linear(2, 2) for name in ("f", "g", "slow")}

    def f_loss(z):
        return (nets["g"](nets["f"](z)) - z).square().mean()

    def g_loss(z):
        out = nets["g"](nets["f"](z))
        return {"loss": (out - 1).square().mean(), "mean": out.mean()}

    def update():
        pairs = zip(
            nets["slow"].named_parameters(), nets["f"].parameters(), strict=True
        )
        return {f"slow.{k}": 0.9 * a + 0.1 * b for (k, a), b in pairs}

    return Program(
        nets,
        [
            Phase("f", "f", f_loss, SGD(0.9), "lr"),
            Phase("g", "g", g_loss, Adam((0.5, 0.99), 1e-3), 0.05, "g_every"),
            Phase("slow", "slow", update=update),
        ],
        {
            "z": Normal(16, 2),
            "lr": Slider(0.1, 0.01, 1.0),
            "g_every": Slider(2, 1, 9, integer=True),
        },
        lambda z: {"picture": nets["slow"](z)},
    )


@pytest.mark.parametrize("options", [{}, {"fused": True}])
def test_eager_steps_are_the_programs(options):
    program = average_program()
    run = Run(program)
    expected, _ = run.step(7)
    eager = live.Eager(average_program(), **options)
    rows = torch.tensor(eager.first(7))
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)
    for key, value in program.parameters(run.state).items():
        got = eager.parameters[key].detach()
        torch.testing.assert_close(got, value, rtol=1e-3, atol=1e-5)
    # In step 7 f moves alone: nobody else costs the peer a gradient
    asked = [key for key, p in eager.parameters.items() if p.requires_grad]
    assert asked == ["f.weight", "f.bias"]


def test_native_steps_are_the_programs(tmp_path):
    export = pytest.importorskip("genlib.export")
    pytest.importorskip("onnxruntime")
    program = average_program()
    export.export_program(program, tmp_path / "p.json")
    native = live.Native(program, tmp_path / "p.step.onnx")
    run = Run(program)
    for _ in range(2):  # the second call goes on from the first
        expected, _ = run.step(4)
        got = torch.tensor(native.first(4))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert min(native.turn(6, 4)) > 0 and native.steps == 14


def test_an_optimizer_that_torch_lacks_is_named():
    class Newton:
        pass

    with pytest.raises(ValueError, match="Newton"):
        live.torch_optimizer(Newton(), [], 0.1)


def test_contenders_that_train_otherwise_are_refused():
    rows = [[100.0, 0.1], [50.0, 0.2]]
    near = [[100.01, 0.1], [50.0, 0.2001]]
    gaps = live.compare({"eager": rows, "page": near})
    assert gaps == {"eager": 0.0, "page": pytest.approx(1e-4)}
    with pytest.raises(ValueError, match="page trains otherwise"):
        live.compare({"eager": rows, "page": [[100.0, 0.1], [50.0, 0.203]]})
    with pytest.raises(ValueError, match="page trains otherwise"):
        live.compare({"eager": rows, "page": [[float("nan"), 0.1], [50.0, 0.2]]})


def test_a_program_is_measured_in_the_page(tmp_path, browser):
    """The real thing, short: exported, served, trained by all contenders in turn."""
    if not (live.VENDOR / "ort").is_dir():
        require_or_skip("book", "its third-party files are missing; run `make book`")
    live.lay_out(tmp_path)
    with serving(tmp_path) as address:
        found = live.measure(average_program, tmp_path, browser, address, 2, 0.02)
    assert max(found["gap"].values()) < live.ALIKE
    assert found["gap"]["page"] > 0, "other arithmetic, so another last digit"
    assert len(found["rounds"]) == 2 and found["per_call"] > 1
    for turns in found["rounds"]:
        assert tuple(turns) == live.CONTENDERS
        assert all(cpu >= 0 and wall > 0 for cpu, wall in turns.values())


def live_result(after=100.0):
    turns = [
        {name: [s * (1 + k), 2 * s] for k, name in enumerate(live.CONTENDERS)}
        for s in (1.0, 2.0, 4.0)
    ]
    found = {"steps": 300, "per_call": 8, "gap": {}, "rounds": turns}
    return {
        "machine": harness.machine(),
        "gemm": [100.0, after],
        "webgpu": {"default": "none", "forced": "paint, in software"},
        "browser": "Chromium 1",
        "programs": {"vae/train": found},
    }


def test_live_report_gives_rates_and_ratios():
    text = live.report(live_result())
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert " 150 " in lines["eager"] and "1.00 (1.00 to 1.00)" in lines["eager"]
    assert " 38 " in lines["page"], "150 / 4"
    assert "0.25 (0.25 to 0.25)" in lines["page"]
    assert "0.50 (0.50 to 0.50)" in lines["page"], "to fused"
    assert "none" in lines["WebGPU"] and "paint, in software" in lines["WebGPU"]
    assert "WARNING" not in text and "WARNING" in live.report(live_result(after=80.0))


def test_stored_live_result_is_of_the_books_programs():
    stored = stored_result(live)
    assert stored["programs"].keys() <= live.programs().keys()
    for found in stored["programs"].values():
        assert tuple(found["rounds"][0]) == live.CONTENDERS
    assert live.report(stored)


# --- WebGPU against WebAssembly -------------------------------------------------------


def test_webgpu_report_and_stored_result():
    stored = stored_result(webgpu)
    assert stored["programs"].keys() <= live.programs().keys()
    text = webgpu.report(stored)
    assert stored["adapter"] in text
    stored["programs"] = {
        "slow": {"here": 2.0, "there": 5.0},
        "fast": {"here": 4.0, "there": 2.0},
        "none": {"error": "too many buffers"},
    }
    *_, slow, fast, none = webgpu.report(stored).splitlines()
    assert "2.5 times slower" in slow and "2.0 times faster" in fast
    assert none.endswith("does not run: too many buffers")


# --- GPT against the configuration of nanoGPT -----------------------------------------


@pytest.fixture(scope="module")
def verse():
    return gpt.Text("to be or not to be, that is the question. " * 300)


def test_the_gpt_peer_is_the_published_configuration():
    """0.80 million parameters, its schedule, and Hugging Face's GPT-2 less biases."""
    peer = gpt.Peer(65, **gpt.SHAPE)
    published = 4 * 12 * 128**2 + (65 + 64) * 128 + (2 * 4 + 1) * 128
    assert sum(p.numel() for p in peer.parameters()) == published == 804_096
    assert gpt.peer_rate(0) < 1.1e-5 and gpt.peer_rate(100) == pytest.approx(1e-3)
    assert gpt.peer_rate(1050) == pytest.approx(5.5e-4)
    assert gpt.peer_rate(2000) == pytest.approx(1e-4)
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=65,
        n_positions=64,
        n_embd=128,
        n_layer=4,
        n_head=4,
        activation_function="gelu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    reference = transformers.GPT2LMHeadModel(config).eval()
    theirs = {"up": "mlp.c_fc", "down": "mlp.c_proj"}
    theirs |= {"c_attn": "attn.c_attn", "c_proj": "attn.c_proj"}
    weights = reference.transformer.state_dict()
    for name in weights:
        if name.endswith("bias"):
            weights[name].zero_()
    with torch.no_grad():
        for name, p in peer.named_parameters():
            *before, layer, kind = name.split(".")
            value = weights[".".join((*before, theirs.get(layer, layer), kind))]
            p.copy_(value.T if layer in theirs else value)
        idx = torch.randint(65, (2, 64), generator=torch.Generator().manual_seed(0))
        got, expected = peer(idx), reference(idx).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_gpt_contenders_learn_and_stay_within_their_size(verse):
    recipe = {"n_layer": 1, "n_head": 2, "n_embd": 8, "triples": 40, "steps": 40}
    run = gpt.run("same", verse, 0, recipe, target=1.5)
    assert run["loss"] < 1.2 and 0 < run["reached"] <= run["seconds"]
    assert gpt.run("same", verse, 0, recipe, target=0.0)["reached"] is None
    with pytest.raises(ValueError, match="same has .* at most 810000"):
        gpt.run("same", verse, 0, recipe | {"n_embd": 512, "steps": 1})
    peer = gpt.run_peer(verse, 0, steps=20)
    assert len(peer["curve"]) == 4 and peer["loss"] < peer["curve"][0][1]


def test_tables_of_characters_do_not_look_ahead():
    torch.manual_seed(0)
    config = gpt.modern(vocab_size=7, block_size=8, n_layer=1, n_head=2, n_embd=8)
    model = gpt.GramGPT(config, triples=11)
    for table in (model.pairs, model.triples):
        torch.nn.init.normal_(table.weight)
    idx = torch.randint(7, (3, 8))
    assert future_leak(model, idx, (idx + 1) % 7) == 0
    with torch.no_grad():
        moved = model(idx) - model(torch.cat(((idx[:, :1] + 1) % 7, idx[:, 1:]), 1))
    assert moved[:, 2].abs().max() > 0, "a triple reaches two back"


def test_the_crossing_of_a_target_is_interpolated():
    curve = [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]
    assert gpt.crossing(curve, 1.5) == 2.5
    assert gpt.crossing(curve, 3.5) == 1.0, "no better than the first look"


def test_stored_gpt_result_is_of_this_bench():
    stored = stored_result(gpt)
    runs = stored["runs"]
    assert list(runs) == ["peer", *gpt.RECIPES]
    assert len({len(found) for found in runs.values()}) == 1
    for name in gpt.RECIPES:
        assert all(run["size"] <= gpt.LIMITS[name] for run in runs[name])
        pairs = zip(runs["peer"], runs[name], strict=True)
        assert all(run["loss"] <= peer["loss"] for peer, run in pairs)
    text = gpt.report(stored)
    assert "times faster" in text and "generating 255 characters" in text


# --- a small translator against the Annotated Transformer's setting -------------------

CAPTIONS = [(f"ein hund {a} rennt", f"a dog {a} runs") for a in "abcdefghij" * 8]


def test_the_translation_peer_is_the_published_setting():
    """Sizes by the paper's own counting, and the order of its parts."""
    with torch.device("meta"):
        peer = transformer.Peer(8000, 6000)
    layer = 4 * (512**2 + 512) + 2 * 512 * 2048 + 2048 + 512 + 2 * 2 * 512
    bridge = 4 * (512**2 + 512) + 2 * 512
    stacks = 6 * (2 * layer + bridge) + 2 * 2 * 512  # a norm after each stack
    tables = (8000 + 6000) * 512 + 512 * 6000 + 6000
    assert sum(p.numel() for p in peer.parameters()) == stacks + tables
    words = transformer.Words(["a dog, a cat", "a dog"])
    row = words.encode("a dog runs")
    assert len(row) == transformer.LENGTH and words.size == 4 + 2
    assert row[:6] == [1, words.number["a"], words.number["dog"], 3, 2, 0]


def test_the_translation_peer_is_timed_while_it_trains():
    sizes = {"n_layer": 1, "n_embd": 16, "n_hidden": 16, "n_head": 2}
    found = transformer.peer_speed(CAPTIONS, batches=2, **sizes)
    assert len(found["seconds"]) == 2 and min(found["seconds"]) > 0
    assert all(0 < loss < 5 for loss in found["losses"])


def test_our_translator_is_run_to_its_target(monkeypatch):
    bpe = transformer.BPE(
        transformer.learn_merges("ein hund rennt a dog runs " * 9, 20)
    )
    scores = iter((10.0, 20.0, 30.0))
    judge = lambda model: next(scores)  # noqa: E731
    found = transformer.run(CAPTIONS, bpe, judge, 0, steps=12, target=25.0, looks=3)
    (t0, _, _), (t1, _, _) = found["curve"][-2:]
    assert found["reached"] == pytest.approx((t0 + t1) / 2)
    assert found["bleu"] == 30.0 and found["sentences"] == 12 * len(CAPTIONS)
    scores = iter((1.0, 2.0, 3.0))
    found = transformer.run(CAPTIONS, bpe, judge, 0, steps=12, target=25.0, looks=3)
    assert found["reached"] is None


def test_stored_translation_result_is_of_this_bench():
    stored = stored_result(transformer)
    text = transformer.report(stored)
    assert "times the peer's sentences a second" in text and "epochs" in text
    assert all(run["bleu"] >= transformer.TARGET for run in stored["runs"])
