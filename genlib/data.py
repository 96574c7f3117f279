r"""Data sets as samples of an unknown density, and the first models of that density.

Images (digits, glyphs, MNIST, Fashion-MNIST) live in memory as uint8; points in the
plane come from densities that are known exactly. The baselines are what every later
model has to beat: independent pixels, one Gaussian, a mixture of Gaussians fitted by
EM (Dempster, Laird & Rubin 1977), and a kernel density (Parzen 1962).

Downloads go through `pooch` into the folder that the environment variable GENLIB_DATA
names, or else into the user's cache; only files with the right SHA-256 are ever used.
"""

import errno
import gzip
import hashlib
import math
import os
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F

# --- images ---------------------------------------------------------------------------


class DataError(RuntimeError):
    """A data set's file is missing, damaged, or cannot be fetched or stored."""


@dataclass(frozen=True)
class Images:
    """Labelled images in memory, grey or colour.

    `images` is uint8 (N, C, H, W) with values 0..max_value; `labels` is int64 (N,),
    an index into `classes`; `factors` holds one value an image for each thing known
    about it. Raises ValueError where these do not fit together.
    """

    name: str
    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    max_value: int = 255
    factors: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self):
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            kind, shape = self.images.dtype, tuple(self.images.shape)
            raise ValueError(
                f"images are {kind} of shape {shape}; expected uint8 (N, C, H, W)"
            )
        if len(self) and int(self.images.max()) > self.max_value:
            top = int(self.images.max())
            raise ValueError(
                f"images hold values up to {top}, above max_value={self.max_value}; "
                "pass the max_value that they have"
            )
        for name, values in {"labels": self.labels, **self.factors}.items():
            if tuple(values.shape) != (len(self),):
                raise ValueError(
                    f"{name} has shape {tuple(values.shape)}; {len(self)} images need "
                    f"({len(self)},)"
                )

    def __len__(self):
        return len(self.images)

    @property
    def shape(self):
        """Shape of one image: (C, H, W)."""
        return tuple(self.images.shape[1:])

    def __getitem__(self, index):
        """The images of an index, slice, mask or list of indices, as `Images`."""
        if isinstance(index, int) or getattr(index, "ndim", None) == 0:
            index = [int(index)]
        return replace(
            self,
            images=self.images[index],
            labels=self.labels[index],
            factors={name: values[index] for name, values in self.factors.items()},
        )

    def x(self, index=None, device=None):
        """The images, or those of an index, as float32 in 0..1: (B, C, H, W)."""
        images = self.images if index is None else self.images[index]
        return images.to(device or images.device).float() / self.max_value

    def to(self, device):
        """The same images on another device, so that batches need no transfer."""
        return replace(
            self,
            images=self.images.to(device),
            labels=self.labels.to(device),
            factors={name: v.to(device) for name, v in self.factors.items()},
        )

    def __repr__(self):
        c, h, w = self.shape
        size = f"{len(self):,} of {c} x {h} x {w}"
        return f"Images({self.name}: {size}, 0..{self.max_value})"


def batches(data, batch_size, seed=0, device=None):
    """Endless shuffled batches: (x, y) of `Images`, or x of a float tensor (N, ...).

    x is float32 in 0..1, (B, C, H, W); y the labels (B,). Each epoch is shuffled anew
    and its last, incomplete batch is dropped. Batch k depends on (seed, k) alone, so a
    run that stops can go on where it was.
    """
    if not isinstance(data, Images | torch.Tensor):
        raise ValueError(f"data is a {type(data).__name__}; pass Images or a tensor")
    if isinstance(data, torch.Tensor) and not data.is_floating_point():
        raise ValueError(
            f"data is a tensor of {data.dtype}; pass Images, which scale it to 0..1, "
            "or a float tensor"
        )
    if not 1 <= batch_size <= len(data):
        raise ValueError(
            f"batch_size is {batch_size}; {len(data)} examples allow 1..{len(data)}"
        )
    return _batches(data, batch_size, seed, device)


def _batches(data, batch_size, seed, device):
    epoch = 0
    while True:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(data), generator=generator)
        for index in order.split(batch_size):
            if len(index) < batch_size:
                break
            if isinstance(data, Images):
                yield (
                    data.x(index, device),
                    data.labels[index].to(device or data.labels.device),
                )
            else:
                yield data[index].to(device or data.device)
        epoch += 1


# --- data sets by name ----------------------------------------------------------------

DATASETS = ("digits", "glyphs", "mnist", "fashion_mnist")


def load(name, split="train"):
    """A data set by name (see DATASETS): its "train" or "test" part, as `Images`."""
    _one_of("data set", name, DATASETS)
    return globals()[name](split)


def available(name):
    """Whether the files of a data set, of DATASETS or TEXTS, need no download."""
    _one_of("data set", name, (*DATASETS, *TEXTS))
    if name not in URLS:
        return True
    files = TEXTS.get(name) or {
        file: sha256
        for split in FILES
        for file, sha256 in zip(FILES[split], SHA256[name, split], strict=True)
    }
    paths = {_folder(name) / file: sha256 for file, sha256 in files.items()}
    return all(p.is_file() and _sha256(p) == sha256 for p, sha256 in paths.items())


