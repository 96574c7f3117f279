"""TrainingLab's Python side: requests, the specification, the still picture."""

import base64
import json
import re

import numpy as np
import pytest
import torch
from test_live import toy_program

from genlib.gpt import Characters, modern, page_program
from genlib.live import Run
from genlib.widgets.training_lab import (
    MAX_RUNS,
    TrainingLab,
    arrows,
    curve,
    graph,
    heatmap,
    images,
    lines,
    panel,
    points,
    text,
    trail,
    write,
)

PANELS = [
    panel(
        "The plane",
        heatmap("heat", "D(x)"),
        arrows("pull", "pull", scale=2.0),
        extent=(-2, 2, -2, 2),
        axes=("x", "y"),
        draw="data",
        description="Where the discriminator believes.",
    )
]


@pytest.fixture(scope="module")
def program():
    program = toy_program()
    view = program.views

    def more(z, near):  # an arrow is a place and a length
        out = view(z, near)
        return out | {"pull": torch.cat([z, out["pull"]], 1)}

    program.views = more
    program.outputs["pull"] = (8, 4)
    return program


@pytest.fixture
def lab(program):
    return TrainingLab(program, PANELS, [curve("losses", "D_loss", ("G_loss", "G"))])


def ask(lab, call, **inputs):
    """Send a request as the front end does; return its answer, arrays by name."""
    sent = []
    lab.send = lambda content, buffers=None: sent.append((content, buffers or []))
    shapes = {name: list(x.shape) for name, x in inputs.items()}
    data = [memoryview(x.numpy().tobytes()) for x in inputs.values()]
    lab._handle_custom_msg({"run": "1", "inputs": shapes, "call": call}, data)
    [(answer, buffers)] = sent
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return {
        name: np.frombuffer(b, np.float32).reshape(shape)
        for (name, shape), b in zip(answer["outputs"].items(), buffers, strict=True)
    }


SLIDERS = {"lr": 0.02, "d_every": 1.0}


def test_a_run_is_trained_by_requests(lab, program):
    assert ask(lab, {"op": "reset", "key": "a", "seed": 3}) == {}
    step = {"op": "step", "key": "a", "scalars": SLIDERS}
    got = ask(lab, step | {"n": 4, "view": True})
    run = Run(program, 3)
    metrics, gates = run.step(4, **SLIDERS)
    np.testing.assert_array_equal(got["metrics"], metrics)
    np.testing.assert_array_equal(got["gates"], gates)
    assert got["step"].tolist() == [4]
    for name, value in run.view(**SLIDERS).items():
        np.testing.assert_array_equal(got[name], value)
    assert "heat" not in ask(lab, step | {"n": 1, "view": False})
    only = ask(lab, step | {"n": 1, "gates": {"D": 1, "G": 0}})
    assert only["gates"].tolist() == [[1, 0]]
    state = ask(lab, {"op": "state", "key": "a"})
    assert state["state"].shape == (program.size,) and state["step"].tolist() == [6]


def test_data_are_chosen_and_drawn(lab):
    ask(lab, {"op": "reset", "key": "a", "seed": 0})
    view = {"op": "view", "key": "a", "scalars": SLIDERS}
    before = ask(lab, view)
    ask(lab, {"op": "choose", "key": "a", "table": "data", "name": "b"})
    ask(lab, {"op": "step", "key": "a", "n": 3, "scalars": SLIDERS})
    now = ask(lab, view)
    assert (before["step"], now["step"]) == (0, 3)
    assert not np.array_equal(now["heat"], before["heat"])
    rows = torch.ones(5, 2)
    ask(lab, {"op": "table", "key": "a", "table": "data"}, rows=rows)
    assert torch.equal(lab._runs["a"].tables["data"], rows)
    with pytest.raises(RuntimeError, match=r"shape \(0, 2\)"):
        ask(lab, {"op": "table", "key": "a", "table": "data"}, rows=torch.ones(0, 2))


def test_a_lost_run_says_so_and_none_are_hoarded(lab):
    with pytest.raises(RuntimeError, match="LookupError: RunLost.*Reset"):
        ask(lab, {"op": "step", "key": "gone", "n": 1, "scalars": SLIDERS})
    for key in "abcdef":
        ask(lab, {"op": "reset", "key": key, "seed": 0})
    assert list(lab._runs) == list("abcdef")[-MAX_RUNS:]
    ask(lab, {"op": "close", "key": "f"})
    assert "f" not in lab._runs
    ask(lab, {"op": "close", "key": "f"})  # twice does no harm


def test_a_slider_out_of_range_changes_nothing(lab):
    ask(lab, {"op": "reset", "key": "a", "seed": 0})
    wrong = {"op": "step", "key": "a", "n": 1, "scalars": {"lr": 7.0}}
    with pytest.raises(RuntimeError, match=r"lr is 7; it must be in 0\.001\.\.0\.1"):
        ask(lab, wrong)
    assert lab._runs["a"].steps == 0


def test_the_front_end_is_told_all_that_it_draws(lab):
    spec = lab.spec
    assert json.loads(json.dumps(spec, allow_nan=False)) == spec
    by_name = {c["name"]: c for c in spec["controls"]}
    lr = {"kind": "slider", "min": 0.001, "max": 0.1, "log": True, "value": 0.01}
    assert by_name["lr"].items() >= lr.items()
    assert by_name["d_every"]["integer"] is True
    assert spec["tables"] == [
        {"name": "data", "label": "data", "options": ["a", "b"], "draw": 0}
    ]
    assert spec["phases"] == ["D", "G"] and spec["panels"] == PANELS
    [losses] = spec["curves"]
    assert losses["series"] == [
        {"metric": "D_loss", "label": "D_loss"},
        {"metric": "G_loss", "label": "G"},
    ]


