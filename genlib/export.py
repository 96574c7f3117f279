"""Carry a model, or its training, from PyTorch to the page: as ONNX graphs.

`export_onnx` writes the graph of a model, `export_program` those of a `Program`;
beside them stands a manifest (JSON) with names, shapes and checksums. Nothing is
written before ONNX Runtime has given PyTorch's numbers.

Exporting needs the extra `genlib[export]`; nothing of it is imported before use.
"""

import contextlib
import copy
import hashlib
import importlib
import json
import logging
import os
import re
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from genlib.live import First, Normal, Rows, Run
from genlib.live import __file__ as live_file

TOLERANCE = 1e-4  # float32 sums in another order differ by less


class ExportError(RuntimeError):
    """A model that cannot be carried to the page, with the reason."""


def export_onnx(model, inputs, path, outputs, page=None):
    """Export a module or function of tensors to one ONNX file; return its manifest.

    `inputs` maps each input's name to an example tensor (B, ...), float32 or int64, in
    the order in which `model` takes them; `outputs` names what it returns. Dimension 0
    is the batch and stays free. Modules are exported in evaluation mode, on the CPU;
    the model itself is left as it is. Before the file is written, ONNX Runtime must
    give the same numbers as PyTorch within 1e-4, also for another batch size.

    The manifest stands beside the file, with the suffix .json: `onnx` (file name),
    `sha256`, `inputs` and `outputs` (name to shape); `page` is added to it as it is.

    Raises ExportError, naming the operation that has no ONNX form or the tensor that
    differs, and ImportError when `genlib[export]` is not installed.
    """
    onnx = _need("onnx", "onnxscript", "onnxruntime")[0]
    path = Path(path)
    examples = _examples(inputs)
    module = _Traced(model)
    proto = _trace(module, examples, outputs)
    _strip(proto)
    onnx.checker.check_model(proto)
    data = proto.SerializeToString(deterministic=True)
    for feeds in (examples, {k: torch.cat([v, v[:1]]) for k, v in examples.items()}):
        _compare(module, data, feeds, outputs)

    manifest = {
        "onnx": path.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "inputs": {x.name: _shape(x) for x in proto.graph.input},
        "outputs": {x.name: _shape(x) for x in proto.graph.output},
        **(page or {}),
    }
    text = json.dumps(manifest, separators=(",", ":"), allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, data)
    _write(path.with_suffix(".json"), text.encode())
    return manifest


def run_onnx(source, feeds):
    """Run an ONNX file (or its bytes) on one thread; return name to float array.

    `feeds` maps each input's name to a tensor or array of the shape in the manifest.
    """
    onnxruntime = _need("onnxruntime")[0]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        source if isinstance(source, bytes) else str(source),
        options,
        providers=["CPUExecutionProvider"],
    )
    wanted = [x.name for x in session.get_inputs()]
    if set(feeds) != set(wanted):
        raise ValueError(f"inputs {sorted(feeds)} given, the file takes {wanted}")
    arrays = {name: np.asarray(value) for name, value in feeds.items()}
    names = [x.name for x in session.get_outputs()]
    return dict(zip(names, session.run(names, arrays), strict=True))


def _need(*names):
    """Import the export libraries, or say which extra brings them."""
    try:
        return [importlib.import_module(name) for name in names]
    except ModuleNotFoundError as error:
        raise ImportError(
            f"carrying a model to the page needs {error.name}, which is not "
            "installed; pip install 'genlib[export]' brings it"
        ) from error


def _examples(inputs):
    examples = {}
    for name, x in inputs.items():
        if x.dtype not in (torch.float32, torch.int64):
            raise ExportError(
                f"input {name} is {x.dtype}; a page takes float32 or int64"
            )
        if x.ndim == 0 or len(x) == 0:
            raise ExportError(
                f"input {name} has shape {tuple(x.shape)}; dimension 0 must be a batch"
            )
        x = x.detach().cpu()
        # torch.export takes a batch of one for a constant
        examples[name] = torch.cat([x, x]) if len(x) == 1 else x
    return examples


class _Traced(nn.Module):
    """The model behind one signature, on the CPU, ready to be traced."""

    def __init__(self, model):
        super().__init__()
        if isinstance(model, nn.Module):
            model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
        self.model = model

    def forward(self, *args):
        return self.model(*args)


def _trace(module, examples, outputs):
    batch = torch.export.Dim("batch", min=1)
    shapes = (tuple({0: batch} for _ in examples),)
    return _to_onnx(module, tuple(examples.values()), list(examples), outputs, shapes)