def _one_of(what, value, choices):
    if value not in choices:
        raise ValueError(
            f"unknown {what} {value!r}; choose from: {', '.join(map(str, choices))}"
        )


def digits(split="train"):
    """Handwritten digits, 8 x 8, 17 grey levels: 1,500 to train and 297 to test.

    They are the 1,797 test digits of the UCI set (Alpaydin & Kaynak 1998), as
    scikit-learn ships them. The split is ours, fixed, with each digit's share kept.
    """
    import numpy as np
    from sklearn.datasets import load_digits

    _one_of("split", split, ("train", "test"))
    bunch = load_digits()
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(bunch.target)))
    images = torch.from_numpy(bunch.images.astype("uint8"))[order, None]
    labels = torch.from_numpy(bunch.target.astype("int64"))[order]
    # How far each image stands within its class, 0..1: cutting there keeps the shares.
    rank = torch.empty(len(labels))
    for k in range(10):
        mine = labels == k
        rank[mine] = torch.linspace(0, 1, int(mine.sum()))
    order = rank.argsort(stable=True)
    index = (order[:1500] if split == "train" else order[1500:]).sort().values
    classes = tuple("0123456789")
    return Images("digits", images[index], labels[index], classes, max_value=16)


# --- MNIST and Fashion-MNIST ----------------------------------------------------------

CLOTHES = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker",
    "bag", "ankle boot",
)  # fmt: skip

URLS = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "fashion_mnist": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/"
        "fashion/",
    ),
}

FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
SHA256 = {  # of images and labels
    ("mnist", "train"): (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    ),
    ("mnist", "test"): (
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    ("fashion_mnist", "train"): (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    ),
    ("fashion_mnist", "test"): (
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
}


def mnist(split="train"):
    """MNIST (LeCun et al. 1998): handwritten digits, 28 x 28; 60,000 and 10,000.

    Downloads 11 MB at first use; raises DataError where that cannot be done.
    """
    return _idx_images("mnist", split, tuple("0123456789"))


def fashion_mnist(split="train"):
    """Fashion-MNIST (Xiao, Rasul & Vollgraf 2017): clothes, 28 x 28; 60,000 and 10,000.

    Downloads 30 MB at first use; raises DataError where that cannot be done.
    """
    return _idx_images("fashion_mnist", split, CLOTHES)


def _idx_images(name, split, classes):
    _one_of("split", split, tuple(FILES))
    files = zip(FILES[split], SHA256[name, split], strict=True)
    images, labels = (
        bytearray(gzip.decompress(_fetch(name, *file).read_bytes())) for file in files
    )
    # Four magic bytes, then one big-endian size per dimension, then the values.
    sizes = [int.from_bytes(images[i : i + 4], "big") for i in (4, 8, 12)]
    pixels = torch.frombuffer(images, dtype=torch.uint8, offset=16)
    labels = torch.frombuffer(labels, dtype=torch.uint8, offset=8).long()
    return Images(name, pixels.reshape(sizes)[:, None], labels, classes)


def _folder(name):
    """Where a data set's files lie: GENLIB_DATA/<name> or the user's cache."""
    root = os.environ.get("GENLIB_DATA")
    if not root:
        import pooch

        root = pooch.os_cache("genlib")
    return Path(root).expanduser() / name.replace("_", "-")


def _sha256(path):
    stat = path.stat()
    return _file_hash(path, stat.st_size, stat.st_mtime_ns)


@cache
def _file_hash(path, size, changed):  # size and time: a changed file is read again
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fetch(name, file, sha256):
    """The path of a data file, downloaded if it is not there; DataError if not."""
    path = _folder(name) / file
    if path.exists():
        if _sha256(path) == sha256:
            return path
        raise DataError(
            f"{path} is damaged, or only half of it is there: its SHA-256 starts "
            f"with {_sha256(path)[:12]}, expected {sha256[:12]}. Delete it and try "
            "again, and it is downloaded anew"
        )
    problems = []
    for url in URLS[name]:
        try:
            _download(url + file, path, sha256)
            return path
        except OSError as error:
            if error.errno in STORAGE:
                raise DataError(
                    f"cannot store {path}: {STORAGE[error.errno]}. Make room there, or "
                    "name another folder in the environment variable GENLIB_DATA"
                ) from error
            problems.append(f"  {url}{file}: {_reason(error)}")
        except ValueError:  # pooch: the bytes have another hash
            problems.append(f"  {url}{file}: sent other bytes than expected")
    raise DataError(
        f"cannot download {file} of {name!r}:\n" + "\n".join(problems) + "\n"
        "Check the network, or put the file into "
        f"{path.parent}; the data sets 'digits' and 'glyphs' need no download"
    )


STORAGE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the folder is read-only",
    errno.EACCES: "the folder may not be written",
    errno.EPERM: "the folder may not be written",
    errno.ENOTDIR: "a file is in the place of the folder",
    errno.EEXIST: "a file is in the place of the folder",
}


def _download(url, path, sha256):
    """Fetch one file with a progress bar; it appears at `path` only whole and right."""
    import pooch

    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("WARNING")  # the bar says enough
    try:
        pooch.retrieve(
            url,
            known_hash=f"sha256:{sha256}",
            fname=path.name,
            path=path.parent,
            downloader=pooch.HTTPDownloader(progressbar=True, timeout=30),
        )
    finally:
        logger.setLevel(level)


def _reason(error):
    """A short cause for an HTTP or network error."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answered {response.status_code}"
    return f"no answer ({type(error).__name__})"


# --- texts ----------------------------------------------------------------------------

TEXTS = {  # files of each, with their SHA-256
    "tinyshakespeare": {
        "input.txt": (
            "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
        ),
    },
    "multi30k": {
        "test_2016_flickr.de.gz": (
            "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8"
        ),
        "test_2016_flickr.en.gz": (
            "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9"
        ),
        "test_2017_flickr.de.gz": (
            "a2c89666db00c495cd8513b9d708d5a3acc205d7de312ef2bf5fb7ebc1540aee"
        ),
        "test_2017_flickr.en.gz": (
            "76a444ee25172e72695cddb13ae4a3bda59430617be88e0bb46b60504f054074"
        ),
        "test_2017_mscoco.de.gz": (
            "799e4854c25d601cb6cb6be29eabe5667734c61ace2f495e03e429031a0bc338"
        ),
        "test_2017_mscoco.en.gz": (
            "aab300bfb4427697987e02cd0aacd44bfe8aa50456231b6474c08038bbed2b58"
        ),
        "train.de.gz": (
            "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6"
        ),
        "train.en.gz": (
            "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f"
        ),
        "val.de.gz": (
            "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a"
        ),
        "val.en.gz": (
            "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28"
        ),
    },
    "gpt2_bpe": {
        "encoder.json": (
            "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
        ),
        "vocab.bpe": (
            "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
        ),
    },
}
URLS |= {
    "tinyshakespeare": (
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/"
        "tinyshakespeare/",
    ),
    "multi30k": (
        "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/",
    ),
    "gpt2_bpe": ("https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/",),
}


def text_file(name, file):
    """The path of one file of TEXTS, downloaded at first use; DataError where not.

    Tiny Shakespeare (Karpathy 2015), 1.1 MB; Multi30k (Elliott et al. 2016), 30,000
    captions in German and English, 2 MB; the byte pairs of GPT-2 (Radford et al. 2019).
    """
    _one_of("text", name, TEXTS)
    _one_of(f"file of {name}", file, TEXTS[name])
    return _fetch(name, file, TEXTS[name][file])


def book_text():
    """The book's own prose, of its first five chapters and glossary: 75,000 characters.

    Frozen, in plain ASCII, without formulae: a text that every machine has, the same
    under every version of Python, whose licence (CC BY 4.0) is the book's.
    """
    return (Path(__file__).parent / "corpus.txt").read_text(encoding="ascii")


# --- glyphs ---------------------------------------------------------------------------

UPPER = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
DIGITS = tuple("0123456789")
LOWER = tuple("abcdefghijklmnopqrstuvwxyz")

# Every ink is light and every paper dark, so that each pair can be read.
INKS = {
    "white": (255, 255, 255),
    "yellow": (250, 220, 90),
    "orange": (245, 160, 70),
    "pink": (245, 150, 190),
    "green": (150, 220, 120),
    "cyan": (120, 215, 235),
}
PAPERS = {
    "black": (0, 0, 0),
    "grey": (70, 70, 75),
    "red": (115, 20, 35),
    "green": (15, 75, 45),
    "blue": (25, 40, 115),
    "purple": (80, 25, 100),
}

# What a glyph can be made of. An image's factor is an index into these.
GLYPH_FACTORS = {
    "character": UPPER + DIGITS + LOWER,
    "font": ("sans", "serif", "mono", "times"),
    "weight": ("regular", "bold"),
    "slant": ("upright", "italic"),
    "ink": tuple(INKS),
    "paper": tuple(PAPERS),
}
# What is continuous, with its default range: pixels of a capital's height; degrees,
# counter-clockwise.
GLYPH_RANGES = {"size": (12.0, 17.0), "angle": (-12.0, 12.0)}

# The font files inside matplotlib; these four families have all four styles.
FONT_FILES = {
    "sans": ("DejaVuSans", "", "-Bold", "-Oblique", "-BoldOblique"),
    "serif": ("DejaVuSerif", "", "-Bold", "-Italic", "-BoldItalic"),
    "mono": ("DejaVuSansMono", "", "-Bold", "-Oblique", "-BoldOblique"),
    "times": ("STIXGeneral", "", "Bol", "Italic", "BolIta"),
}


def glyphs(split="train", *, n=None, seed=0, color=False, **factors):
    """Letters and digits drawn from fonts, 32 x 32, with every factor known.

    By default capitals and digits in 4 fonts, 2 weights and 2 slants, white on black,
    with size and angle drawn from GLYPH_RANGES: 6,912 images to train, 1,152 to test.
    `color=True` adds the colours of ink and paper, of INKS and PAPERS.

    Any factor can be set: one value, or several to draw from, as in
    `glyphs(character="ABC", font="serif", angle=0)`; for size and angle a number or a
    pair (low, high). Combinations of the discrete factors come equally often. `seed`
    fixes everything; train and test never share draws. Raises ValueError, listing the
    choices, for a factor or value that is unknown.
    """
    _one_of("split", split, ("train", "test"))
    if not color and factors.keys() & {"ink", "paper"}:
        raise ValueError("ink and paper need colour images; pass color=True")
    allowed = {name: _allowed(name, factors.pop(name, None)) for name in GLYPH_FACTORS}
    ranges = {name: _range(name, factors.pop(name, None)) for name in GLYPH_RANGES}
    for name in factors:
        _one_of("factor", name, (*GLYPH_FACTORS, *GLYPH_RANGES))
    generator = torch.Generator().manual_seed(2 * seed + (split == "test"))

    grid = [allowed[name] for name in ("character", "font", "weight", "slant")]
    grid = torch.cartesian_prod(*map(torch.tensor, grid))  # (combinations, 4)
    n = (12 if split == "train" else 2) * len(grid) if n is None else n
    if n < 1:
        raise ValueError(f"n is {n}; ask for at least one image")
    orders = [
        torch.randperm(len(grid), generator=generator)
        for _ in range(-(-n // len(grid)))
    ]
    drawn = grid[torch.cat(orders)[:n]].unbind(1)
    values = dict(zip(("character", "font", "weight", "slant"), drawn, strict=True))
    for name, (low, high) in ranges.items():
        values[name] = low + (high - low) * torch.rand(n, generator=generator)
    if color:
        for name in ("ink", "paper"):
            drawn = torch.randint(len(allowed[name]), (n,), generator=generator)
            values[name] = torch.tensor(allowed[name])[drawn]

    characters = torch.tensor(allowed["character"])
    labels = (values["character"][:, None] == characters).int().argmax(1)
    classes = tuple(GLYPH_FACTORS["character"][i] for i in allowed["character"])
    return Images("glyphs", render_glyphs(values), labels, classes, factors=values)


def _allowed(name, value):
    """Indices of the wanted values of a discrete factor; None wants the default."""
    choices = GLYPH_FACTORS[name]
    if value is None:
        value = UPPER + DIGITS if name == "character" else choices
    if isinstance(value, str) and name != "character" or not hasattr(value, "__iter__"):
        value = (value,)
    for one in value:
        _one_of(name, one, choices)
    if len(value) == 0 or len(set(value)) < len(value):
        raise ValueError(f"{name} is {value!r}; name each wanted value once")
    return [choices.index(one) for one in value]


def _range(name, value):
    """(low, high) of a continuous factor, from a number, a pair or None."""
    if value is None:
        value = GLYPH_RANGES[name]
    try:
        low, high = (value, value) if isinstance(value, int | float) else value
        fits = -math.inf < low <= high < math.inf and (name != "size" or low >= 4)
    except (TypeError, ValueError):  # no pair, or not of numbers
        fits = False
    if not fits:
        raise ValueError(
            f"{name} is {value!r}; give a number or a pair (low, high)"
            + (", at least 4 pixels" if name == "size" else ", in degrees")
        )
    return float(low), float(high)


def render_glyphs(factors):
    """Draw glyphs from their factors: uint8 (N, 1, 32, 32), with ink (N, 3, 32, 32).

    `factors` maps "character", "font", "weight", "slant" (and "ink", "paper") to
    indices into GLYPH_FACTORS, "size" and "angle" to numbers, each a tensor (N,). The
    middle of the glyph's box stands in the middle of the image.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.transforms import Affine2D

    names = ("character", "font", "weight", "slant", "size", "angle")
    canvas = RendererAgg(32, 32, 72)
    pen = canvas.new_gc()
    pen.set_linewidth(0)
    rows = zip(*(factors[name].tolist() for name in names), strict=True)
    masks = []
    for character, font, weight, slant, size, angle in rows:
        outline = _outline(character, font, 2 * slant + weight)
        place = Affine2D().scale(size).rotate_deg(angle).translate(16, 16)
        canvas.clear()
        canvas.draw_path(pen, outline, place, (0.0, 0.0, 0.0, 1.0))
        masks.append(np.asarray(canvas.buffer_rgba())[:, :, 3].copy())
    masks = torch.from_numpy(np.stack(masks))[:, None]  # (N, 1, 32, 32)
    if "ink" not in factors:
        return masks
    ink, paper = (
        torch.tensor(list(colors.values()))[factors[name]][:, :, None, None]
        for name, colors in (("ink", INKS), ("paper", PAPERS))
    )
    return (paper + masks / 255 * (ink - paper)).round().to(torch.uint8)


@cache
def _outline(character, font, style):
    """A character's outline, its middle at the origin and capitals 1 high."""
    import matplotlib
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D

    family, *styles = FONT_FILES[GLYPH_FACTORS["font"][font]]
    file = Path(
        matplotlib.get_data_path(), "fonts", "ttf", f"{family}{styles[style]}.ttf"
    )
    properties = FontProperties(fname=file)
    character = GLYPH_FACTORS["character"][character]
    path = TextPath((0, 0), character, size=100, prop=properties)
    capital = TextPath((0, 0), "H", size=100, prop=properties).get_extents().height
    box = path.get_extents()
    middle = Affine2D().translate(-(box.x0 + box.x1) / 2, -(box.y0 + box.y1) / 2)
    return path.transformed(middle.scale(1 / capital))


# --- densities in the plane -----------------------------------------------------------

TOYS = ("ring", "grid", "moons", "spiral", "pinwheel", "checkerboard")


def toy2d(name, n, generator=None):
    """Draw n points (n, 2) from a density in the plane (see TOYS), all within -4..4.

    ring: 8 Gaussians in a circle; grid: 25 Gaussians; moons: two half circles; spiral:
    two turns; pinwheel: 5 bent arms; checkerboard: 8 of 16 squares. `toy2d_log_prob`
    has the exact density of each.
    """
    _one_of("2-D density", name, TOYS)
    if n < 1:
        raise ValueError(f"n is {n}; ask for at least one point")
    noise = torch.randn(n, 2, generator=generator)
    u = torch.rand(n, generator=generator)
    if name in CENTRES:
        centres, std = CENTRES[name]
        which = torch.randint(len(centres), (n,), generator=generator)
        return torch.tensor(centres)[which] + std * noise
    if name == "moons":
        upper = torch.rand(n, generator=generator) < 0.5
        angle, radius = math.pi * u, 2 + 0.15 * noise[:, 0]
        x = torch.stack((radius * angle.cos(), radius * angle.sin()), 1)
        return torch.where(upper[:, None], x + MOON, -(x + MOON))
    if name == "spiral":
        t = SPIRAL[0] + (SPIRAL[1] - SPIRAL[0]) * u
        radius = 0.25 * t + 0.07 * noise[:, 0]
        return torch.stack((radius * t.cos(), radius * t.sin()), 1)
    if name == "pinwheel":
        arm = 2 * math.pi / 5 * torch.randint(5, (n,), generator=generator)
        x = noise * torch.tensor([0.5, 0.16]) + torch.tensor([2.0, 0.0])
        return _rotate(x, arm + x.norm(dim=1) - 2)
    corner = torch.randint(8, (n,), generator=generator)
    row, col = corner // 2, 2 * (corner % 2) + (corner // 2) % 2
    other = torch.rand(n, generator=generator)
    return torch.stack((col + u, row + other), 1) * 1.5 - 3


def toy2d_log_prob(name, x):
    """Exact log density, in nats, at points x (N, 2) of a density of `toy2d`: (N,)."""
    _one_of("2-D density", name, TOYS)
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"points have shape {tuple(x.shape)}; expected (N, 2)")
    if name in CENTRES:
        centres, std = CENTRES[name]
        logs = _normal(x[:, None] - torch.tensor(centres).to(x), std).sum(-1)
        return logs.logsumexp(1) - math.log(len(centres))
    if name == "moons":
        logs = []
        for sign in (1, -1):
            y = sign * x - MOON.to(x)
            radius = y.norm(dim=1)
            log = _normal(radius - 2, 0.15) - (2 * math.pi * radius).log()
            logs.append(log.where(y[:, 1] >= 0, -torch.inf))
        return torch.stack(logs).logsumexp(0)
    if name == "spiral":
        radius, angle = x.norm(dim=1), torch.atan2(x[:, 1], x[:, 0])
        t = angle[:, None] + 2 * math.pi * torch.arange(4).to(x)  # each turn's angle
        log = _normal(radius[:, None] - 0.25 * t, 0.07)
        log = log.where((t >= SPIRAL[0]) & (t <= SPIRAL[1]), -torch.inf)
        return log.logsumexp(1) - (radius * (SPIRAL[1] - SPIRAL[0])).log()
    if name == "pinwheel":
        # A rotation by an angle that depends on the radius alone keeps areas.
        logs = []
        for arm in range(5):
            y = _rotate(x, -(2 * math.pi / 5 * arm + x.norm(dim=1) - 2))
            logs.append(_normal(y[:, 0] - 2, 0.5) + _normal(y[:, 1], 0.16))
        return torch.stack(logs).logsumexp(0) - math.log(5)
    cell = ((x + 3) / 1.5).floor()
    inside = ((cell >= 0) & (cell < 4)).all(1) & (cell.sum(1) % 2 == 0)
    return torch.full_like(x[:, 0], -math.log(8 * 1.5**2)).where(inside, -torch.inf)