def test_a_number_of_the_view_can_be_a_curve(program):
    lab = TrainingLab(program, PANELS, [curve("gap", "gap", lines=[(0, "none")])])
    assert lab.spec["curves"][0]["series"] == [{"view": "gap", "label": "gap"}]
    assert lab.spec["curves"][0]["lines"] == [{"value": 0.0, "label": "none"}]


def test_the_stored_form_is_stable_and_described(lab):
    first, second = (lab._repr_mimebundle_()[0]["text/html"] for _ in range(2))
    assert first == second and 'data-widget="training_lab"' in first
    png = base64.b64decode(re.search(r"base64,([^\"]+)", first)[1])
    assert png.startswith(b"\x89PNG") and len(png) < 60_000
    assert "After 300 training steps. Where the discriminator believes." in first
    size = 3 * (48 + 17) + 1 + 2 * (48 + 34) + 1  # D with Adam, G with momentum
    assert repr(lab) == f"TrainingLab(D, G; {size} numbers of state)"


def test_files_are_written_where_genlib_live_says(program, tmp_path, monkeypatch):
    monkeypatch.setenv("GENLIB_LIVE", str(tmp_path))
    TrainingLab(program, PANELS)
    assert not list(tmp_path.iterdir()), "a lab without a name writes nothing"
    lab = TrainingLab(program, PANELS, live="toy/gan")
    files = sorted(p.name for p in (tmp_path / "toy").iterdir())
    assert files == ["gan.json", "gan.step.onnx", "gan.view.onnx"]
    manifest = json.loads((tmp_path / "toy" / "gan.json").read_text())
    assert manifest["spec"] == lab.spec and manifest["widget"] == "training_lab"


@pytest.mark.parametrize(
    "panels, curves, words",
    [
        ([panel("P", points("fake"))], None, "'P' shows 'fake'; the views give heat"),
        ([panel("P", points("heat"))], None, r"points take \(N, 2\), heat is \(5, 5\)"),
        ([panel("P", lines("heat"))], None, r"lines take \(N, N, 2\)"),
        ([panel("P", graph("heat", [1]))], None, r"graph take \(N\)"),
        ([panel("P", images("heat", 2))], None, r"images take \(N, N, N, N\)"),
        ([panel("P", trail("gap", ["a"]))], None, r"trail take \(N, 2\), gap is \(\)"),
        ([panel("P", draw="d")], None, "'P' draws 'd'; the tables are data"),
        (
            PANELS,
            [curve("C", "loss")],
            "'C' shows 'loss'; there are D_loss, G_loss, gap",
        ),
    ],
)
def test_one_error_names_what_is_wrong(program, panels, curves, words):
    with pytest.raises(ValueError, match=words):
        TrainingLab(program, panels, curves)


# --- texts ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writer():
    torch.manual_seed(0)
    sizes = {"vocab_size": 8, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8}
    config = modern(**sizes, fused=False)
    story = "a rose is a rose is a rose. " * 12
    return page_program(story, Characters(story), config, batch=4)


def test_a_panel_of_text_knows_its_vocabulary_and_beginning(writer):
    lab = TrainingLab(writer, [panel("told", text("next", "prompt", 0.5))])
    [layer] = lab.spec["panels"][0]["layers"]
    assert layer["chars"] == " .aeiors" and layer["temperature"] == 0.5
    assert "".join(layer["chars"][i] for i in layer["prompt"]) == "a rose i"
    [table] = lab.spec["tables"]  # the prompt is the panel's own
    assert table["name"] == "text" and table["width"] == 9
    assert table["chars"] == " .aeiors"


def test_a_poster_shows_what_the_model_writes(writer):
    lab = TrainingLab(writer, [panel("told", text("next", "prompt"))], poster_steps=90)
    run = Run(writer)
    run.step(90, lr=5e-3)
    [layer] = lab.spec["panels"][0]["layers"]
    before = run.tables["prompt"]
    told = write(run, layer, 40)
    assert len(told) == 40 == len(write(run, layer, 40)) and told == write(
        run, layer, 40
    )
    assert run.tables["prompt"] is before and "rose" in told
    png, alt = lab.poster()
    assert png.startswith(b"\x89PNG") and "told" in alt


def test_a_pasted_text_is_checked_in_the_kernel(writer):
    lab = TrainingLab(writer, [panel("told", text("next", "prompt"))])
    ask(lab, {"op": "reset", "key": "a", "seed": 0})
    table = {"op": "table", "key": "a", "table": "text"}
    ask(lab, table, rows=torch.ones(3, 9))
    with pytest.raises(RuntimeError, match="rows of text hold 1..8; they number"):
        ask(lab, table, rows=torch.tensor([[1.0] * 8 + [8]]))


def test_a_text_stands_alone_and_on_a_table_of_texts(writer, program):
    one = text("next", "prompt")
    for panels, source in (
        ([panel("p", one, images("maps", 2))], writer),
        ([panel("p", text("heat", "data"))], program),
    ):
        with pytest.raises(ValueError, match="a text stands alone in its panel"):
            TrainingLab(source, panels)
