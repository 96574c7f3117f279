"""The training lab's ES modules in Node: noise, programs, curves, controls, drawing."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from test_live import toy_program
from test_widgets import PAGE, run_module

from genlib.export import export_program
from genlib.live import Run, normal_noise, uniform_noise
from genlib.widgets.base import STATIC, join_module


def evaluate(node, path, script):
    """Run a script on module `m`; return what it puts into `out`."""
    code = (
        f"const m = await import({json.dumps(path.as_uri())});\nconst out = {{}};\n"
        f"{script}\nconsole.log(JSON.stringify(out));"
    )
    command = [node, "--input-type=module", "-e", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- Noise ------------------------------------------------------------------------


def test_the_hash_of_names_is_fnv_1a(node):
    # Three of the test vectors that Fowler, Noll and Vo publish
    run_module(
        node,
        STATIC / "noise.mjs",
        """
    assert.equal(m.fnv(""), 0x811c9dc5);
    assert.equal(m.fnv("a"), 0xe40c292c);
    assert.equal(m.fnv("foobar"), 0xbf9cf968);
    """,
    )


PLACES = [(0, "z", 1), (7, "init:D.0.weight", 0), (2**32 - 1, "β", 123_456)]


@pytest.mark.parametrize("place", PLACES)
def test_python_and_the_page_draw_the_same_noise(node, place):
    script = """
    const stream = m.key(...PLACE);
    const [u, n] = [new Float64Array(501), new Float64Array(501)];
    m.fillUniform(u, stream);
    m.fillNormal(n, stream);
    out.u = [...u];
    out.n = [...n];
    """.replace("PLACE", json.dumps(place))
    out = evaluate(node, STATIC / "noise.mjs", script)
    assert out["u"] == uniform_noise(*place, 501).tolist()
    np.testing.assert_allclose(out["n"], normal_noise(*place, 501), rtol=1e-12)


def test_every_row_of_a_table_is_drawn_and_whole(node):
    script = """
    const data = Int16Array.from({length: 30}, (_, i) => i);
    const drawn = new Float32Array(3000);
    m.fillRows(drawn, m.key(1, "x", 2), {data, size: 3, count: 10, scale: 0.5});
    out.rows = [...drawn];
    """
    out = evaluate(node, STATIC / "noise.mjs", script)
    rows = np.reshape(out["rows"], (-1, 3))
    expected = 0.5 * np.arange(30).reshape(10, 3)
    which = (rows[:, 0] / 1.5).astype(int)
    assert (rows == expected[which]).all()
    assert np.bincount(which, minlength=10).min() > 60  # of 100, each of 10 rows


# --- A program in the page's worker -------------------------------------------------


@pytest.fixture(scope="module")
def program():
    return toy_program(d_every=2.0)


@pytest.fixture(scope="module")
def worker(tmp_path_factory, program):
    """A folder as the site has it, with the toy program's manifest."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(PAGE, folder / "page")
    shutil.copytree(STATIC, folder / "widgets")
    export_program(program, folder / "toy.json")
    return folder


# Sessions that train nothing: they remember what they were fed
SESSIONS = """
import { readFileSync } from "node:fs";
const { program } = JSON.parse(readFileSync(new URL("../toy.json", MODULE)));
const fed = [];
const plain = (feeds) => Object.fromEntries(Object.entries(feeds).map(
  ([name, { data, dims }]) => [name, { data: [...data], shape: dims }]));
const tensor = (data, dims) => ({ data, dims });
const zeros = (size, dims) => ({ data: new Float32Array(size), dims });
const step = { run: async (feeds) => {
  fed.push(plain(feeds));
  const n = feeds.lr.dims[0];
  return { next_state: feeds.state, metrics: zeros(2 * n, [n, 2]) };
} };
const view = { run: async (feeds) => {
  fed.push(plain(feeds));
  return { heat: zeros(25, [5, 5]) };
} };
const { answer: ask } = m.makeProgram(program, step, view, tensor);
const scalars = { lr: 0.02, d_every: 2 };
"""


