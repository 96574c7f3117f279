"""The export: ONNX Runtime gives PyTorch's numbers, and book/live is up to date."""

import hashlib
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from genlib.attention import AttentionOnly, Explorable
from genlib.export import WIDEST, ExportError, export_onnx, export_program, run_onnx
from genlib.live import Normal, Phase, Program
from genlib.training import SGD, Adam
from genlib.vae import (
    VAE,
    ConvDecoder,
    ConvEncoder,
    ImageDecoder,
    MLPDecoder,
    MLPEncoder,
)

ROOT = Path(__file__).parents[1]
LIVE = ROOT / "book" / "live"


# How the code of today builds each model whose weights are committed in book/live.
def digits_decoder():
    shape = (1, 8, 8)
    encoder = MLPEncoder(shape, (256, 128), 4, nn.SiLU)
    return ImageDecoder(VAE(encoder, MLPDecoder(shape, (128, 256), 2, nn.SiLU)))


def glyphs_decoder():
    return ImageDecoder(
        VAE(ConvEncoder((1, 32, 32), 16, 32), ConvDecoder((1, 32, 32), 16, 16))
    )


DECODERS = {"vae/digits": digits_decoder, "vae/glyphs": glyphs_decoder}


def attention_explorer():
    return Explorable(AttentionOnly(36))


EXPLORERS = {"attention/explorer": attention_explorer}

# Models whose code tests/test_text_sampler.py compares with what is committed.
WRITERS = ("gpt/writer",)

# The functions of the library that build each program in book/live.
PROGRAMS = {
    "attention/recall": "attention.recall_program",
    "data/mixture": "data.mixture_program",
    "gan/ring": "gan.toy_program",
    "gpt/train": "gpt.page_program",
    "stability/dirac": "stability.dirac_program",
    "stability/grid": "stability.grid_program",
    "training/digits": "training.digits_program",
    "training/surface": "training.surface_program",
    "transformer/numbers": "transformer.page_program",
    "vae/train": "vae.digits_program",
}


def load_decoder(name):
    """Build the model `name` from present code, with its committed weights."""
    model = (DECODERS | EXPLORERS)[name]().eval()
    model.load_state_dict(load_file(LIVE / f"{name}.safetensors"))
    return model.requires_grad_(False)


def random_decoder(kind):
    torch.manual_seed(1)
    if kind == "mlp":
        decoder = MLPDecoder((1, 8, 8), (32,), 2)
    else:
        decoder = ConvDecoder((1, 32, 32), 8, 2)
    return nn.Sequential(decoder, nn.Sigmoid())


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_onnx_runtime_gives_pytorchs_numbers(tmp_path, kind):
    model = random_decoder(kind)
    path = tmp_path / "deep" / "model.onnx"
    manifest = export_onnx(model, {"z": torch.randn(4, 2)}, path, ["x"])
    for batch in (1, 3, 64):
        z = torch.randn(batch, 2)
        got = run_onnx(path, {"z": z})["x"]
        np.testing.assert_allclose(got, model(z).detach().numpy(), atol=1e-6)
    assert manifest == json.loads(path.with_suffix(".json").read_text())
    assert manifest["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert manifest["inputs"] == {"z": ["batch", 2]}
    side = 8 if kind == "mlp" else 32
    assert manifest["outputs"] == {"x": ["batch", 1, side, side]}
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.json", "model.onnx"]


def test_a_function_of_several_inputs_exports(tmp_path):
    inputs = {"a": torch.randn(2, 3), "k": torch.tensor([0, 2])}
    path = tmp_path / "f.onnx"
    export_onnx(lambda a, k: (a.exp(), a.sum(1) + k), inputs, path, ["e", "s"])
    a, k = torch.randn(5, 3), torch.arange(5)
    got = run_onnx(path, {"a": a, "k": k})
    np.testing.assert_allclose(got["e"], a.exp(), rtol=1e-5)
    np.testing.assert_allclose(got["s"], a.sum(1) + k, rtol=1e-5)
    with pytest.raises(ValueError, match="'k'"):
        run_onnx(path, {"a": a})


def test_the_export_is_repeatable_and_names_no_machine(tmp_path):
    model = random_decoder("mlp")
    for name in ("a", "b"):
        export_onnx(model, {"z": torch.randn(2, 2)}, tmp_path / f"{name}.onnx", ["x"])
    data = (tmp_path / "a.onnx").read_bytes()
    assert data == (tmp_path / "b.onnx").read_bytes()
    for trace in (b".py", str(ROOT).encode(), b"site-packages"):
        assert trace not in data


def test_the_export_leaves_the_model_as_it_is(tmp_path):
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5)).train()
    export_onnx(model, {"z": torch.randn(2, 2)}, tmp_path / "m.onnx", ["x"])
    assert model.training and all(p.requires_grad for p in model.parameters())
    z = torch.randn(3, 2)
    got = run_onnx(tmp_path / "m.onnx", {"z": z})["x"]
    np.testing.assert_allclose(got, model.eval()(z).detach(), atol=1e-6)


