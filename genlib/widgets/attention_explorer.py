"""Look into a small language model: a text, and where each of its characters looks.

The reader types, picks a layer and a head, points at a character, and switches mask,
scale, positions and single heads off: these are inputs of the model, so it computes
anew each time.
"""

import torch
from torch import nn

from genlib.widgets.base import PageWidget, join_module, live_folder, read_styles
from genlib.widgets.poster import small_png


class AttentionExplorer(PageWidget):
    """A text, the map of each head, and what the model expects next.

    Args:
        model: takes idx (B, block_size), switches (B, 3) for mask, scale and positions,
            and heads (B, n_layer n_head), all float; returns the weights (B, n_layer
            n_head, block_size, block_size) and the next character's probabilities
            (B, block_size, V). It has the numbers `n_layer`, `n_head`, `block_size`;
            see `genlib.attention.Explorable`.
        chars: the vocabulary in order, V characters; number V is padding.
        texts: what the reader can pick; the first is shown at first.
        start: the layer and the head that are shown at first, counted from 0.
        live: where the page finds the exported model, such as "attention/explorer";
            None keeps the widget in the notebook.
        title: the heading.

    Where the environment variable GENLIB_LIVE names a folder, `export` is called at
    once, and the page's files are written there.

    Raises ValueError, naming it, for a text or a start that does not fit, and for a
    model that returns other shapes.
    """

    module = "attention_explorer"
    _esm = join_module("attention_explorer")
    _css = read_styles("attention_explorer")

    def __init__(
        self, model, chars, texts, start=(0, 0), live=None, title="Where does it look?"
    ):
        self._model = model
        chars, texts = "".join(chars), [str(text) for text in texts]
        _check(model, chars, texts, start)
        spec = {
            "title": title,
            "chars": chars,
            "texts": texts,
            "lower": chars == chars.lower(),
            "block": model.block_size,
            "layers": model.n_layer,
            "heads": model.n_head,
            "start": start[0] * model.n_head + start[1],
        }
        super().__init__(spec, live)
        self._check_answer(self.run(self._feeds(texts[0])))
        if live is not None and live_folder() is not None:
            self.export(live_folder())

    def __repr__(self):
        where = f"{self.live}: " if self.live else ""
        layers, heads = self._model.n_layer, self._model.n_head
        return f"AttentionExplorer({where}{layers} layers of {heads} heads)"

    @torch.no_grad()
    def run(self, feeds):
        training = isinstance(self._model, nn.Module) and self._model.training
        if training:
            self._model.eval()
        try:
            weights, probs = self._model(
                feeds["idx"], feeds["switches"], feeds["heads"]
            )
        finally:
            if training:
                self._model.train()
        return {"weights": weights, "next": probs}

    def _feeds(self, text):
        """What the front end asks for a text: as set, and as trained."""
        spec = self.spec
        idx = torch.full((2, spec["block"]), float(len(spec["chars"])))
        idx[:, : len(text)] = torch.tensor(
            [float(spec["chars"].index(c)) for c in text]
        )
        heads = spec["layers"] * spec["heads"]
        return {
            "idx": idx,
            "switches": torch.ones(2, 3),
            "heads": torch.ones(2, heads),
        }

    def _check_answer(self, answer):
        spec = self.spec
        T, V = spec["block"], len(spec["chars"])
        wanted = {
            "weights": (2, spec["layers"] * spec["heads"], T, T),
            "next": (2, T, V),
        }
        for name, shape in wanted.items():
            if tuple(answer[name].shape) != shape:
                raise ValueError(
                    f"the model returns {name} of shape {tuple(answer[name].shape)}; "
                    f"expected {shape}"
                )

    def export(self, folder):
        """Write <live>.onnx, .json and .safetensors under `folder`, for the page."""
        example, outputs = self._feeds(self.spec["texts"][0]), ["weights", "next"]
        advice = "use a smaller model"
        self.write_page(folder, self._model, example, outputs, self._model, advice)

    def describe(self):
        return (
            f"{self.spec['title']} Each small square is one head's map of the text: "
            "row by row, how much each character looks at each other one."
        )

    def poster(self):
        # Not through pyplot: a first pyplot figure inside rc_context would leave a
        # notebook's inline figures switched off.
        import matplotlib as mpl
        from matplotlib.figure import Figure

        from genlib import plot

        spec, text = self.spec, self.spec["texts"][0]
        n, layers, heads = len(text), spec["layers"], spec["heads"]
        maps = self.run(self._feeds(text))["weights"][0, :, :n, :n].sqrt().numpy()
        cmap = mpl.colors.LinearSegmentedColormap.from_list("look", RAMP)
        with mpl.rc_context(plot.STYLE):
            fig = Figure(figsize=(7.2, 4.2))
            wide = 1.15 * heads  # the large map is as high as all small ones
            grid = fig.add_gridspec(
                heads, layers + 1, width_ratios=[1] * layers + [wide]
            )
            for k in range(layers * heads):
                ax = fig.add_subplot(grid[k % heads, k // heads])
                ax.imshow(maps[k], cmap=cmap, vmin=0, vmax=1)
                ax.set(xticks=[], yticks=[])
                ax.set_ylabel(
                    f"{k // heads + 1}.{k % heads + 1}", fontsize=8, rotation=0
                )
                ax.yaxis.labelpad = 8
                ax.spines[:].set_visible(True)
            ax = fig.add_subplot(grid[:, layers])
            ax.imshow(maps[spec["start"]], cmap=cmap, vmin=0, vmax=1)
            letters = [c if c != " " else "\u2423" for c in text]
            ax.set_xticks(range(n), letters, fontsize=6.5)
            ax.set_yticks(range(n), letters, fontsize=6.5)
            ax.tick_params(length=0, top=True, labeltop=True, bottom=False)
            ax.tick_params(labelbottom=False, pad=1)
            ax.grid(False)
            first = spec["start"] // heads + 1, spec["start"] % heads + 1
            ax.set_title("Layer {}, head {}".format(*first), fontsize=9)
            png = small_png(fig)
        return png, (
            f"Attention maps of {layers} layers with {heads} heads each for the text "
            f"“{text}”, and one of them large: rows are the characters that look, "
            "columns those that are looked at."
        )


RAMP = ["#ffffff", "#1f3f7a"]


def _check(model, chars, texts, start):
    if len(set(chars)) != len(chars) or not chars:
        raise ValueError(f"chars are {chars!r}; expected each character once")
    if not texts:
        raise ValueError("there is no text to pick; give at least one")
    for text in texts:
        strange = [c for c in text if c not in chars]
        if strange:
            raise ValueError(f"text {text!r} has {strange[0]!r}, which chars has not")
        if not 2 <= len(text) <= model.block_size:
            raise ValueError(
                f"text {text!r} has {len(text)} characters; expected 2 to "
                f"{model.block_size}, the model's block_size"
            )
    layer, head = start
    if not (0 <= layer < model.n_layer and 0 <= head < model.n_head):
        raise ValueError(
            f"start={tuple(start)}; there are {model.n_layer} layers of "
            f"{model.n_head} heads, counted from 0"
        )
