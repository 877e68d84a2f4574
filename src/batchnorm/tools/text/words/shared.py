"""Words that terminal and page, or several commands, have in common."""

SHARED: dict[str, tuple[str, str]] = {
    "comma": (", ", "、"),
    "file_written": ("{file}: written", "{file}：已写入"),
    "and": (" and ", " 和 "),
    "note": ("Note: {text}.", "注：{text}。"),
    "row": ("row {n}", "第 {n} 行"),
    "rows_one": ("1 row", "1 行"),
    "rows_many": ("{n} rows", "{n} 行"),
    "column": ("column", "列"),
    "columns_one": ("1 column", "1 列"),
    "columns_many": ("{n} columns", "{n} 列"),
    "column_number": ("column {index}", "第 {index} 列"),
    "column_name": ("column {name}", "列 {name}"),
    "column_both": ("column {index} {name}", "第 {index} 列 {name}"),
    "channel": ("channel", "通道"),
    "channels_one": ("1 channel", "1 个通道"),
    "channels_many": ("{n} channels", "{n} 个通道"),
    "channel_number": ("channel {index}", "通道 {index}"),
    "channel_name": ("channel {name}", "通道 {name}"),
    "channel_both": ("channel {index} {name}", "通道 {index} {name}"),
    "sample_number": ("sample {n}", "样本 {n}"),
    "cell": ("{where}, row {n}", "{where}，第 {n} 行"),
    "mean": ("mean", "均值"),
    "std": ("std", "标准差"),
    "minimum": ("min", "最小"),
    "maximum": ("max", "最大"),
    "averaged": ("Which values are averaged together", "哪些数一起求平均"),
    "found": ("What is kept, and what is lost", "保留了什么，失去了什么"),
    "lead_column": (
        "Batch normalization standardizes every column by itself: it subtracts the column's mean and divides by the "
        "column's standard deviation. All columns then have the same scale, whatever their units were. A neural "
        "network does this between its layers because it then learns in fewer steps.",
        "批归一化把每一列单独标准化：减去这一列的均值，再除以这一列的标准差。这样，无论原来用什么单位，各列都有相同的"
        "尺度。神经网络在层与层之间这样做，因为这样用更少的步数就能学会。",
    ),
    "lead_channel": (
        "Batch normalization standardizes every channel by itself: it subtracts the channel's mean and divides by the "
        "channel's standard deviation. All channels then have the same scale. A neural network does this between its "
        "layers because it then learns in fewer steps.",
        "批归一化把每个通道单独标准化：减去这个通道的均值，再除以这个通道的标准差。这样，各通道都有相同的尺度。"
        "神经网络在层与层之间这样做，因为这样用更少的步数就能学会。",
    ),
    "kept": ("kept", "保留"),
    "changed": ("changed", "改变"),
    "lost": ("lost", "失去"),
    "no_side_changed": (
        "The smallest value is still the smallest: none of the {pairs} changed its order.",
        "最小的仍然最小：{pairs}中没有一对的大小顺序改变。",
    ),
    "rounded_equal_one": ("Rounding made one pair equal.", "舍入使其中一对变得相等。"),
    "rounded_equal_many": ("Rounding made {n} pairs equal.", "舍入使其中 {n} 对变得相等。"),
    "lies": (
        "Before, {value} was {fraction} of the way from {low} to {high}. Now {value_after} is {fraction_after} "
        "of the way from {low_after} to {high_after}.",
        "之前，{value} 位于从 {low} 到 {high} 的 {fraction} 处；现在，{value_after} 位于从 {low_after} 到 "
        "{high_after} 的 {fraction_after} 处。",
    ),
    "not_normal": (
        "Mean 0 and variance 1 do not make the values of {which} normally distributed: the histogram above keeps its "
        "shape, and the skewness was {before} before and is {after} now. (A normal distribution looks like a bell, and "
        "its skewness is 0.)",
        "均值 0、方差 1 并不会使{which}的数服从正态分布：上面的直方图形状不变，偏度之前是 {before}，之后还是 {after}。"
        "（正态分布是钟形的，偏度为 0。）",
    ),
    "no_shape": (
        "The values of {which} are all the same or not all finite, so there is no shape to compare.",
        "{which}的数全都相同，或者不全是有限的数，因此没有形状可比。",
    ),
    "do_not_compare_column": (
        "A value now says only where it stands in its own column, so do not compare it with a value of another column: "
        "{share} of {such} come out differently now.",
        "现在一个数只说明它在自己那一列中的位置，所以不要拿它与别的列的数比较：{such}中有 {share} 结果变了。",
    ),
    "do_not_compare_channel": (
        "A value now says only where it stands in its own channel, so do not compare it with a value of another "
        "channel: {share} of {such} come out differently now.",
        "现在一个数只说明它在自己那个通道中的位置，所以不要拿它与别的通道的数比较：{such}中有 {share} 结果变了。",
    ),
    "such_whole": ("these comparisons", "这样的比较"),
    "such_sampled": ("a sample of these comparisons", "抽取的这样的比较"),
    "conclude": ("What to conclude", "结论"),
    "scale_column": (
        "All columns now have the same scale, so none of them weighs more because of its unit.",
        "各列现在有相同的尺度，没有哪一列因为单位而占更大的分量。",
    ),
    "scale_channel": (
        "All channels now have the same scale, so none of them weighs more because its numbers are larger.",
        "各通道现在有相同的尺度，没有哪一个因为数值更大而占更大的分量。",
    ),
    "compare_column": (
        "You can compare values inside a column, but not values of two columns.",
        "同一列的数可以比较，两列的数不能比较。",
    ),
    "compare_channel": (
        "You can compare values inside a channel, but not values of two channels.",
        "同一通道的数可以比较，两个通道的数不能比较。",
    ),
    "stays": (
        "Skew and outliers stay. If they trouble you, transform the values first, for example with a logarithm.",
        "偏斜和离群值都会留下。如果它们造成妨碍，请先变换这些数，例如取对数。",
    ),
    "undone": (
        "A layer's weight and bias can undo all of it. With {weight} and {bias}, "
        "{which} becomes {values} again. So the output of a trained layer need not have mean 0 and variance 1.",
        "层的 weight 和 bias 可以把这一切还原。取 {weight}，{bias}，{which}"
        "又变回 {values}。所以，训练过的层的输出，均值不一定是 0，方差也不一定是 1。",
    ),
    "where_next": ("Where to go from here", "接下来看什么"),
    "next_own": (
        "explains a file of yours, such as a .csv, .npy or .parquet.",
        "解释你自己的文件，例如 .csv、.npy 或 .parquet。",
    ),
    "next_why": ("shows with experiments what a network gains by it.", "用实验说明网络从中得到什么。"),
    "next_tutorial": ("leads from five rows of numbers to a trained network.", "从五行数字讲到训练好的网络。"),
    "tutorial": ("docs/tutorial.md", "docs/tutorial.zh-CN.md"),
    "order_column": ("the order inside a column", "列内的顺序"),
    "order_channel": ("the order inside a channel", "通道内的顺序"),
    "distances_column": ("the relative distances inside a column", "列内的相对距离"),
    "distances_channel": ("the relative distances inside a channel", "通道内的相对距离"),
    "between_column": ("comparisons between columns", "列与列的比较"),
    "between_channel": ("comparisons between channels", "通道与通道的比较"),
    "alike_column": (
        "Every comparison comes out as before, because these columns were alike already.",
        "每个比较的结果都和以前一样，因为这些列本来就相像。",
    ),
    "alike_channel": (
        "Every comparison comes out as before, because these channels were alike already.",
        "每个比较的结果都和以前一样，因为这些通道本来就相像。",
    ),
}