CENTRES = {  # centres and standard deviation of the mixtures
    "ring": (
        [
            [2 * math.cos(k * math.pi / 4), 2 * math.sin(k * math.pi / 4)]
            for k in range(8)
        ],
        0.1,
    ),
    "grid": ([[1.2 * i, 1.2 * j] for i in range(-2, 3) for j in range(-2, 3)], 0.1),
}
MOON = torch.tensor([-1.0, -0.5])  # where the upper moon stands; the lower mirrors it
SPIRAL = (1.0 * math.pi, 5.0 * math.pi)  # first and last angle


def _normal(x, std):
    """Log density of N(0, std^2), elementwise."""
    return -0.5 * (x / std).square() - math.log(std * math.sqrt(2 * math.pi))


def _rotate(x, angle):
    cos, sin = angle.cos(), angle.sin()
    return torch.stack(
        (cos * x[:, 0] - sin * x[:, 1], sin * x[:, 0] + cos * x[:, 1]), 1
    )


# --- baselines ------------------------------------------------------------------------
#
# One protocol: `fit(x)` returns the model; `log_prob(x)` gives nats, (N,); and
# `sample(n, generator)` gives n new x. x is (N, ...), of the shape that was fitted.


class Density:
    """What the baselines share: x of any shape is checked and flattened to (N, D)."""

    shape = None

    def rows(self, x, fit=False):
        """x (N, ...) as float64 (N, D); `fit` takes over its shape."""
        if fit:
            self.shape = tuple(x.shape[1:])
        if self.shape is None:
            raise RuntimeError(f"this {type(self).__name__} knows no data; call fit(x)")
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; {type(self).__name__} was fitted to "
                f"(N, {', '.join(map(str, self.shape))})"
            )
        if not x.isfinite().all():
            raise ValueError("x holds NaN or infinite values; remove them first")
        return x.flatten(1).double()

    def shaped(self, rows):
        """Samples (n, D) in the shape of the data, float32."""
        return rows.reshape(-1, *self.shape).float()


