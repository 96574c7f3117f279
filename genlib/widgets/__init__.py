"""The book's widgets: the same picture in a notebook and on a page without Python."""

from genlib.widgets.attention_explorer import AttentionExplorer
from genlib.widgets.latent_explorer import LatentExplorer
from genlib.widgets.text_sampler import TextSampler
from genlib.widgets.training_lab import TrainingLab

__all__ = ["AttentionExplorer", "LatentExplorer", "TextSampler", "TrainingLab"]