def _to_onnx(module, examples, inputs, outputs, dynamic_shapes=None):
    try:
        # They warn of torchvision, which nobody asked for, and of what stays as it is
        with (
            _only_errors("torch.onnx", "onnx_ir"),
            warnings.catch_warnings(),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                examples,
                dynamo=True,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=dynamic_shapes,
                external_data=False,
                verbose=False,
                optimize=dynamic_shapes is not None,
            )
            if dynamic_shapes is None:
                _simplify(program.model)
    except Exception as error:  # the exporter raises many kinds
        raise ExportError(_reason(error)) from error
    return program.model_proto


@contextlib.contextmanager
def _only_errors(*names):
    """Let the loggers of these names report nothing but errors."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _simplify(model):
    """Fold constants and merge what is computed twice.

    In place of the exporter's own optimisation, which takes an added 1e-8 for zero and
    so leaves out the epsilon that keeps Adam from dividing by nothing.
    """
    from onnx_ir.passes import common
    from onnxscript import optimizer

    common.InlinePass()(model)
    for _ in range(2):
        optimizer.fold_constants(model)
        common.RemoveUnusedNodesPass()(model)
    _quicken(model.graph)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.DeduplicateInitializersPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)


def _quicken(graph):
    """Say the same in operations that take ONNX Runtime less time, in place.

    A matrix product reads a transposed matrix where it lies (Gemm), a square is a
    product, and rows picked by one index are a Gather.
    """
    import onnx_ir as ir

    def source(value, op_type):
        """The first input of the operation that makes `value`, if of this type."""
        node = value.producer()
        return node.inputs[0] if node is not None and node.op_type == op_type else None

    def rank(value):
        return None if value.shape is None else value.shape.rank()

    def constant(value):
        tensor = ir.convenience.get_const_tensor(value)
        return None if tensor is None else tensor.numpy()

    for node in graph:
        if node.op_type in ("MatMul", "Gemm") and {*map(rank, node.inputs[:2])} == {2}:
            node.op_type = "Gemm"
            for i, name in enumerate(("transA", "transB")):
                flag = node.attributes.get_int(name, 0)
                while (matrix := source(node.inputs[i], "Transpose")) is not None:
                    node.replace_input_with(i, matrix)
                    flag = 1 - flag
                node.attributes[name] = ir.AttrInt64(name, flag)
        elif node.op_type == "Pow" and constant(node.inputs[1]) == 2:
            node.op_type = "Mul"
            node.replace_input_with(1, node.inputs[0])
        elif node.op_type == "GatherND" and rank(node.inputs[0]) == 1:
            index = source(node.inputs[1], "Unsqueeze")
            if index is not None:
                node.op_type = "Gather"
                node.replace_input_with(1, index)
                node.attributes.pop("batch_dims", None)


def _reason(error):
    """One line out of an exporter's page: the operation, and the line that calls it."""
    text, cause = "", error
    while cause is not None:
        text += f"{cause}\n"
        cause, last = cause.__cause__, cause
    op = re.search(r"op='([\w.]+)'", text)
    line = re.findall(r'File "([^"]+)", line (\d+)', text)
    own = [f"{Path(f).name}, line {n}" for f, n in line if "/torch/" not in f]
    where = f" ({own[-1]})" if own else ""
    if op:
        return f"operation {op[1]}{where} has no ONNX form; replace it by others"
    first = next((s for s in str(last).splitlines() if s.strip()), repr(last))
    return f"the model cannot be traced{where}: {first.strip()}"


def _strip(proto):
    """Remove what names the exporting machine: stack traces and the like."""
    del proto.metadata_props[:]
    proto.doc_string = ""
    for graph in [proto.graph, *proto.functions]:
        _strip_graph(graph)


def _strip_graph(graph):
    del graph.metadata_props[:], graph.value_info[:]
    graph.doc_string = ""
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
        for attribute in node.attribute:
            if attribute.HasField("g"):  # the body of an If or a Scan
                _strip_graph(attribute.g)
    if hasattr(graph, "initializer"):  # a function has none
        for x in [*graph.input, *graph.output, *graph.initializer]:
            del x.metadata_props[:]


def _compare(module, data, feeds, outputs):
    batch = len(next(iter(feeds.values())))
    try:
        with torch.no_grad():
            expected = module(*feeds.values())
        got = run_onnx(data, feeds)
    except Exception as error:  # of PyTorch or of ONNX Runtime
        raise ExportError(f"the model fails for a batch of {batch}: {error}") from error
    if isinstance(expected, torch.Tensor):
        expected = [expected]
    for name, value in zip(outputs, expected, strict=True):
        if got[name].shape[:1] != value.shape[:1]:
            raise ExportError(
                f"output {name} has shape {got[name].shape} in ONNX Runtime and "
                f"{tuple(value.shape)} in PyTorch: the batch does not stay free"
            )
        _same(f"output {name}", got[name], value.numpy())