def to_levels(x, levels):
    """Grey values 0..1 as integers 0..levels-1; ValueError if they are not such."""
    k = x * (levels - 1)
    if not (x.min() >= 0 and x.max() <= 1):  # also catches NaN
        low, high = x.min().item(), x.max().item()
        raise ValueError(
            f"x holds values {low:g}..{high:g}; images are 0..1 here: take Images.x(), "
            "or divide by the largest possible value"
        )
    if (k - k.round()).abs().max() > 1e-3:
        raise ValueError(
            f"x holds values between {levels} even grey levels; pass the data's own "
            "number of levels (digits 17, MNIST 256), or quantize(x, levels)"
        )
    return k.round().long()


def dequantize(x, levels, generator=None):
    """Spread grey level k evenly over [k, k+1) / levels: continuous, in [0, 1)."""
    u = torch.rand(x.shape, generator=generator, dtype=torch.float64)
    return (to_levels(x, levels) + u) / levels


def quantize(y, levels):
    """The grey value 0..1 in whose interval y lies; values outside 0..1 are cut."""
    return (y * levels).floor().clamp(0, levels - 1).float() / (levels - 1)


class Dequantized:
    r"""A continuous density p(y) made a model of images with grey levels.

    With y = (k + u) / levels and u uniform noise (Theis et al. 2016, section 3.1)

        log P(k) >= E_u[log p(y)] - D log(levels)   nats per image.

    `log_prob` is the right side, estimated by `draws` of u.
    """

    def __init__(self, density, levels, draws=4, seed=0):
        self.density, self.levels, self.draws, self.seed = density, levels, draws, seed

    def fit(self, x):
        generator = torch.Generator().manual_seed(self.seed)
        self.density.fit(dequantize(x, self.levels, generator))
        return self

    def log_prob(self, x):
        generator = torch.Generator().manual_seed(self.seed + 1)
        logs = [
            self.density.log_prob(dequantize(x, self.levels, generator))
            for _ in range(self.draws)
        ]
        return torch.stack(logs).mean(0) - x[0].numel() * math.log(self.levels)

    def sample(self, n, generator=None):
        return quantize(self.density.sample(n, generator), self.levels)


