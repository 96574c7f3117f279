"""Write with a small GPT, token by token, and see what every setting does to a draw.

The bars are one distribution twice: what the model says, and what temperature, top-k
and top-p leave of it. The keys and values of the text so far are kept by the front end.
"""

import torch
from torch import nn

from genlib.gpt import (
    NextToken,
    check_sampling,
    check_vocabulary,
    next_token_probs,
)
from genlib.live import _MASK, uniform_noise
from genlib.widgets.base import PageWidget, join_module, live_folder, read_styles
from genlib.widgets.poster import small_png

BARS = 12  # tokens that have a bar of their own; the others share one


class TextSampler(PageWidget):
    """A prompt, the next token's probabilities as bars, and what is written on.

    Args:
        gpt: a `GPT` with `fused=False`, as a page needs it.
        chars: its vocabulary (`Characters`).
        prompt: the text to begin with, of characters in the vocabulary.
        live: where the page finds the exported model, such as "gpt/writer"; None keeps
            the widget in the notebook.
        title: the heading.
        seed: of the draws; token number n depends on seed and n alone.
        temperature, top_k, top_p: as the reader finds them; `top_k` None is all.

    Of a text longer than the context the older half is forgotten, again and again: the
    model reads `text[forgotten(len(text), block_size):]`.

    Where the environment variable GENLIB_LIVE names a folder, `export` is called at
    once, and the page's files are written there.

    Raises ValueError for a prompt or settings that cannot be, for a vocabulary of
    another size, and for a fused model.
    """

    module = "text_sampler"
    _esm = join_module("text_sampler")
    _css = read_styles("text_sampler")

    def __init__(
        self,
        gpt,
        chars,
        prompt,
        live=None,
        title="Write, one token at a time",
        seed=0,
        temperature=1.0,
        top_k=None,
        top_p=1.0,
    ):
        check_sampling(temperature, top_k, top_p)
        check_vocabulary(gpt, chars)
        if gpt.config.fused:
            raise ValueError("a page needs a GPT built with fused=False")
        if not prompt:
            raise ValueError("the prompt is empty: begin with a line break")
        if not 0 <= seed <= _MASK:
            raise ValueError(f"seed is {seed}; it must be in 0..{_MASK}")
        chars.encode(prompt)  # names a character that is not there
        self.gpt, self.chars, self._next = gpt, chars, _Next(gpt)
        config = gpt.config
        head = config.n_embd // config.n_head
        spec = {
            "title": title,
            "chars": chars.chars,
            "block": config.block_size,
            "cache": [config.n_layer, 2, config.n_head, config.block_size, head],
            "prompt": prompt,
            "seed": int(seed),
            "bars": min(BARS, len(chars)),
            "temperature": float(temperature),
            "top_k": min(len(chars), top_k or len(chars)),
            "top_p": float(1.0 if top_p is None else top_p),
        }
        super().__init__(spec, live)
        if live is not None and live_folder() is not None:
            self.export(live_folder())

    def __repr__(self):
        where = f"{self.live}: " if self.live else ""
        count = sum(p.numel() for p in self.gpt.parameters())
        return f"TextSampler({where}{count:,} parameters, {len(self.chars)} characters)"

    @torch.no_grad()
    def run(self, feeds):
        """One token: {"token" (B,), "at" (B,), "cache"} -> {"logits", "new_cache"}."""
        device = self.gpt.wte.weight.device
        training = self.gpt.training
        self.gpt.eval()
        try:
            logits, cache = self._next(*(feeds[k].to(device) for k in INPUTS))
        finally:
            self.gpt.train(training)
        return {"logits": logits, "new_cache": cache}

    @torch.no_grad()
    def logits(self, text):
        """What the widget shows for a text: logits of the next token (V,)."""
        idx = self.chars.encode(text)
        idx = idx[forgotten(len(idx), self.spec["block"]) :]
        training = self.gpt.training
        self.gpt.eval()
        try:
            idx = torch.tensor([idx], device=self.gpt.wte.weight.device)
            return self.gpt(idx, last=True)[0, 0].cpu()
        finally:
            self.gpt.train(training)

    def write(self, count, prompt=None, **settings):
        """The text after `count` tokens, as the widget writes it: for checks."""
        spec, text = self.spec, self.spec["prompt"] if prompt is None else prompt
        settings = {k: settings.get(k, spec[k]) for k in SETTINGS}
        for n in range(1, count + 1):
            probs = next_token_probs(self.logits(text)[None], **settings)[0]
            [u] = uniform_noise(spec["seed"], "token", n, 1)
            above = probs.double().cumsum(0) > u * probs.double().sum()
            text += self.chars.chars[int(above.int().argmax())]
        return text

    def export(self, folder):
        """Write <live>.onnx, .json and .safetensors under `folder`, for the page."""
        cache = torch.zeros(1, *self.spec["cache"])
        example = {"token": torch.zeros(1), "at": torch.ones(1), "cache": cache}
        outputs, advice = ["logits", "new_cache"], "use a smaller model"
        self.write_page(folder, self._next, example, outputs, self.gpt, advice)

    def describe(self):
        return (
            f"{self.spec['title']}. Above, a prompt and the model's continuation; "
            "below, the probabilities of the next character."
        )

    def poster(self):
        # Not through pyplot: a first pyplot figure inside rc_context would leave a
        # notebook's inline figures switched off.
        import textwrap

        import matplotlib as mpl
        from matplotlib.figure import Figure

        from genlib import plot

        prompt = self.spec["prompt"]
        text = self.write(180 - len(prompt), top_p=0.9, temperature=0.7)
        probs = self.logits(prompt).softmax(0)
        order = probs.argsort(descending=True)[: self.spec["bars"]].tolist()
        names = [shown(self.chars.chars[i]) for i in order]
        with mpl.rc_context(plot.STYLE):
            fig = Figure(figsize=(7.2, 3.6))
            top, bottom = fig.subplots(2, 1, height_ratios=(0.6, 1.6))
            top.axis("off")
            lines = textwrap.fill(" ".join(text.split()), 72)
            top.text(0, 1, lines, va="top", family="monospace", size=9.5)
            bottom.bar(names, probs[order].tolist(), color=plot.PALETTE[0])
            bottom.set(title=f"Next after “{prompt}”", ylabel="probability")
            png = small_png(fig)
        return png, (
            f"A text that begins with {prompt!r} and that the model has written on; "
            f"below it, bars of the {len(order)} likeliest next characters."
        )


INPUTS = ("token", "at", "cache")
SETTINGS = ("temperature", "top_k", "top_p")


class _Next(nn.Module):
    """`NextToken` as a page asks it: all inputs are floats, the maps are left out."""

    def __init__(self, gpt):
        super().__init__()
        self.next = NextToken(gpt)

    def forward(self, token, at, cache):
        logits, cache, _ = self.next(token.long(), at.long(), cache)
        return logits, cache


def forgotten(length, block_size):
    """How many tokens at the start of a text are no longer read: whole halves."""
    half = max(1, block_size // 2)
    return max(0, -(-(length - block_size) // half)) * half


def shown(character):
    """A character as a bar names it."""
    return {" ": "␣", "\n": "↵"}.get(character, character)