def in_worker(node, worker, script):
    path = worker / "page" / "program.mjs"
    start = SESSIONS.replace("MODULE", json.dumps(path.as_uri()))
    return evaluate(node, path, start + script)


def same(got, expected, atol=0):
    assert tuple(got["shape"]) == tuple(expected.shape)
    data = np.reshape(np.float32(got["data"]), expected.shape)
    np.testing.assert_allclose(data, expected, rtol=2e-7, atol=max(atol, 1e-12))


def test_a_program_is_fed_as_in_python(node, worker, program):
    script = """
    await ask({op: "reset", key: "k", seed: 5});
    const call = {op: "step", key: "k", scalars};
    out.answer = await ask({...call, n: 3, gates: null, view: true});
    await ask({...call, n: 1, gates: {D: 1, G: 0}});
    out.state = await ask({op: "state", key: "k"});
    out.fed = fed;
    """
    out = in_worker(node, worker, script)
    steps, view, single = out["fed"]
    run = Run(program, seed=5)
    same(steps["state"], run.state)
    scalars = {"lr": 0.02, "d_every": 2.0}
    draws = [run.draw(t, **scalars) for t in (1, 2, 3)]
    assert set(steps) == {"state", "x", "z", "lr", "d_every", "run_D", "run_G"}
    for name in ("x", "z", "lr", "d_every"):
        same(steps[name], torch.stack([draw[name] for draw in draws]))
    assert steps["run_D"]["data"] == [0, 1, 0] and steps["run_G"]["data"] == [1, 1, 1]
    feeds = run.draw(0, view=True, **scalars)
    assert set(view) == {"state", "z", "near"}
    for name in ("z", "near"):
        same(view[name], feeds[name])
    same(single["z"], run.draw(4, **scalars)["z"][None])
    assert single["run_D"]["data"] == [1] and single["run_G"]["data"] == [0]
    answer = out["answer"]
    assert answer["step"]["data"]["0"] == 3 and out["state"]["step"]["data"]["0"] == 4
    assert answer["gates"]["shape"] == [3, 2] and answer["heat"]["shape"] == [5, 5]
    assert list(answer["gates"]["data"].values()) == [0, 1, 1, 1, 0, 1]
    assert answer["ms"]["data"]["0"] >= 0


def test_tables_are_chosen_drawn_and_kept_over_a_reset(node, worker, program):
    script = """
    const look = () => ask({op: "view", key: "k", scalars});
    await ask({op: "reset", key: "k", seed: 5});
    await look();
    await ask({op: "choose", key: "k", table: "data", name: "b"});
    await look();
    const rows = {data: Float32Array.of(1, 2, 3, 4, 5, 6, 7, 8, 9, 10), shape: [5, 2]};
    await ask({op: "table", key: "k", table: "data"}, {rows});
    await look();
    await ask({op: "reset", key: "k", seed: 6});
    await look();
    out.fed = fed;
    """
    a, b, own, later = in_worker(node, worker, script)["fed"]
    run = Run(program, seed=5)
    scalars = {"lr": 0.02, "d_every": 2.0}

    def expect(got):
        feeds = run.draw(0, view=True, **scalars)
        for name in ("z", "near"):
            same(got[name], feeds[name])

    expect(a)
    run.choose("data", "b")
    expect(b)
    assert b["near"]["data"][:2] == b["near"]["data"][6:8], "3 rows, the first again"
    run.replace("data", torch.arange(1.0, 11).view(5, 2))
    expect(own)
    run.reset(6)
    expect(later)
    assert own["z"]["data"] != later["z"]["data"]


def test_lost_runs_and_missing_sliders(node, worker):
    script = """
    const caught = (call) => ask(call).then(() => null, (error) => error.message);
    await ask({op: "reset", key: "a", seed: 1});
    out.missing = await caught({op: "step", key: "a", n: 1, scalars: {lr: 1}});
    await ask({op: "close", key: "a"});
    out.lost = await caught({op: "state", key: "a"});
    """
    out = in_worker(node, worker, script)
    assert "RunLost" in out["lost"] and "d_every" in out["missing"]


