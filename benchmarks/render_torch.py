"""Write the tables of PyTorch's layers into the documents from a result of torch_layers.py.

python benchmarks/render_torch.py benchmarks/results/torch_layers.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- torch-speed-table -->", "<!-- /torch-speed-table -->"
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
SHORT = ((5, 5), (32, 64, 56, 56), (32, 256, 56, 56), (64, 512, 7, 7))
PAGES = {"README.md": ("en", SHORT), "README.zh-CN.md": ("zh", SHORT), "docs/pytorch.md": ("en", None)}


def lines(rows: list[dict], language: str, shapes: tuple[tuple[int, ...], ...] | None) -> list[str]:
    """The table, a line for each shape and layout."""
    grouped: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        if shapes is None or tuple(row["shape"]) in shapes:
            grouped.setdefault((tuple(row["shape"]), row["layout"]), {})[row["kind"]] = row
    head = HEADS[language]
    table = [head, ["---", "---"] + ["---:"] * (len(head) - 2)]
    for (shape, layout), kinds in grouped.items():
        plain = kinds["batch norm"]
        factors = [plain["times_faster"][way] for way in ("accelerated", "module")]
        factors += [kinds[kind]["times_faster"]["module"] for kind in ("+ ReLU", "+ add + ReLU")]
        stock = f"{plain['median_s']['stock'] * 1e3:.3g}"
        table.append(["×".join(map(str, shape)), layout.replace("_", "-"), stock, *[f"{f:.2f}" for f in factors]])
    return ["| " + " | ".join(cells) + " |" for cells in table]


def main() -> None:
    result = json.loads(Path(sys.argv[1]).read_text())
    for page, (language, shapes) in PAGES.items():
        path = ROOT / page
        before, rest = path.read_text().split(BEGIN)
        after = rest.split(END)[1]
        note = NOTES[language].format(**result["machine"])
        table = "\n".join(lines(result["rows"], language, shapes))
        path.write_text(f"{before}{BEGIN}\n\n{table}\n\n{note}\n\n{END}{after}")


if __name__ == "__main__":
    main()