class IndependentPixels(Density):
    r"""Each pixel by itself: p(x) = \prod_d p_d(x_d), p_d a table over the grey levels.

    `smoothing` images of every level are added to the counts (Laplace), so that no
    level that the training images lack gets probability zero.
    """

    def __init__(self, levels, smoothing=1.0):
        self.levels, self.smoothing = levels, smoothing

    def fit(self, x):
        k = to_levels(self.rows(x, fit=True), self.levels)  # (N, D)
        counts = torch.full((k.shape[1], self.levels), self.smoothing).double()
        counts.scatter_add_(1, k.T, torch.ones_like(k.T).double())  # (D, levels)
        self.log_p = (counts / counts.sum(1, keepdim=True)).log()
        return self

    def log_prob(self, x):
        k = to_levels(self.rows(x), self.levels)
        return self.log_p.T.gather(0, k).sum(1)

    def sample(self, n, generator=None):
        k = torch.multinomial(
            self.log_p.exp(), n, replacement=True, generator=generator
        )
        return self.shaped(k.T / (self.levels - 1))


def cholesky(cov):
    """Lower L with L L^T = cov; ValueError where cov has no such root."""
    root, failed = torch.linalg.cholesky_ex(cov)
    if failed.any():
        raise ValueError(
            "a covariance is singular: some values hardly vary, or there are too few "
            "examples. Dequantize images first, or raise shrinkage or floor"
        )
    return root


def gaussian_log_prob(x, mean, cov):
    """Log density of each of K Gaussians at x (N, D): (N, K); cov is (K, D, D)."""
    chol = cholesky(cov)  # (K, D, D)
    diff = (x - mean[:, None]).mT  # (K, D, N)
    white = torch.linalg.solve_triangular(chol, diff, upper=False)
    log_det = 2 * chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (K,)
    D = x.shape[1]
    return -0.5 * (white.square().sum(1).T + log_det + D * math.log(2 * math.pi))