def test_tables_are_read_as_they_were_written(node, worker):
    script = """
    const read = (dtype, array, scale) => {
      const base64 = Buffer.from(array.buffer).toString("base64");
      const table = m.readTable({dtype, shape: [2, 2], scale, base64});
      return [...table.data].map((v) => v * table.scale);
    };
    out.u1 = read("u1", Uint8Array.of(0, 1, 128, 255), 0.5);
    out.i2 = read("i2", Int16Array.of(-32767, -1, 0, 32767), 2);
    out.f4 = read("f4", Float32Array.of(0.5, -1, 2, 3), 1);
    """
    assert in_worker(node, worker, script) == {
        "u1": [0, 0.5, 64, 127.5],
        "i2": [-65534, -2, 0, 65534],
        "f4": [0.5, -1, 2, 3],
    }


# --- Curves ---------------------------------------------------------------------------


def test_a_long_curve_forgets_no_spike(node):
    script = """
    const series = m.makeSeries();
    for (let k = 1; k <= 10000; k += 1) series.add(k, k === 7777 ? 99 : Math.sin(k));
    series.add(10000, NaN);
    out.columns = series.columns(300, 10000);
    const copy = series.copy();
    series.add(10001, -5);
    out.last = [series.last(), copy.last()];
    out.copied = copy.columns(300, 10000);
    const few = m.makeSeries();
    [3, 1, 2].forEach((v, k) => few.add(k + 1, v));
    out.few = few.columns(300, 20);
    """
    out = evaluate(node, STATIC / "curves.mjs", script)
    values = np.sin(np.arange(10_001))
    values[7777] = 99
    columns = out["columns"]
    assert len(columns) <= 300 and max(c["high"] for c in columns) == 99
    # each column against numpy: 2,048 bins of 8 steps, 5 bins a column
    for i, column in enumerate(columns):
        own = values[max(1, 40 * i) : 40 * i + 40]
        assert column["low"] == pytest.approx(own.min())
        assert column["high"] == pytest.approx(own.max())
        assert column["mean"] == pytest.approx(own.mean())
    assert out["copied"] == columns
    assert out["last"] == [-5, pytest.approx(values[10_000])]
    assert [c["step"] for c in out["few"]] == [1, 2, 3]
    assert [c["mean"] for c in out["few"]] == [3, 1, 2]


def test_the_axes_of_curves(node):
    checks = """
    const columns = (values) => values.map((v) => ({low: v, high: v, mean: v}));
    const many = columns(Array.from({length: 200}, (_, i) => i / 100));
    const [low, high] = m.rangeOf([...many, ...columns([1e9])], [], false);
    assert.ok(low < 0.1 && high > 1.9 && high < 3, "one outlier sets no range");
    assert.ok(m.rangeOf(many, [{value: 5}], false)[1] > 5, "lines are in sight");
    assert.ok(m.rangeOf(columns([-1, 1, 10]), [], true)[0] > 0.5);
    assert.deepEqual(m.rangeOf([], [], false), [0, 1]);
    const [a, b] = m.rangeOf(columns([2, 2]), [], false);
    assert.ok(a < 2 && b > 2);
    assert.deepEqual(m.powers([0.7, 12]), [1, 2, 5, 10]);
    assert.deepEqual(m.powers([0.5, 5e4]), [1, 10, 100, 1000, 1e4]);
    assert.ok(m.powers([1e-9, 1e9]).length <= 7);
    assert.ok(m.powers([1.1, 1.3]).length >= 2);
    assert.deepEqual([0, 0.6931, 12.34, 170.2, -0.05, 3.4e-7, 123456].map(m.short),
      ["0.00", "0.69", "12.3", "170", "−0.0500", "3.4e−7", "1.2e5"]);
    assert.deepEqual([0.01, 1e-8, 100, 0.5, -2e6, 0].map(m.tickText),
      ["0.01", "1e−8", "100", "0.5", "−2e6", "0"]);
    """
    run_module(node, STATIC / "curves.mjs", checks)