@pytest.mark.parametrize(
    "function, inputs, words",
    [
        (
            lambda z: torch.linalg.eigh(z[:, None] * z[:, :, None])[0],
            None,
            "^operation aten._linalg_eigh",
        ),
        (lambda z: torch.special.bessel_j0(z), None, "^operation prims.bessel_j0"),
        (lambda z: z if z.sum() > 0 else -z, None, "test_export.py, line"),
        (lambda z: z + torch.zeros(2, 2), None, "batch of 3"),
        (lambda z: z, {"z": torch.zeros(2, 2, dtype=torch.float64)}, "float64"),
        (lambda z: z, {"z": torch.tensor(1.0)}, "batch"),
    ],
)
def test_what_cannot_be_exported_is_named(tmp_path, function, inputs, words):
    path = tmp_path / "m.onnx"
    with pytest.raises(ExportError, match=words):
        export_onnx(function, inputs or {"z": torch.randn(2, 2)}, path, ["x"])
    assert not list(tmp_path.iterdir()), "nothing is half written"


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_the_missing_extra_is_named(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"{missing}.*genlib\[export\]"):
        export_onnx(nn.Linear(2, 2), {"z": torch.zeros(1, 2)}, tmp_path / "m", ["x"])


def test_the_extra_is_imported_when_it_is_used():
    code = "import sys, genlib.export; print([m for m in sys.modules if 'onnx' in m])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert [m for m in eval(out.stdout) if m.startswith("onnx")] == []


# --- What is committed is what the code of today exports ---------------------------


def check_live(name, model, folder, live=LIVE):
    """Export `model` anew and compare it with the files of `name` in book/live."""
    import onnx

    committed = live / f"{name}.onnx"
    manifest = json.loads(committed.with_suffix(".json").read_text())
    digest = hashlib.sha256(committed.read_bytes()).hexdigest()
    assert manifest["sha256"] == digest, f"{name}.json belongs to another {name}.onnx"
    assert manifest["onnx"] == committed.name

    feeds = example_feeds(manifest)
    path = folder / "again.onnx"
    again = export_onnx(model, feeds, path, list(manifest["outputs"]))
    assert {k: again[k] for k in ("inputs", "outputs")} == {
        k: manifest[k] for k in ("inputs", "outputs")
    }
    old, new = onnx.load(committed), onnx.load(path)
    if old.producer_version == new.producer_version:  # other exporters name otherwise
        assert [n.SerializeToString() for n in old.graph.node] == [
            n.SerializeToString() for n in new.graph.node
        ], f"{name}: another graph; run `make notebooks`"
        weights = [
            {x.name: onnx.numpy_helper.to_array(x) for x in m.graph.initializer}
            for m in (old, new)
        ]
        assert weights[0].keys() == weights[1].keys()
        for key, value in weights[0].items():
            np.testing.assert_array_equal(value, weights[1][key], err_msg=key)
    for key, value in run_onnx(committed, feeds).items():
        np.testing.assert_allclose(
            value, run_onnx(path, feeds)[key], atol=1e-6, err_msg=f"{name}: {key}"
        )