class Gaussian(Density):
    """One Gaussian with a full covariance, shrunk towards its own diagonal.

    `shrinkage` 0 keeps the sample covariance, 1 only the variances (Schaefer &
    Strimmer 2005, target D); a little is needed where pixels hardly vary.
    """

    def __init__(self, shrinkage=0.05):
        self.shrinkage = shrinkage

    def fit(self, x):
        x = self.rows(x, fit=True)
        self.mean = x.mean(0)
        cov = (x - self.mean).T @ (x - self.mean) / len(x)
        self.cov = cov.lerp(cov.diagonal().diag(), self.shrinkage)
        return self

    def log_prob(self, x):
        return gaussian_log_prob(self.rows(x), self.mean[None], self.cov[None])[:, 0]

    def sample(self, n, generator=None):
        noise = torch.randn(n, len(self.mean), generator=generator).double()
        return self.shaped(self.mean + noise @ cholesky(self.cov).T)


def kmeans(x, k, generator=None, steps=10):
    """Cluster x (N, D) around k centres, spread at first by k-means++: labels (N,).

    Each next seed is drawn with probability proportional to the squared distance from
    the nearest seed so far (Arthur & Vassilvitskii 2007).
    """
    if not 1 <= k <= len(x):
        raise ValueError(f"{k} clusters or components for {len(x)} examples")
    first = torch.randint(len(x), (1,), generator=generator)
    centres = x[first]
    for _ in range(k - 1):
        gap = torch.cdist(x, centres).min(1).values.square()
        gap = gap if gap.sum() > 0 else torch.ones_like(gap)  # fewer than k different x
        chosen = torch.multinomial(gap, 1, generator=generator)
        centres = torch.cat((centres, x[chosen]))
    for _ in range(steps):
        labels = torch.cdist(x, centres).argmin(1)
        members = F.one_hot(labels, k).to(x)  # (N, k)
        count = members.sum(0)[:, None]
        centres = torch.where(count > 0, members.T @ x / count.clamp(min=1), centres)
    return labels


class MixtureOfGaussians(Density):
    r"""p(x) = \sum_k w_k N(x; mean_k, cov_k), fitted by EM (Dempster et al. 1977).

    `floor` times the variance of all data is added to each covariance's diagonal.
    """

    def __init__(self, n_components, floor=0.1, steps=10, seed=0):
        self.n_components, self.floor = n_components, floor
        self.steps, self.seed = steps, seed

    def fit(self, x):
        x = self.rows(x, fit=True)
        labels = kmeans(x, self.n_components, torch.Generator().manual_seed(self.seed))
        r = F.one_hot(labels, self.n_components).double()  # responsibilities (N, K)
        self.history = []
        for _ in range(self.steps):
            self.m_step(x, r)
            joint = self.joint(x)
            r = joint.softmax(1)  # E step: p(k | x)
            self.history.append(joint.logsumexp(1).mean().item())  # nats
        return self

    def m_step(self, x, r):
        count = r.sum(0) + 1e-9  # (K,)
        self.weight, self.mean = count / count.sum(), r.T @ x / count[:, None]
        diff = x.T - self.mean[:, :, None]  # (K, D, N)
        cov = (r.T[:, None] * diff) @ diff.mT / count[:, None, None]
        self.cov = cov + self.floor * x.var(0, correction=0).diag()

    def joint(self, x):  # log p(x, k), (N, K)
        return self.weight.log() + gaussian_log_prob(x, self.mean, self.cov)

    def log_prob(self, x):
        return self.joint(self.rows(x)).logsumexp(1)

    def sample(self, n, generator=None):
        k = torch.multinomial(self.weight, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.mean.shape[1], 1, generator=generator).double()
        return self.shaped(self.mean[k] + (cholesky(self.cov)[k] @ noise)[:, :, 0])


def plane_root(cov):
    """The root of `cholesky` in the plane, written out: three numbers, (K,) each.

    For cov (K, 2, 2) it is [[a, 0], [b, c]]. Where cov is singular, a and c are 1e-6.
    """
    a = cov[:, 0, 0].clamp(min=1e-12).sqrt()
    b = cov[:, 1, 0] / a
    return a, b, (cov[:, 1, 1] - b.square()).clamp(min=1e-12).sqrt()


def plane_log_prob(x, mean, cov):
    """`gaussian_log_prob` of K Gaussians at x (N, 2), by `plane_root`: (N, K)."""
    a, b, c = plane_root(cov)
    u = (x[:, :1] - mean[:, 0]) / a  # root^-1 (x - mean) is (u, v), (N, K) each
    v = (x[:, 1:] - mean[:, 1] - b * u) / c
    return -0.5 * (u.square() + v.square()) - (2 * math.pi * a * c).log()


def plane_draw(mean, cov, noise):
    """mean + root @ noise for K Gaussians: noise (..., K or 1, 2) -> (..., K, 2)."""
    a, b, c = plane_root(cov)
    x, y = noise.unbind(-1)
    return mean + torch.stack((a * x, b * x + c * y), -1)


