"""The book's widgets: the same picture in a notebook and on a page without Python."""

from genlib.widgets.latent_explorer import LatentExplorer

__all__ = ["LatentExplorer"]