# --- Controls, the rhythm of training, the drawing ----------------------------------


def test_sliders_give_what_they_show_and_stay_in_range(node):
    checks = """
    const rate = {min: 1e-4, max: 1e-2, log: true, integer: false, label: "rate"};
    assert.equal(m.fromNotch(0, rate), 1e-4);
    assert.equal(m.fromNotch(1, rate), 1e-2);
    assert.equal(m.fromNotch(0.5, rate), 1e-3);
    assert.ok(Math.abs(m.toNotch(2e-3, rate) - Math.log10(20) / 2) < 1e-12);
    const every = {min: 1, max: 5, log: false, integer: true, label: "every"};
    assert.deepEqual([0, 0.25, 0.5, 1].map((t) => m.fromNotch(t, every)), [1, 2, 3, 5]);
    const beta = {min: 0, max: 4, log: false, integer: false, label: "β"};
    for (const t of [0, 0.1234, 0.9999, 1]) {
      const value = m.fromNotch(t, beta);
      assert.ok(Math.abs(m.toNotch(value, beta) - t) < 0.005);
      assert.ok(value >= 0 && value <= 4);
    }
    assert.deepEqual(["0,5", " 1e-3 ", "−2", "x", "", "1e999"].map(m.readNumber),
      [0.5, 0.001, -2, null, null, null]);
    assert.deepEqual(m.typed("0.005", rate, 1e-3), {value: 0.005, note: ""});
    const above = m.typed("7", rate, 1e-3);
    assert.equal(above.value, 1e-2);
    assert.match(above.note, /rate: 0.01 is the most/);
    assert.match(m.typed("0", rate, 1e-3).note, /0.0001 is the least/);
    const wrong = m.typed("fast", rate, 1e-3);
    assert.equal(wrong.value, 1e-3);
    assert.match(wrong.note, /“fast” is not a number; it stays 0.001/);
    assert.equal(m.typed("2.6", every, 1).value, 3);
    assert.equal(m.plain(4294967295), "4294967295");
    """
    run_module(node, STATIC / "controls.mjs", checks)


def test_the_rhythm_of_requests(node):
    checks = """
    assert.equal(m.stepsFor(4, 8), 8);
    assert.equal(m.stepsFor(100, 8), 1);
    assert.equal(m.stepsFor(0.001, 8), 16, "it grows by doubling");
    assert.ok(m.stepsFor(0.001, 1e6) <= 1024);
    assert.deepEqual(m.rhythm(1), {n: 1, every: 1000});
    for (const rate of [1, 3, 10, 30, 100]) {
      const {n, every} = m.rhythm(rate);
      assert.ok(every >= 29 && Math.abs((1000 * n) / every - rate) < 1e-9);
    }
    const answer = {
      metrics: {data: Float32Array.of(1, 0, 2, 5, NaN, 6), shape: [3, 2]},
      gates: {data: Float32Array.of(1, 0, 1, 1, 0, 1), shape: [3, 2]},
      step: {data: Float32Array.of(12), shape: [1]},
    };
    const seen = [];
    const note = (...row) => seen.push(row.join());
    assert.equal(m.readMetrics(answer, [0, 1], note), null, "left out, NaN counts not");
    assert.deepEqual(seen, ["0,10,1", "0,11,2", "1,11,5", "1,12,6"]);
    answer.metrics.data[2] = Infinity;
    const {column, step, value} = m.readMetrics(answer, [0, 1], () => {});
    assert.deepEqual([column, step, value], [0, 11, Infinity]);
    """
    run_module(node, STATIC / "training_lab.mjs", checks)


