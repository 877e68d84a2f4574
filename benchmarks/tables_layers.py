"""The tables of PyTorch's layers, from what torch_layers.py measured."""

from __future__ import annotations

from record import Document, Row, digits, layout, machine, markdown, shape
from tables import by_size

KINDS = ("batch norm", "+ ReLU", "+ add + ReLU")
SHORT = ((5, 5), (32, 64, 56, 56), (32, 256, 56, 56), (64, 512, 7, 7))
HEADS = {
    "en": ["shape", "layout", "stock, ms", "accelerated", "module", "fused + ReLU", "fused + add + ReLU"],
    "zh": ["形状", "布局", "PyTorch，毫秒", "accelerate", "模块", "融合 ReLU", "融合加法与 ReLU"],
}
NOTES = {
    "en": "{cpu}, {threads} threads, {kernels}, PyTorch {torch}, commit {commit}. Forward + backward of a layer "
    "through autograd; how many times faster than PyTorch's own (medians of interleaved repeats); below 1 PyTorch is "
    "faster. The last two columns: our module with activation and residual, against PyTorch's batch norm, add and "
    "in-place ReLU.",
    "zh": "{cpu}，{threads} 个线程，{kernels}，PyTorch {torch}，提交 {commit}。经 autograd 的一层前向加反向，"
    "是 PyTorch 自身的多少倍（交错重复的中位数），小于 1 表示 PyTorch 更快。"
    "最后两列：我们带激活与残差的模块，对比 PyTorch 的批归一化、加法与原地 ReLU。",
}


def grouped(rows: list[Row]) -> list[dict[str, Row]]:
    """For each shape and layout, the row of each kind of layer."""
    found: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        found.setdefault((*row["shape"], row["layout"]), {})[row["kind"]] = row
    return list(found.values())


def ways(layers: Document, language: str, short: bool) -> str:
    """How many times faster each way is; in short, for a few shapes."""
    table = []
    for kinds in grouped([row for row in layers["rows"] if not short or tuple(row["shape"]) in SHORT]):
        plain = kinds["batch norm"]
        factors = [plain["times_faster"][way] for way in ("accelerated", "module")]
        factors += [kinds[kind]["times_faster"]["module"] for kind in KINDS[1:]]
        stock = f"{plain['median_s']['stock'] * 1e3:.3g}"
        table.append([shape(plain["shape"]), layout(plain), stock, *(f"{factor:.2f}" for factor in factors)])
    return f"{markdown(HEADS[language], table, 2)}\n\n{NOTES[language].format(**layers['machine'])}"


def accelerated(layers: Document) -> str:
    """PyTorch's times, and how many times faster they are accelerated."""
    head = ["shape", "layout", *(name for kind in KINDS for name in (f"{kind}, ms", "accel."))]
    table = []
    for kinds in grouped(by_size(layers["rows"])):
        first = kinds["batch norm"]
        pairs = [(kinds[k]["median_s"]["stock"] * 1e3, kinds[k]["times_faster"]["accelerated"]) for k in KINDS]
        cells = [cell for ms, factor in pairs for cell in (digits(ms), f"{factor:.2f}")]
        table.append([shape(first["shape"]), layout(first), *cells])
    return f"{markdown(head, table, 2)}\n\n{machine(layers)}; medians of interleaved repeats."
