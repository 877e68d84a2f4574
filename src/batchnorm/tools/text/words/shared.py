"""Words that terminal and page, or several commands, have in common."""

SHARED: dict[str, tuple[str, str]] = {
    "comma": (", ", "、"),
    "and": (" and ", " 和 "),
    "row": ("row {n}", "第 {n} 行"),
    "column": ("column", "列"),
    "channel": ("channel", "通道"),
    "mean": ("mean", "均值"),
    "std": ("std", "标准差"),
    "minimum": ("min", "最小"),
    "maximum": ("max", "最大"),
}