def example_feeds(manifest):
    """Something that the page would ask: points of the map, or the texts to pick."""
    spec = manifest["spec"]
    if manifest["widget"] == "attention_explorer":
        T, count, n = spec["block"], spec["layers"] * spec["heads"], len(spec["texts"])
        assert manifest["inputs"] == {
            "idx": ["batch", T],
            "switches": ["batch", 3],
            "heads": ["batch", count],
        }
        idx = torch.full((n, T), float(len(spec["chars"])))
        for row, text in zip(idx, spec["texts"], strict=True):
            row[: len(text)] = torch.tensor([spec["chars"].index(c) for c in text])
        generator = torch.Generator().manual_seed(0)
        on = torch.randint(2, (n, 3 + count), generator=generator).float()
        return {"idx": idx, "switches": on[:, :3], "heads": on[:, 3:]}
    assert len(spec["ranges"]) == manifest["inputs"]["z"][1]
    assert len(spec["points"]) == len(spec["labels"])
    return {"z": torch.tensor(spec["points"][:50])}


def test_each_live_model_has_its_files_and_its_code():
    files = {p.relative_to(LIVE).as_posix() for p in LIVE.rglob("*") if p.is_file()}
    expected = {
        f"{name}{suffix}"
        for names, suffixes in (
            (DECODERS | EXPLORERS, (".onnx", ".json", ".safetensors")),
            (WRITERS, (".onnx", ".json", ".safetensors")),
            (PROGRAMS, (".step.onnx", ".view.onnx", ".json")),
        )
        for name in names
        for suffix in suffixes
    }
    assert files == expected


@pytest.mark.parametrize("name", DECODERS | EXPLORERS)
def test_what_is_committed_is_what_the_code_exports(name, tmp_path):
    check_live(name, load_decoder(name), tmp_path)


def build_program(name):
    """Build the program `name` from present code."""
    module, function = PROGRAMS[name].split(".")
    return getattr(importlib.import_module(f"genlib.{module}"), function)()


def check_program(name, program, folder, live=LIVE):
    """Export `program` anew and compare it with the files of `name` in book/live."""
    import onnx

    path = folder / f"{Path(name).name}.json"
    again = export_program(program, path)["program"]
    committed = live / f"{name}.json"
    manifest = json.loads(committed.read_text())["program"]
    for part in ("step", "view"):
        file = committed.with_name(manifest[part]["onnx"])
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert manifest[part].pop("sha256") == digest, f"{name}: another {file.name}"
        again[part].pop("sha256")
        old, new = onnx.load(file), onnx.load(path.with_name(again[part]["onnx"]))
        if old.producer_version == new.producer_version:
            assert old == new, f"{name}: another {part}; run `make notebooks`"
    assert manifest == again, f"{name}: another manifest; run `make notebooks`"


@pytest.mark.parametrize("name", PROGRAMS)
def test_committed_programs_are_what_the_code_exports(name, tmp_path):
    check_program(name, build_program(name), tmp_path)