def test_a_dab_stays_on_the_panel_and_near_the_brush(node):
    checks = """
    const extent = [-2, 2, 0, 1];
    for (const at of [[0, 0.5], [-2, 0], [2, 1]]) {
      const points = m.dab(at, extent, 3);
      assert.ok(points.length >= 4);
      for (const [x, y] of points) {
        assert.ok(x >= -2 && x <= 2 && y >= 0 && y <= 1);
        assert.ok(Math.hypot((x - at[0]) / 4, y - at[1]) < 0.05);
      }
    }
    assert.notDeepEqual(m.dab([0, 0], extent, 1), m.dab([0, 0], extent, 2));
    """
    run_module(node, STATIC / "sketch.mjs", checks)


def test_panels_have_the_shape_of_what_they_show(node):
    checks = """
    const nested = m.flatten([[1, 2, 3], [4, 5, 6]]);
    assert.deepEqual([nested.shape, [...nested.data]], [[2, 3], [1, 2, 3, 4, 5, 6]]);
    const points = {mark: "points", value: "x"};
    assert.equal(m.aspectOf({extent: [-2, 2, -1, 1], layers: [points]}, {}, 9), 2);
    const graph = {mark: "graph", value: "x", x: []};
    assert.equal(m.aspectOf({extent: [-2, 2, -1, 1], layers: [graph]}, {}, 9), 9);
    assert.equal(m.aspectOf({extent: [0, 90, 0, 1], layers: [points]}, {}, 9), 9);
    const images = {mark: "images", value: "x", cols: 4};
    const x = {shape: [8, 1, 9, 9]};
    assert.equal(m.aspectOf({extent: null, layers: [images]}, {x}, 9), 39 / 19);
    """
    run_module(node, STATIC / "panels.mjs", checks)


@pytest.mark.parametrize("surface", ["#fcfcfa", "#15191b"])
def test_heat_maps_diverge_from_the_pages_ground(node, surface):
    script = """
    const d = await import(DOM);
    const table = m.heatColours({colours: {surface: SURFACE}, dark: SURFACE < "#8"});
    out.table = table;
    out.least = Math.min(...table.map((c) => d.contrast(c, INK)));
    """
    script = script.replace("DOM", json.dumps((STATIC / "dom.mjs").as_uri()))
    script = script.replace("SURFACE", json.dumps(surface))
    ink = [0x1C, 0x22, 0x25] if surface == "#fcfcfa" else [0xDD, 0xE2, 0xE1]
    out = evaluate(node, STATIC / "panels.mjs", script.replace("INK", json.dumps(ink)))
    table = np.array(out["table"], float)
    ground = [int(surface[i : i + 2], 16) for i in (1, 3, 5)]
    assert table.shape == (256, 3)
    np.testing.assert_allclose(table[127:129], [ground, ground], atol=2)
    distance = np.linalg.norm(table - ground, axis=1)
    assert (np.diff(distance[:128]) <= 1.5).all() and (
        np.diff(distance[128:]) >= -1.5
    ).all()
    # Blue against orange tells the ends apart in every kind of colour vision
    low, high = table[0], table[-1]
    assert low[0] > low[2] + 30 and high[2] > high[0] + 30
    assert out["least"] > 4.5, "text stays readable on it"


# --- Texts ---------------------------------------------------------------------------


def test_a_text_is_read_by_the_vocabulary(node):
    checks = """
    const chars = "\\n !\\"'-.abce";
    const read = (text, given = chars) => {
      const { tokens, unknown } = m.charactersOf(text, given);
      return [tokens.map((k) => given[k]).join(""), [...unknown]];
    };
    assert.deepEqual(read("a b\\r\\nc\\rb"), ["a b\\nc\\nb", []]);
    assert.deepEqual(read("“a” ‘b’ – c\\u00a0… é"), ["\\"a\\" 'b' - c ... e", []]);
    assert.deepEqual(read("a字x字"), ["a", [["字", 2], ["x", 1]]]);
    assert.deepEqual(read("e\\u0301", "eé"), ["é", []], "its own accents stay");
    assert.deepEqual(read("", chars), ["", []]);
    const list = (text) => m.listUnknown(m.charactersOf(text, "a").unknown);
    assert.equal(list("x"), "“x”");
    assert.equal(list("xyz"), "“x”, “y” and “z”");
    assert.match(list("bcdefghijk"), /“i” and 2 others$/);
    """
    run_module(node, STATIC / "text.mjs", checks)


