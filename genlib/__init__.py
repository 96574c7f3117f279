"""The library behind the book "Exploring Generative Models".

One module a chapter: the code that a chapter shows is the code in the module of
the same name. Import from the module (``from genlib.vae import VAE``), so that the
import says where an idea is explained.
"""

__version__ = "0.1.0"
