"""What is measured: the one table of parts and rows."""

from __future__ import annotations

from typing import NamedTuple

from batchnorm.tools.bench.problem import CHANNELS_LAST, LAYOUTS, TABLE, Problem, layouts
from batchnorm.tools.bench.timing import IN_TURN, Settings

IMAGES = (
    (16, 64, 64, 64), (16, 256, 32, 32), (16, 512, 16, 16), (16, 1024, 8, 8), (16, 2048, 4, 4), (64, 512, 7, 7),
    (32, 64, 56, 56), (32, 256, 56, 56),
)  # fmt: skip
TABLES = ((8192, 256), (65536, 64))
DTYPES = ("float32", "bfloat16", "float16")
LAYERS = ((32, 64, 56, 56), (32, 256, 56, 56), (32, 256, 14, 14), (64, 512, 7, 7), (8192, 256))
KINDS = ("batch norm", "+ ReLU", "+ ReLU6", "+ SiLU", "+ add + ReLU")
TINY = ((5, 5), (32, 128), (256, 64), (8, 16, 8, 8), (1, 64, 14, 14))
NETWORKS = {"MobileNetV2": 16, "EfficientNet-B0": 16, "ResNet-50": 8}  # with their batches
VARIANTS = ((32, 64, 56, 56), (32, 256, 14, 14), (64, 128, 500), (8192, 256))
COLUMNS = "columns contiguous"
MISSING = [Problem((1_000_000, 50), layout) for layout in (TABLE, COLUMNS)] + [Problem((32, 64, 56, 56))]
SCALER = (
    *(Problem((n, 50), TABLE, dtype) for n in (100, 10_000, 1_000_000) for dtype in ("float32", "float64")),
    *(Problem((1_000_000, 50), TABLE, "float32", what=what) for what in ("F order", "NaN", "weights")),
    Problem((10_000_000, 50), TABLE, "float32"),
)
OFFSETS = [
    Problem((100_000, 4), TABLE, d, what=offset)
    for d in ("float32", "float64")
    for offset in ("1", "1e2", "1e4", "1e6")
]
LOSSES = "losses"  # a training; what else "trust" has is a thing that PyTorch gets wrong
IMAGE = (8, 4, 32, 32)
TRUST = [
    *(Problem((64, 1, 8, 8), dtype=dtype, what=LOSSES) for dtype in ("float32", "float64")),
    *(Problem(IMAGE, layout, what=what) for what in ("mean 1e4", "mean 1e6") for layout in LAYOUTS),
    Problem(IMAGE, what="evaluation"),
    Problem(IMAGE, CHANNELS_LAST, what="running_var"),
    Problem(IMAGE, what="values 1e20"),
    Problem((256, 4, 64, 64), CHANNELS_LAST, what="bias gradient"),
    Problem((8, 16, 7), what="weight gradient"),
    Problem((64, 4), TABLE, what="shared memory"),
    Problem(IMAGE, what="layout"),
    Problem((6, 2), TABLE, "float64", what="third derivative"),
    Problem((64, 4), TABLE, what="checkpoint"),
    Problem((1, 4), TABLE, what="refused batch"),
]
DATA = {
    "uneven": "batches of 9998 and 2 samples",
    "sorted": "sorted by the first channel, batches of 500",
    "mean 1e4": "a mean of 1e4 standard deviations",
    "dropout": "dropout before the layer",
}
RECALIBRATED = [Problem((10_000, 4), TABLE, what=what) for what in DATA]
WRONG = {
    "mean 1e4": "an output, {layout}, where the mean of the data is 1e4 standard deviations",
    "mean 1e6": "an output, {layout}, where the mean is 1e6 of them",
    "evaluation": "an output in evaluation, where the mean is 1e6 of them",
    "running_var": "`running_var`, {layout}, where the mean is 1e6 of them",
    "values 1e20": "an output, where the standard deviation of the data is 1e20",
    "bias gradient": "the gradient of `bias`, {layout}: the sum of 1048576 values of 0.1",
    "weight gradient": "the gradient of `weight` for `x.unsqueeze(-1).transpose(1, 2)`, where the upstream gradient is "
    "contiguous",
    "shared memory": "an output, where `running_var` and `weight` are the same tensor",
    "layout": "the share of the outputs that have other bits if the same data lies in memory channels-last",
    "third derivative": "a third derivative, float64",
    "checkpoint": "`running_mean` after one step under `torch.utils.checkpoint`",
    "refused batch": "`num_batches_tracked` after the layer refused a batch of one",
}
RECALIBRATION = [Problem((n, 3, 128, 128), what=name) for name, n in NETWORKS.items()]
JAX = (*VARIANTS[:2], (64, 512, 7, 7), VARIANTS[-1])
JAX_ERRORS = [Problem((10_000, 4), TABLE, what=mean) for mean in ("0", "1e2", "1e3", "1e4")]
NET = 10  # layers
TRAINED = "training"
BESIDE = {"hold": TRAINED, "one_update": TRAINED, "masked": "mask by hand", "adapt": "evaluation"}  # the same without
CONTEXTS = [Problem(s, threads=1, what=of) for s in ((8, 16, 16, 16), (16, 64, 28, 28)) for of in ("torch.nn", "ours")]
ON_GPU = ((32, 64, 56, 56), (32, 256, 56, 56), (64, 512, 7, 7))


class Part(NamedTuple):
    """A file of results: its rows, which function of which module here measures one, and for how long."""

    problems: list[Problem]
    measure: str
    settings: Settings
    named: bool = False  # measured only when it is named


def every(shapes, dtypes=("float32",), kinds=("",)) -> list[Problem]:
    """Each shape in each of its layouts."""
    return [Problem(s, layout, d, what=k) for d in dtypes for s in shapes for layout in layouts(s) for k in kinds]


PARTS = {
    "functions": Part(every((*IMAGES, *TABLES), DTYPES), "batchnorm.tools.bench.functions.row_of", Settings(31, 3.5)),
    "layers": Part(every(LAYERS, kinds=KINDS), "layers.layer", Settings(21, 2)),
    "tiny": Part([Problem(s, layouts(s)[0], threads=1) for s in TINY], "layers.tiny", Settings(61, 10, calls=50)),
    "networks": Part(
        [
            Problem((batch, 3, 128, 128), layout, dtype, what=name)
            for name, batch in NETWORKS.items()
            for dtype in DTYPES[:2]
            for layout in LAYOUTS
        ],
        "networks.steps",
        Settings(9, 18, modes=(IN_TURN,)),
    ),
    "variants": Part(every(VARIANTS), "others.variants", Settings(15, 2)),
    "missing": Part(MISSING, "others.missing", Settings(9, 3)),
    "scaler": Part(list(SCALER), "others.scaler", Settings(9, 3)),
    "offsets": Part(OFFSETS, "others.offsets", Settings()),
    "sync": Part(every(VARIANTS), "sync.row_of", Settings(9, 1e9)),  # no budget: all processes must do the same
    "recalibrated": Part(RECALIBRATED, "recalibration.errors", Settings()),
    "recalibration": Part(RECALIBRATION, "recalibration.speed", Settings(9, 12, modes=(IN_TURN,))),
    "contexts": Part(CONTEXTS, "contexts.row_of", Settings(31, 2, calls=5)),
    "jax": Part([*every(JAX), *JAX_ERRORS], "jax_layers.row_of", Settings(31, 3)),
    "trust": Part(TRUST, "trust.row_of", Settings(200)),  # so many steps of training
    "gpu": Part(every(ON_GPU, DTYPES[:2], KINDS[::4]), "layers.on_gpu", Settings(11, 10, calls=20), named=True),
}