def _shape(value):
    dims = value.type.tensor_type.shape.dim
    return [d.dim_param or d.dim_value for d in dims]


def _write(path, data):
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(data)
    os.replace(temporary, path)


# --- a program in the page ----------------------------------------------------------

MAX_WEIGHT = 1_000_000  # bytes that one live figure may cost a page
WIDEST = (
    7  # parts that one operation splits or joins: WebGPU binds 8 buffers to a shader
)


def export_program(program, path, page=None):
    """Write a program's files for the page; return the manifest.

    `path` names the manifest, such as live/gan/ring.json; beside it go ring.step.onnx,
    any number of steps in one call (an ONNX Scan over the feeds), and ring.view.onnx.
    `page` is added to the manifest. Before anything is written, ONNX Runtime must give
    PyTorch's metrics, state and views.

    Raises ExportError, naming the operation and the line that calls it, or what
    differs; ValueError if the files are heavier than 1 MB.
    """
    onnx = _need("onnx", "onnxscript", "onnxruntime")[0]
    path, data = Path(path), {}
    for name, proto in ("step", _step_model(program)), ("view", _view_model(program)):
        _strip(proto)
        _narrow(proto.graph)
        onnx.checker.check_model(proto)
        data[name] = proto.SerializeToString(deterministic=True)
    _compare_program(program, data)
    manifest = {**(page or {}), "program": _describe(program)}
    files = {path.with_name(f"{path.stem}.{name}.onnx"): data[name] for name in data}
    for name, file in zip(data, files, strict=True):
        digest = hashlib.sha256(data[name]).hexdigest()
        manifest["program"][name] = {"onnx": file.name, "sha256": digest}
    text = json.dumps(manifest, separators=(",", ":"), allow_nan=False) + "\n"
    files[path] = text.encode()
    size = sum(map(len, files.values()))
    if size > MAX_WEIGHT:
        raise ValueError(
            f"{path.stem} would cost the page {size:,} bytes; at most {MAX_WEIGHT:,}: "
            "use smaller tables or a smaller view"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        _write(file, content)
    return manifest


def _narrow(graph, outer=()):
    """Split and join in several steps what has more than WIDEST parts.

    `outer` holds the constants of the graphs around this one, name to array.
    """
    from onnx import helper, numpy_helper

    own = {x.name: numpy_helper.to_array(x) for x in graph.initializer}
    constants = dict(outer) | own
    nodes = []

    def join(parts, whole, axis):
        while len(parts) > WIDEST:
            begun = f"{whole}_first_{len(nodes)}"
            few, parts = parts[:WIDEST], [begun, *parts[WIDEST:]]
            nodes.append(helper.make_node("Concat", few, [begun], axis=axis))
        nodes.append(helper.make_node("Concat", parts, [whole], axis=axis))

    def split(whole, parts, sizes, axis):
        while parts:
            few, parts = parts[: WIDEST - 1], parts[WIDEST - 1 :]
            lengths, sizes = sizes[: len(few)], sizes[len(few) :]
            if parts:
                few.append(f"{whole}_rest_{len(nodes)}")
                lengths.append(sum(sizes))
            table = numpy_helper.from_array(np.array(lengths), f"{few[0]}_sizes")
            graph.initializer.append(table)
            nodes.append(helper.make_node("Split", [whole, table.name], few, axis=axis))
            whole = few[-1]

    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _narrow(attribute.g, constants)
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if node.op_type == "Concat" and len(node.input) > WIDEST:
            join(list(node.input), node.output[0], axis)
        elif node.op_type == "Split" and len(node.output) > WIDEST:
            sizes = constants[node.input[1]].tolist()
            split(node.input[0], list(node.output), sizes, axis)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    used = set(_inputs(graph))
    tables = [x for x in graph.initializer if x.name in used]
    del graph.initializer[:]
    graph.initializer.extend(tables)


def _inputs(graph):
    """The names that a graph's nodes read, those of its inner graphs included."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _inputs(attribute.g)
    yield from (output.name for output in graph.output)


def _describe(program):
    """What the page needs beside the graphs, as plain JSON: state, feeds, tables."""
    feeds = {}
    for name, feed in program.feeds.items():
        if isinstance(feed, Normal):
            feeds[name] = {"kind": "normal", "shape": list(feed.shape)}
        elif isinstance(feed, Rows | First):
            row = next(iter(program.tables[feed.table].values())).rows.shape[1:]
            kind = "rows" if isinstance(feed, Rows) else "first"
            shape = [feed.count, *row]
            feeds[name] = {"kind": kind, "table": feed.table, "shape": shape}
        else:
            feeds[name] = {"kind": "scalar"}
    init, values = program.starts()
    return {
        "state": program.size,
        "init": init,
        "values": values,
        "feeds": feeds,
        "step_inputs": program.step_feeds,
        "view_inputs": program.view_feeds,
        "phases": [
            {"name": p.name, "every": p.every, "metrics": program.metrics_of[p.name]}
            for p in program.phases
        ],
        "metrics": program.metrics,
        "view_outputs": list(program.outputs),
        "tables": {
            name: {option: table.manifest() for option, table in options.items()}
            for name, options in program.tables.items()
        },
    }


def _step_model(program):
    """Any number of training steps as one ONNX model: a Scan, its body one step.

    From step to step the state goes in its parts, as `Program.unpack` gives them: it is
    split before the first step and packed after the last.
    """
    from onnx import helper, numpy_helper

    run = Run(program)
    feeds, groups = run.draw(1), program.unpack(run.state)
    rows = {name: tuple(feeds[name].shape) for name in program.step_feeds}
    rows |= {f"run_{phase.name}": () for phase in program.phases}
    first = {
        f"{name}.{i}": tuple(part.shape)
        for name, parts in groups.items()
        for i, part in enumerate(parts)
    }

    nodes, now = [], {name: name for name in first}  # a part's name at this point
    for phase in program.phases:
        model = _phase_model(program, phase, groups, feeds, list(now.values()))
        own = [f"{phase.name}.{i}" for i in range(len(groups[phase.name]))]
        metrics = f"metrics_{phase.name}"
        count = len(program.metrics_of[phase.name])
        branches = _branches(model.graph, phase.name, own, count)
        gate, go = f"run_{phase.name}", f"if_{phase.name}"
        now |= {part: f"next_{part}" for part in own}
        outputs = [*(now[part] for part in own), metrics]
        nodes += [
            helper.make_node("Cast", [gate], [go], to=9),  # bool
            helper.make_node("If", [go], outputs, **branches),
        ]
    metrics = [f"metrics_{phase.name}" for phase in program.phases]
    nodes.append(helper.make_node("Concat", metrics, ["metrics"], axis=0))

    last = {now[name]: shape for name, shape in first.items()}
    row = {"metrics": (len(program.metrics),)}
    body = helper.make_graph(nodes, "step", _info(first | rows), _info(last | row))
    inputs, outputs = [*first, *rows], [*last, *row]
    count = len(rows)
    scan = helper.make_node("Scan", inputs, outputs, body=body, num_scan_inputs=count)
    sizes = numpy_helper.from_array(np.array([n for (n,) in first.values()]), "sizes")
    graph = helper.make_graph(
        [
            helper.make_node("Split", ["state", "sizes"], [*first], axis=0),
            scan,
            helper.make_node("Concat", [*last], ["next_state"], axis=0),
        ],
        "steps",
        _info({"state": (program.size,)}) + _info(rows, "K"),
        _info({"next_state": (program.size,)}) + _info(row, "K"),
        [sizes],
    )
    opset = [helper.make_opsetid("", model.opset_import[0].version)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10)


def _info(shapes, *before):
    """Names and shapes as a graph declares them, each with `before` in front."""
    from onnx import TensorProto, helper

    return [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (*before, *shape))
        for name, shape in shapes.items()
    ]


def _phase_model(program, phase, groups, feeds, names):
    """The ONNX model of one phase alone: parts and feeds -> its new parts, metrics."""

    def function(*values):
        values = iter(values)
        given = {name: [next(values) for _ in parts] for name, parts in groups.items()}
        named = dict(zip(program.step_feeds, values, strict=True))
        own, metrics = program.run_phase(given, phase, named)
        rows = [value.reshape(1) for value in metrics.values()]
        return *own, torch.cat(rows) if rows else torch.zeros(0)

    examples = [part for parts in groups.values() for part in parts]
    examples += [feeds[k] for k in program.step_feeds]
    outputs = [f"next_{i}" for i in range(len(groups[phase.name]))]
    inputs = [*names, *program.step_feeds]
    return _trace_function(function, inputs, examples, [*outputs, "metrics"])


def _branches(graph, name, parts, metrics):
    """The two bodies of a phase's If: run it, or leave its parts as they are."""
    from onnx import compose, helper, numpy_helper

    then = compose.add_prefix_graph(graph, f"{name}/", rename_inputs=False)
    del then.input[:]  # they are found in the step around the branch
    zeros = numpy_helper.from_array(np.zeros(metrics, np.float32))
    nodes = [helper.make_node("Identity", [part], [f"{part}_else"]) for part in parts]
    nodes.append(helper.make_node("Constant", [], [f"{name}_else"], value=zeros))
    shapes = {f"{part}_else": (None,) for part in parts} | {f"{name}_else": (metrics,)}
    otherwise = helper.make_graph(nodes, f"{name} left out", [], _info(shapes))
    return {"then_branch": then, "else_branch": otherwise}


def _view_model(program):
    run = Run(program)
    feeds = run.draw(0, view=True)

    def function(state, *values):
        return tuple(
            program.view(state, dict(zip(feeds, values, strict=True))).values()
        )

    examples, outputs = [run.state, *feeds.values()], list(program.outputs)
    return _trace_function(function, ["state", *feeds], examples, outputs)


def _trace_function(function, inputs, examples, outputs):
    """A function of tensors, gradients inside it included, as an ONNX model."""
    from torch._decomp import core_aten_decompositions
    from torch.fx.experimental.proxy_tensor import make_fx

    table = core_aten_decompositions()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = make_fx(function, decomposition_table=table)(*examples)
    except Exception as error:  # of PyTorch, of many kinds
        line = _own_line(traceback.extract_tb(error.__traceback__))
        first = str(error).strip().partition("\n")[0]
        where = f" ({line})" if line else ""
        raise ExportError(f"the step cannot be traced{where}: {first}") from error
    try:
        return _to_onnx(_Traced(graph), tuple(examples), inputs, outputs)
    except ExportError as error:
        op = re.match(r"operation (?:aten|prims)[.:]+(\w+)", str(error))
        line = op and _line_of(op[1], function, examples)
        if not line:
            raise
        text = re.sub(
            r" (\([^)]*\) )?has no ONNX", f" ({line}) has no ONNX", str(error)
        )
        raise ExportError(text) from error.__cause__


class _Line(TorchDispatchMode):
    """Remembers the first line outside torch that calls an operation."""

    def __init__(self, operation):
        super().__init__()
        self.operation, self.line = operation, None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.partition("::")[2]
        if self.line is None and name in (self.operation, f"special_{self.operation}"):
            self.line = _own_line(traceback.extract_stack())
        return func(*args, **(kwargs or {}))


def _own_line(frames):
    """The innermost line outside torch and this machinery, in words, or None."""
    machinery = (__file__, live_file)
    for frame in reversed(frames):
        if "/torch/" not in frame.filename and frame.filename not in machinery:
            return f"{Path(frame.filename).name}, line {frame.lineno}"
    return None


def _line_of(operation, function, examples):
    with _Line(operation) as mode:
        function(*examples)
    return mode.line


def _compare_program(program, data, steps=3):
    """Three steps and a view, here and in ONNX Runtime, from the same feeds."""
    run = Run(program)
    feeds = [run.draw(t) for t in range(1, steps + 1)]
    gates = [run.gates(t, f) for t, f in enumerate(feeds, 1)]
    given = {k: torch.stack([f[k] for f in feeds]) for k in program.step_feeds}
    for phase in program.phases:
        row = [float(gate[phase.name]) for gate in gates]
        given[f"run_{phase.name}"] = torch.tensor(row)
    got = run_onnx(data["step"], {"state": run.state, **given})
    metrics, _ = run.step(steps)
    _same("metrics", got["metrics"], metrics.numpy())
    # Adam divides by the size of a gradient, so that rounding may move a weight whose
    # gradient is all but zero: the state is compared as a whole.
    gap = np.linalg.norm(got["next_state"] - run.state.numpy())
    if not gap <= 1e-3 * max(1.0, float(run.state.norm())):
        raise ExportError(f"the state after {steps} steps differs by {gap:.1g}")
    view = {"state": run.state, **run.draw(0, view=True)}
    got = run_onnx(data["view"], view) if program.outputs else {}
    for name, value in run.view().items():
        _same(f"view {name}", got[name], value.numpy())


def _same(name, got, expected):
    if got.shape != expected.shape:
        raise ExportError(
            f"{name} has shape {got.shape} in ONNX Runtime and {expected.shape} in "
            "PyTorch"
        )
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    gap = float(np.abs(got - expected).max(initial=0)) / scale
    if not gap <= TOLERANCE:
        raise ExportError(
            f"{name} differs by {gap:.1g} between PyTorch and ONNX Runtime (at most "
            f"{TOLERANCE:g} allowed)"
        )