class PlaneMixture(MixtureOfGaussians):
    """A mixture in the plane by plain arithmetic: a page knows no Cholesky root.

    weight is (K,), mean (K, 2), cov (K, 2, 2).
    """

    def __init__(self, weight, mean, cov, floor=0.0):
        super().__init__(len(weight), floor)
        self.weight, self.mean, self.cov = weight, mean, cov

    def joint(self, x):
        return self.weight.log() + plane_log_prob(x, self.mean, self.cov)

    def ellipses(self, n=41):
        """Where each component is two standard deviations away: (K, n, 2)."""
        angle = torch.linspace(0, 2 * math.pi, n)[:, None]
        circle = torch.stack((angle.cos(), angle.sin()), 2)  # (n, 1, 2)
        return plane_draw(self.mean, self.cov, 2 * circle).transpose(0, 1)

    def sample_by(self, noise):
        """Samples (N, 2) made of standard normal noise (N, 3); its first picks k."""
        level = torch.special.ndtr(noise[:, :1])  # uniform in 0..1
        k = (level > self.weight.cumsum(0)[:-1]).sum(1)
        return plane_draw(self.mean[k], self.cov[k], noise[:, 1:])


def mixture_program():
    """EM of 15 Gaussians in the plane, for the page (see `live`).

    The reader moves the floor and the temperature T of the E step: responsibilities are
    in proportion to p(x, k)^(1/T) (Ueda & Nakano 1998), and T = 1 is EM. The views are
    data and samples, (1000, 2) each, means and ellipses of two standard deviations.
    """
    from torch import nn

    from genlib.live import First, Normal, Phase, Program, Slider

    means = nn.Embedding(15, 2)  # drawn by the seed; all else starts equal
    rest = nn.ParameterDict({"weight": torch.full((15,), 1 / 15)})
    rest["cov"] = torch.eye(2).repeat(15, 1, 1)

    def em(x, floor, temperature):
        model = PlaneMixture(rest["weight"], means.weight, rest["cov"], floor)
        joint = model.joint(x)  # log p(x, k), (N, K)
        model.m_step(x, (joint / temperature).softmax(1))  # E step, then M step
        new = {"means.weight": model.mean, "rest.weight": model.weight}
        new["rest.cov"] = model.cov
        return new, {"log_likelihood": joint.logsumexp(1).mean()}

    def views(x, noise):
        model = PlaneMixture(rest["weight"], means.weight, rest["cov"])
        shown = {"data": x, "means": model.mean, "ellipses": model.ellipses()}
        return shown | {"samples": model.sample_by(noise)}

    feeds = {
        "x": First("target", 1000),
        "noise": Normal(1000, 3),
        "floor": Slider(1e-3, 1e-4, 0.1, log=True),
        "temperature": Slider(1.0, 0.1, 3.0, log=True),
    }
    toys = {t: toy2d(t, 1000, torch.Generator().manual_seed(0)) for t in TOYS}
    tables = {"target": {"pinwheel": toys.pop("pinwheel"), **toys}}  # it is first
    step = Phase("EM", ("means", "rest"), update=em)
    return Program({"means": means, "rest": rest}, [step], feeds, views, tables)


class KernelDensity(Density):
    """A Gaussian bump of one width around every training point (Parzen 1962).

    The width is the one of `bandwidths` that gives left-out training points the
    highest density, each point scored by the bumps of all others.
    """

    def __init__(self, bandwidths=None):
        self.bandwidths = bandwidths

    def fit(self, x):
        self.points = x = self.rows(x, fit=True)
        spread = x.std(0, correction=0).square().mean().sqrt()
        if not (self.bandwidths or spread > 0):
            raise ValueError(f"{len(x)} equal points; a density needs different ones")
        widths = (
            self.bandwidths or (spread * 2.0 ** torch.arange(-6, 1.5, 0.5)).tolist()
        )
        asked = x[: min(len(x), 1000)]  # enough to choose one number by
        gap = torch.cdist(asked, x).square()
        gap[range(len(asked)), range(len(asked))] = torch.inf
        self.scores = {h: self.log_kernel(gap, h).mean().item() for h in widths}
        self.bandwidth = max(self.scores, key=self.scores.get)
        return self

    def log_kernel(self, gap, h):
        """Log density from squared distances (M, N) to the points, each 1/N."""
        D = self.points.shape[1]
        scale = math.log(len(self.points)) + D * math.log(h * math.sqrt(2 * math.pi))
        return (gap / (-2 * h**2)).logsumexp(1) - scale

    def log_prob(self, x):
        parts = self.rows(x).split(1000)  # so that the distances fit into memory
        gaps = (torch.cdist(part, self.points).square() for part in parts)
        return torch.cat([self.log_kernel(gap, self.bandwidth) for gap in gaps])

    def sample(self, n, generator=None):
        pick = torch.randint(len(self.points), (n,), generator=generator)
        noise = torch.randn(n, self.points.shape[1], generator=generator)
        return self.shaped(self.points[pick] + self.bandwidth * noise)


def bits_per_dimension(log_prob, x):
    """Nats per image, log_prob (N,), as bits per pixel value of x (N, ...)."""
    return -log_prob / (x[0].numel() * math.log(2))
