"""Write the speed tables of the READMEs from the results of run.py core.

python benchmarks/render.py benchmarks/results/core.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from batchnorm.bench.document import read
from batchnorm.bench.ratios import by_shape

ROOT = Path(__file__).parent.parent
KINDS = ("forward", "evaluation", "backward")
PAGES = {
    "README.md": (
        ["shape", "layout", "forward / copy", "backward / copy", "forward", "evaluation", "backward"],
        "{cpu}, {threads} threads, {kernels}, PyTorch {torch}, commit {commit}; medians, new outputs for both. "
        "Third and fourth column: time as a multiple of a plain copy of the input. "
        "The last three: PyTorch's time divided by ours; below 1 PyTorch is faster.",
    ),
    "README.zh-CN.md": (
        ["形状", "布局", "前向 / 复制", "反向 / 复制", "前向", "评估", "反向"],
        "{cpu}，{threads} 个线程，{kernels}，PyTorch {torch}，提交 {commit}；取中位数，双方都写入新分配的输出。"
        "第三、四列：耗时是单纯复制输入的几倍。后三列：PyTorch 的耗时除以我们的耗时，小于 1 表示 PyTorch 更快。",
    ),
}


def cells(row: dict) -> list[str]:
    t = row["median_s"]
    shape = "×".join(map(str, row["shape"]))
    to_copy = [f"{t[kind] / t['copy']:.1f}" for kind in ("forward", "backward")]
    to_torch = [f"{t[kind + ' torch'] / t[kind]:.1f}" for kind in KINDS]
    return [shape, row["layout"].replace("_", "-"), *to_copy, *to_torch]


def main() -> None:
    result = by_shape(read(Path(sys.argv[1])))
    for page, (head, note) in PAGES.items():
        lines = [head, ["---", "---"] + ["---:"] * (len(head) - 2), *map(cells, result["rows"])]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        path = ROOT / page
        before, rest = path.read_text().split("<!-- speed-table -->")
        after = rest.split("<!-- /speed-table -->")[1]
        filled = f"{table}\n\n{note.format(**result['machine'])}"
        path.write_text(f"{before}<!-- speed-table -->\n\n{filled}\n\n<!-- /speed-table -->{after}")


if __name__ == "__main__":
    main()
