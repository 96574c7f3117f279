"""Carry a model from PyTorch to the page: export it to ONNX, describe it, run it.

A static page has no Python. What it has is ONNX Runtime Web, which runs the same
graph that PyTorch ran here, so nobody writes a model twice. `export_onnx` writes that
graph and, beside it, a manifest (JSON) with names, shapes and a checksum.

Exporting needs the extra `genlib[export]`; nothing of it is imported before use.
"""

import copy
import hashlib
import importlib
import json
import logging
import os
import re
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

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
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of torchvision, which nobody asked for
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                tuple(examples.values()),
                dynamo=True,
                input_names=list(examples),
                output_names=list(outputs),
                dynamic_shapes=(tuple({0: batch} for _ in examples),),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises many kinds
        raise ExportError(_reason(error)) from error
    finally:
        logger.setLevel(level)
    return program.model_proto


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
    graphs = [proto.graph, *proto.functions]
    del proto.metadata_props[:]
    for graph in graphs:
        del graph.metadata_props[:]
        for node in graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
    graph = proto.graph
    for x in [*graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        del x.metadata_props[:]
    del graph.value_info[:]
    graph.doc_string = proto.doc_string = ""


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
        value = value.numpy()
        if got[name].shape != value.shape:
            raise ExportError(
                f"output {name} has shape {got[name].shape} in ONNX Runtime and "
                f"{value.shape} in PyTorch: the batch does not stay free"
            )
        scale = max(1.0, float(np.abs(value).max()))
        difference = float(np.abs(got[name] - value).max()) / scale
        if not difference <= TOLERANCE:
            raise ExportError(
                f"output {name} differs by {difference:.1g} between PyTorch and ONNX "
                f"Runtime (at most {TOLERANCE:g} allowed)"
            )


def _shape(value):
    dims = value.type.tensor_type.shape.dim
    return [d.dim_param or d.dim_value for d in dims]


def _write(path, data):
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(data)
    os.replace(temporary, path)
