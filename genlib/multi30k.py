"""A small Transformer for German to English, trained on Multi30k: the one that ships.

    python -m genlib.multi30k train FOLDER     train, or go on with a run stopped there
    python -m genlib.multi30k score            BLEU of the shipped model, 2016 test set
    python -m genlib.multi30k translate TEXT   one sentence

Multi30k: Elliott et al. 2016, arXiv:1605.00459: 29,000 captions of photographs with a
translation each. BLEU: Papineni et al. 2002; sacrebleu: Post 2018, arXiv:1804.08771.
"""

import argparse
import gzip
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from genlib.data import text_file
from genlib.training import Checkpoint, fit, get_device
from genlib.transformer import (
    BPE,
    END,
    START,
    Transformer,
    TransformerConfig,
    greedy,
    label_smoothing_loss,
    learn_merges,
    pad_rows,
    translate,
)

WEIGHTS = Path(__file__).parent / "multi30k.safetensors"
STEPS = 6000  # of the run that made them: 20 epochs


def read(split="train"):
    """Pairs (German, English) of Multi30k; DataError where the files cannot be had."""
    texts = [
        gzip.decompress(text_file("multi30k", f"{split}.{language}.gz").read_bytes())
        for language in ("de", "en")
    ]
    german, english = (text.decode().splitlines() for text in texts)
    return list(zip(german, english, strict=True))


# --- training -------------------------------------------------------------------------


def config(vocab_size):
    """Under 1.5 million parameters, so that they take less than 3 MB as float16."""
    return TransformerConfig(
        vocab_size, n_layer=3, n_head=4, n_embd=128, n_hidden=256, dropout=0.15,
        pre_norm=True, max_length=256,
    )  # fmt: skip


def sentence_batches(pairs, bpe, tokens=2000, seed=0):
    """Endless batches (src, tgt) of sentences of like length, of about `tokens` tokens.

    Padding is computed for nothing, so neighbours in length go together. Each epoch
    draws other batches, in another order; batch k depends on (seed, k) alone.
    """
    src = [bpe.encode(german) for german, _ in pairs]
    tgt = [bpe.encode(english) for _, english in pairs]
    length = torch.tensor([max(map(len, rows)) for rows in zip(src, tgt, strict=True)])
    epoch = 0
    while True:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        blur = 2 * torch.rand(len(pairs), generator=generator)
        groups, group = [], []
        for i in (length + blur).argsort().tolist():
            if (len(group) + 1) * (length[i] + 2) > tokens and group:
                groups.append(group)
                group = []
            group.append(i)
        groups.append(group)
        for g in torch.randperm(len(groups), generator=generator).tolist():
            yield (
                pad_rows([[*src[i], END] for i in groups[g]]),
                pad_rows([[START, *tgt[i], END] for i in groups[g]]),
            )
        epoch += 1


def rate(step, steps, warmup=400, fall=0.5):
    """Factor on the learning rate: up in `warmup` steps, flat, then down to 0.

    `fall` is the share of all steps that goes down. Until then nothing depends on how
    many there will be, so a run can be made longer while it runs.
    """
    return min(1.0, (step + 1) / warmup, (steps - step) / (fall * steps))


def train_translator(
    folder, steps=STEPS, pairs=None, bpe=None, bfloat16=False, device="cpu"
):
    """Train a translator in `folder`, or go on there; return it.

    `pairs` and `bpe` default to all of Multi30k and 3,000 merges of it. `bfloat16`
    computes the layers in half precision (Adam's step stays exact), which is faster on
    processors that have it.
    """
    folder, pairs = Path(folder), pairs or read()
    folder.mkdir(parents=True, exist_ok=True)
    bpe = bpe or BPE(cached_merges(folder / "merges.json", pairs, 3000))
    torch.manual_seed(0)
    model = Transformer(config(len(bpe))).to(device)
    adam = torch.optim.Adam(model.parameters(), 3e-3, betas=(0.9, 0.98), eps=1e-9)
    factor = torch.optim.lr_scheduler.LambdaLR(adam, lambda k: rate(k, steps))

    def step(batch):
        src, tgt = (tokens.to(device) for tokens in batch)
        with torch.autocast(src.device.type, torch.bfloat16, enabled=bfloat16):
            logits = model(src, tgt[:, :-1])
        loss = label_smoothing_loss(logits.float(), tgt[:, 1:])
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        factor.step()
        return {"loss": loss}

    run = Checkpoint(folder / "run.safetensors", 250, m=model, a=adam, f=factor)
    fit(step, sentence_batches(pairs, bpe), steps, checkpoint=run)
    return finish(model.cpu(), bpe, pairs)


def cached_merges(path, pairs, count):
    """Byte pairs of both languages together, learned once and kept in a file."""
    if not path.exists():
        text = "\n".join(f"{german}\n{english}" for german, english in pairs)
        path.write_text(json.dumps(learn_merges(text, count), ensure_ascii=False))
    return [tuple(pair) for pair in json.loads(path.read_text())]