def nodes(graph):
    """A graph's operations, in order; those of its branches after their own."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from nodes(attribute.g)


def test_a_step_is_said_in_quick_operations(tmp_path):
    """The slow ones are left out; that the numbers stay, the export itself checks."""
    import onnx

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 5))
    table = torch.tensor([0.5, -1.0, 2.0])

    def loss(z, k):
        picked = table[(k > 0).long() + (k > 1).long()]
        three = (z[:, None] @ z[:, :, None]).flatten()  # products of stacks stay
        return (net(z).square().mean(1) * picked + three**3).mean()

    program = Program(
        {"net": net},
        [Phase("f", "net", loss, Adam())],
        {"z": Normal(6, 3), "k": Normal(6)},
    )
    export_program(program, tmp_path / "p.json")
    graph = onnx.load(tmp_path / "p.step.onnx").graph
    found = [node.op_type for node in nodes(graph)]
    turned = {n.output[0] for n in nodes(graph) if n.op_type == "Transpose"}
    products = [n for n in nodes(graph) if n.op_type == "Gemm"]
    assert len(products) == 2 + 3 and found.count("MatMul") == 1
    assert not turned & {name for node in products for name in node.input}
    assert "Gather" in found and "GatherND" not in found
    # The state is taken apart and put together once a call, not once a step
    assert [node.op_type for node in graph.node] == ["Split", "Scan", "Concat"]
    assert not any("state" in node.input for node in list(nodes(graph))[1:])
    # Left: a cube and its slope, what squares have for a slope, Adam's two betas
    assert found.count("Pow") <= 5


def test_no_operation_splits_or_joins_more_than_a_graphics_card_takes(tmp_path):
    import onnx

    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Linear(2, 2) for _ in range(12))
    )  # 24 tensors, with Adam's

    def loss(z):
        parts = net(z).flatten().split([1, 3, 2, 1, 2, 1, 2, 3, 1])
        return torch.cat([(k + 1) * p for k, p in enumerate(parts)]).square().mean()

    program = Program(
        {"net": net}, [Phase("f", "net", loss, Adam())], {"z": Normal(8, 2)}
    )
    export_program(program, tmp_path / "p.json")  # compares the numbers
    graph = onnx.load(tmp_path / "p.step.onnx").graph
    found = [n for n in nodes(graph) if n.op_type in ("Split", "Concat")]
    assert len(found) > 4 and {"Split", "Concat"} == {n.op_type for n in found}
    # WebGPU gives a shader 8 storage buffers in every browser: one, and 7
    assert max(max(len(n.input), len(n.output)) for n in found) == WIDEST == 7


def test_drift_of_a_program_is_caught(tmp_path):
    def build(width):
        torch.manual_seed(0)
        net = nn.Linear(2, width)
        phase = Phase("f", "net", lambda z, **_: net(z).square().mean(), SGD())
        return Program({"net": net}, [phase], {"z": Normal(3, 2)})

    live = tmp_path / "live"
    export_program(build(2), live / "p.json")
    check_program("p", build(2), tmp_path, live)
    with pytest.raises(AssertionError, match="another step"):
        check_program("p", build(3), tmp_path, live)
    (live / "p.view.onnx").write_bytes((live / "p.step.onnx").read_bytes())
    with pytest.raises(AssertionError, match="another p.view.onnx"):
        check_program("p", build(2), tmp_path, live)


def test_drift_is_caught(tmp_path):
    live = tmp_path / "live"
    model = random_decoder("mlp")
    spec = {"ranges": [[-1, 1]] * 2, "points": [[0.1, 0.2]] * 50, "labels": [0] * 50}
    files, page = live / "m.onnx", {"spec": spec, "widget": "latent_explorer"}
    export_onnx(model, {"z": torch.randn(2, 2)}, files, ["x"], page)
    check_live("m", model, tmp_path, live)

    other = nn.Sequential(model[0], nn.Tanh())  # the code has changed
    with pytest.raises(AssertionError, match="another graph"):
        check_live("m", other, tmp_path, live)
    with torch.no_grad():  # the weights have changed
        next(model.parameters())[0, 0] += 1e-3
    with pytest.raises(AssertionError):
        check_live("m", model, tmp_path, live)
    files.write_bytes(files.read_bytes() + b"\0")  # the file has changed
    with pytest.raises(AssertionError, match="belongs to another"):
        check_live("m", model, tmp_path, live)
