"""What the book's widgets share: one ES module, two engines, and a form for paper.

A widget asks an *engine* for what it draws. In a notebook the engine is this process:
the module sends the inputs, `run` answers. On a static page it is ONNX Runtime Web, on
the graph that `export` wrote. The module does not know which of the two answers.
"""

import base64
import html
import os
import re
from pathlib import Path

import anywidget
import ipywidgets
import numpy as np
import torch
import traitlets

from genlib.export import MAX_WEIGHT, export_onnx

STATIC = Path(__file__).parent / "static"
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./(\w+)\.mjs";\n', re.MULTILINE)


def join_module(name):
    """Return static/<name>.mjs with the local modules that it imports put before it.

    anywidget carries one text to the notebook, where relative imports lead nowhere.
    The names of joined modules share one scope, so none is imported under another.
    """
    seen = []

    def read(name):
        if name in seen:
            return ""
        seen.append(name)
        text = (STATIC / f"{name}.mjs").read_text(encoding="utf-8")
        for line in _IMPORT.finditer(text):
            if " as " in line[0]:
                raise ValueError(
                    f"{name}.mjs: a joined module keeps its names: {line[0]}"
                )
        before = "".join(read(other) for other in _IMPORT.findall(text))
        text = _IMPORT.sub("", text)
        if len(seen) > 1 and name != seen[0]:
            text = re.sub(r"^export (?!default)", "", text, flags=re.MULTILINE)
        return before + text

    return read(name)


def read_styles(name):
    """Return the shared style sheet and static/<name>.css as one text."""
    parts = ("widgets", name)
    return "\n".join((STATIC / f"{p}.css").read_text(encoding="utf-8") for p in parts)


class PageWidget(anywidget.AnyWidget):
    """A widget that lives in a notebook, on a static page and, as a poster, on paper.

    A subclass sets `module` (the name of its ES module), `_esm` and `_css`, fills
    `spec` (all that the module draws, as plain JSON) and defines `run`, `poster` and
    `describe`. `live` names its files under book/live/, or is None.
    """

    module = ""
    spec = traitlets.Dict().tag(sync=True)
    at_once = traitlets.Bool().tag(sync=True)  # how the server sends (see engine.mjs)

    def __init__(self, spec, live=None):
        super().__init__(spec=spec, at_once="GENLIB_AT_ONCE" in os.environ)
        self.live = live
        self.on_msg(self._answer)

    def run(self, feeds, **call):
        """Answer one request: name to tensor in, name to float tensor out.

        `call` says what is asked, where a widget answers several things.
        """
        raise NotImplementedError

    def poster(self):
        """Return (PNG bytes, alternative text) of a still picture of the widget."""
        raise NotImplementedError

    def describe(self):
        """Return the caption: what the reader sees and can do."""
        raise NotImplementedError

    def write_page(self, folder, graph, example, outputs, model, advice):
        """Write <live>.onnx, .json and .safetensors under `folder`, for the page.

        `graph` is the module that the page runs on inputs like `example` (name to
        tensor), `outputs` names what it returns; the weights stored are those of
        `model`. Raises ValueError, with `advice`, where the page would be too heavy.
        """
        from safetensors.torch import save

        path = folder / f"{self.live}.onnx"
        page = {"widget": self.module, "spec": self.spec}
        export_onnx(graph, example, path, outputs, page)
        weights = {
            name: value.detach().cpu().contiguous()
            for name, value in model.state_dict().items()
        }
        path.with_suffix(".safetensors").write_bytes(save(weights))
        size = path.stat().st_size + path.with_suffix(".json").stat().st_size
        if size > MAX_WEIGHT:
            for suffix in (".onnx", ".json", ".safetensors"):
                path.with_suffix(suffix).unlink()
            raise ValueError(
                f"{self.live} would cost the page {size:,} bytes; at most "
                f"{MAX_WEIGHT:,}: {advice}"
            )

    def _answer(self, _, content, buffers):
        """Answer a request of the front end; it asks again when it has drawn."""
        if "run" not in content:  # a nudge: the front end only keeps the line moving
            return
        try:
            shapes = content["inputs"].items()
            feeds = {
                name: torch.from_numpy(np.frombuffer(b, "<f4").reshape(shape).copy())
                for (name, shape), b in zip(shapes, buffers, strict=True)
            }
            call = content.get("call") or {}
            outputs = self.run(feeds, **call)
            outputs = {k: v.float().cpu() for k, v in outputs.items()}
        except Exception as error:  # shown in the widget, where the reader looks
            text = f"{type(error).__name__}: {error}"
            self.send({"run": content["run"], "error": text})
            return
        shapes = {name: list(x.shape) for name, x in outputs.items()}
        data = [x.contiguous().numpy().tobytes() for x in outputs.values()]
        self.send({"run": content["run"], "outputs": shapes}, data)

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**data, "text/plain": repr(self), "text/html": self._html()}, metadata

    if hasattr(ipywidgets.Widget, "_ipython_display_"):  # ipywidgets 7

        def _ipython_display_(self, **kwargs):
            from IPython.display import display

            data, metadata = self._repr_mimebundle_()
            display(data, metadata=metadata, raw=True)

    def _html(self):
        """Return what a page without a kernel holds: a poster and one sentence."""
        png, alt = self.poster()
        live = f' data-live="{html.escape(self.live)}"' if self.live else ""
        note = "A still picture: it comes alive in the running notebook."
        if self.live:
            note = (
                "A still picture: it comes alive in a browser with JavaScript, on a "
                "served page (<code>make serve</code>) or in the running notebook."
            )
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        return (
            f'<div class="gl-live" data-widget="{self.module}"{live}>\n'
            '<figure class="gl-poster">\n'
            f'<img class="dark-light" alt="{html.escape(alt)}" src="{source}">\n'
            f"<figcaption>{html.escape(self.describe())} "
            f'<span class="gl-note">{note}</span></figcaption>\n'
            "</figure>\n</div>"
        )


def live_folder():
    """Return the folder for exports, from GENLIB_LIVE, or None: then write nothing."""
    folder = os.environ.get("GENLIB_LIVE")
    return Path(folder) if folder else None