# --- a translator in one file ---------------------------------------------------------


class Translator:
    """A trained model with its byte pairs, and what it knows of its source language.

    `counts` (V,) is how often each token stood in the German texts of the training.
    """

    def __init__(self, model, bpe, counts):
        self.model, self.bpe, self.counts = model.eval(), bpe, counts

    def surprise(self, text):
        """How unlike the German captions a text is, in nats per character.

        By the frequencies of single tokens, the unseen ones counted as half. Of the
        captions held out for validation none has more than 3.
        """
        p = (self.counts + 0.5) / (self.counts + 0.5).sum()
        return -p.log()[self.bpe.encode(text)].sum().item() / max(1, len(text))

    def check(self, text):
        """ValueError for a text that the model has not learned to read."""
        if not text.strip():
            raise ValueError("the text is empty: there is nothing to translate")
        pieces, at = self.bpe.pieces(), 0
        for token in self.bpe.encode(text):
            if self.counts[token] == 0:
                start = len(text.encode()[:at].decode(errors="ignore"))
                piece = text[start : start + max(1, len(self.bpe.decode([token])))]
                raise ValueError(
                    f"{piece!r} in {text!r} stood in no German caption that this "
                    "model has read: is it another language?"
                )
            at += len(pieces[token])
        if (nats := self.surprise(text)) > 3:
            raise ValueError(
                f"{text!r} is unlike the German captions that this model has read "
                f"({nats:.1f} nats a character; they have 3 at most): is it another "
                "language? `check=False` translates it all the same, into something"
            )

    def translate(self, text, width=4, check=True):
        """German -> English. ValueError for what it cannot read, or too long a text."""
        if check:
            self.check(text)
        return translate(self.model, self.bpe, text, width=width)

    def save(self, path):
        """One file: weights in half precision; sizes and merges in its header."""
        tensors = {k: v.half() for k, v in self.model.state_dict().items()}
        merges = "\n".join(" ".join(pair) for pair in self.bpe.rank)
        about = {"config": json.dumps(asdict(self.model.config)), "merges": merges}
        save_file(tensors | {"counts": self.counts.int()}, path, about)


def load_translator(path=WEIGHTS):
    """The translator that ships with the library; needs no network."""
    with safe_open(path, "pt") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    counts = tensors.pop("counts").float()
    merges = [tuple(line.split(" ")) for line in about["merges"].split("\n")]
    model = Transformer(TransformerConfig(**json.loads(about["config"])))
    model.load_state_dict({name: value.float() for name, value in tensors.items()})
    return Translator(model, BPE(merges), counts)


def finish(model, bpe, pairs):
    """A trained model as a `Translator`; no longer than what it has learned from."""
    counts = torch.zeros(len(bpe))
    for german, _ in pairs:
        for token in bpe.encode(german):
            counts[token] += 1
    sizes = asdict(model.config) | {"max_length": 80}
    short = Transformer(TransformerConfig(**sizes))
    short.load_state_dict(model.state_dict())
    return Translator(short, bpe, counts)


def bleu(written, truth):
    """(BLEU, its signature) of a list of texts, by sacrebleu as it comes.

    Cased, tokens as WMT's "13a" cuts them, one reference. Needs sacrebleu, which the
    extra `genlib[words]` brings.
    """
    try:
        from sacrebleu.metrics import BLEU
    except ModuleNotFoundError as error:
        raise ImportError(
            "BLEU needs sacrebleu; pip install 'genlib[words]' brings it"
        ) from error
    metric = BLEU()
    score = metric.corpus_score(written, [truth]).score
    return score, str(metric.get_signature())


def translate_all(translator, texts, width=4):
    """Many texts, unchecked; width 1 writes them greedily, in batches."""
    if width > 1:
        return [translator.translate(t, width, check=False) for t in texts]
    bpe, done = translator.bpe, []
    for at in range(0, len(texts), 50):
        src = pad_rows([[*bpe.encode(text), END] for text in texts[at : at + 50]])
        rows = greedy(translator.model, src).tolist()
        done += [bpe.decode(row) for row in rows]
    return done


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("train", "score", "translate"))
    parser.add_argument("text", nargs="?", help="a folder, or a German text")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--bfloat16", action="store_true", help="faster where it is")
    arguments = parser.parse_args()
    if arguments.what == "train":
        folder = Path(arguments.text or "multi30k-run")
        half, device = arguments.bfloat16, get_device()
        translator = train_translator(folder, arguments.steps, None, None, half, device)
        translator.save(folder / "multi30k.safetensors")
        print(f"wrote {folder / 'multi30k.safetensors'}")
        return
    translator = load_translator()
    if arguments.what == "translate":
        print(translator.translate(arguments.text))
        return
    german, english = zip(*read("test_2016_flickr"), strict=True)
    for width in (1, 4):
        score, signature = bleu(translate_all(translator, german, width), english)
        print(f"beam of {width}: BLEU {score:.1f} ({signature})")


if __name__ == "__main__":
    main()