def test_windows_of_a_text_are_rows(node):
    script = """
    const tokens = Array.from({length: 50}, (_, i) => i);
    const all = m.windowsOf(tokens, 9);
    out.all = [all.shape, [...all.data]];
    const few = m.windowsOf(tokens, 9, 10);
    out.few = [few.shape, [...few.data]];
    out.least = m.windowsOf(tokens.slice(0, 9), 9).shape;
    out.none = m.windowsOf(tokens.slice(0, 8), 9);
    """
    out = evaluate(node, STATIC / "text.mjs", script)
    tokens = torch.arange(50)
    for name, stride in (("all", 1), ("few", 5)):
        shape, data = out[name]
        expected = tokens.unfold(0, 9, stride)
        assert shape == list(expected.shape) and data == expected.flatten().tolist()
    assert out["least"] == [1, 9] and out["none"] is None


def test_a_pasted_text_is_taken_or_refused_with_the_reason(node):
    checks = """
    const good = m.readText("abcabcabc", "abc", 5);
    assert.deepEqual([good.rows.shape, good.count, good.note], [[5, 5], 9, ""]);
    const short = m.readText("abc", "abc", 5);
    assert.equal(short.rows, null);
    assert.match(short.note, /^This text gives 3 characters; .* needs at least 5\\.$/);
    const odd = m.readText("abcXabcabc", "abc", 5);
    assert.match(odd.note, /^Left out, as the model has no number for them: “X”\\.$/);
    const long = m.readText("abc".repeat(120000), "abc", 5);
    assert.match(long.note, /^Only the first 300,000 characters are taken/);
    assert.ok(long.rows.shape[0] <= 20000);
    """
    run_module(node, STATIC / "paste.mjs", checks)


def test_a_panel_of_text_draws_as_python_does(node):
    script = """
    const probs = Float64Array.of(0.1, 0.2, 0.4, 0.3);
    out.picked = Array.from({length: 99}, (_, i) => m.pick(probs, 0.5, (i + 0.4) / 99));
    """
    out = evaluate(node, STATIC / "text_panel.mjs", script)
    sharp = torch.tensor([0.1, 0.2, 0.4, 0.3]).double() ** 2
    u = (torch.arange(99) + 0.4) / 99
    expected = (sharp.cumsum(0) > u[:, None] * sharp.sum()).int().argmax(1)
    assert out["picked"] == expected.tolist()


# --- The joined module --------------------------------------------------------------


def test_the_lab_stands_alone_in_a_notebook(node, tmp_path):
    text = join_module("training_lab")
    joined = tmp_path / "joined.mjs"
    joined.write_text(text)
    assert not re.search(r"^import ", text, re.MULTILINE)
    run_module(node, joined, "assert.equal(typeof m.default.render, 'function');")


def test_tokens_are_read_up_to_the_first_that_is_no_text(node):
    checks = """
    const tokens = [[], [101, 105], [110], [195, 188]];
    assert.deepEqual(m.pieces([1, 2, 0, 1], tokens), [[101, 105], [110]]);
    const both = m.pieces(Float32Array.from([3, 1]), tokens);
    assert.deepEqual(both, [[195, 188], [101, 105]]);
    const words = {mark: "sentences", given: ["a", "b"], truth: ["a", "b"]};
    assert.equal(m.aspectOf({extent: null, layers: [words]}, {}, 9), 1.6);
    assert.equal(m.aspectOf({extent: null, layers: [{mark: "alignment"}]}, {}, 9), 1);
    """
    run_module(node, STATIC / "panels.mjs", checks)
