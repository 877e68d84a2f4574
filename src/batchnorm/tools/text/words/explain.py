"""What the report of `explain` says in a terminal. Keys that differ in "column", "channel" and "all" say the same."""

EXPLAIN: dict[str, tuple[str, str]] = {
    # The title
    "title_of": ("Batch normalization of {source}", "{source}的批归一化"),
    "an_array": ("an array", "一个数组"),
    "the_example": ("the worked example", "示例表格"),
    "facts_table": ("{rows}, {columns} · {dtype} · eps {eps}", "{rows}，{columns} · {dtype} · eps {eps}"),
    "facts_array": (
        "shape {shape}, {channels} · {dtype} · eps {eps}",
        "形状 {shape}，{channels} · {dtype} · eps {eps}",
    ),
    "lead_all": (
        "Here, batch normalization standardizes all values together: it subtracts their mean and divides by their "
        "standard deviation. They then have a known scale, whatever their unit was.",
        "这里，批归一化把所有的数一起标准化：减去它们的均值，再除以它们的标准差。这样，无论原来用什么单位，它们都有"
        "已知的尺度。",
    ),
    # The drawing
    "drawn_before": ("before", "之前"),
    "drawn_after": ("after", "之后"),
    "numbers_one": ("1 value", "1 个数"),
    "numbers_many": ("{n} values", "{n} 个数"),
    "box": (
        "The box marks {which}. Its {values} have one mean and one variance, and they are all normalized with these "
        "two numbers.",
        "方框标出{which}：它的 {values}有一个均值和一个方差，并且都用这两个数归一化。",
    ),
    "box_one": (
        "The box marks {which}. Its only value is its mean, so it becomes 0.",
        "方框标出{which}：它唯一的数就是它的均值，因此变成 0。",
    ),
    "box_all": (
        "The box marks all {values}. They have one mean and one variance, and they are all normalized with these two "
        "numbers.",
        "方框标出全部 {values}：它们有一个均值和一个方差，并且都用这两个数归一化。",
    ),
    "bars": (
        "A bar is one channel of one sample and holds {values}. The solid bars belong to {which}. Together they give "
        "one mean and one variance, and all of their values are normalized with these two numbers.",
        "一条是一个样本的一个通道，有 {values}。实心的各条都属于{which}：它们合起来给出一个均值和一个方差，"
        "其中所有的数都用这两个数归一化。",
    ),
    # Which values are averaged together
    "own_column": (
        "Every column has a mean and a variance of its own. They are computed from its {values}, so {m} in the "
        "formulas.",
        "每一列都有自己的均值和方差，由这一列的 {values}算出，公式中 {m}。",
    ),
    "own_channel": (
        "Every channel has a mean and a variance of its own. They are computed from its {values}, so {m} in the "
        "formulas.",
        "每个通道都有自己的均值和方差，由这个通道的 {values}算出，公式中 {m}。",
    ),
    "own_all": (
        "All {values} have one mean and one variance together, so {m} in the formulas.",
        "全部 {values}共有一个均值和一个方差，公式中 {m}。",
    ),
    "gaps_all": (
        "Missing values are left out, so {least}.",
        "缺失的数不计入，因此 {least}。",
    ),
    "gaps_some": (
        "Missing values are left out, so {least} in {which}.",
        "缺失的数不计入，因此{which}的 {least}。",
    ),
    "axes": (
        "The array has the shape {shape}. {Kept}; {over}{product}.",
        "数组的形状是 {shape}：{kept}，{over}{product}。",
    ),
    "axes_all": (
        "The array has the shape {shape}, and it is averaged over all axes.",
        "数组的形状是 {shape}，对所有的轴求平均。",
    ),
    "axes_none": (
        "The array has the shape {shape}, and all its axes are kept: nothing is averaged.",
        "数组的形状是 {shape}，保留所有的轴：没有求平均。",
    ),
    "kept_axes_one": ("axis {axes} is kept and holds {channels}", "保留轴 {axes}（{channels}）"),
    "kept_axes_many": ("axes {axes} are kept and hold {channels}", "保留轴 {axes}（{channels}）"),
    "over_axes_one": ("axis {axes} is averaged over", "对轴 {axes} 求平均"),
    "over_axes_many": ("axes {axes} are averaged over", "对轴 {axes} 求平均"),
    # The formulas
    "formulas": ("The four formulas, with the numbers of {which}", "四个公式，代入{which}的数"),
    "formulas_all": ("The four formulas, with these numbers", "四个公式，代入这些数"),
    "for_the_first": ("for the first value", "第一个数"),
    "new_layer": ("a new layer has weight 1 and bias 0", "新的层 weight 为 1，bias 为 0"),
    "undoes": ("std and mean undo it", "用标准差和均值还原"),
    "divides_by_m": (
        "This variance divides by {m}, so it is called biased. Its square root is the standard deviation, {std}. "
        "A layer's running_var takes the unbiased variance instead, which divides by {less}: {product}.",
        "这个方差除以 {m}，称为有偏方差。它的平方根是标准差：{std}。层的 running_var 用的是无偏方差，它除以 "
        "{less}：{product}。",
    ),
    "no_spread": (
        "One value has no spread: its variance is 0, and a layer in training refuses such a batch.",
        "单独一个数没有离散程度：方差为 0，训练中的层会拒绝这样的批。",
    ),
    "no_variance": (
        "A value is NaN or infinite, or its square exceeds float64, so there is no variance.",
        "有的数是 NaN 或无穷，或者平方超出 float64，因此没有方差。",
    ),
    # The table
    "every_column": ("Every column, before and after", "每一列的之前与之后"),
    "every_channel": ("Every channel, before and after", "每个通道的之前与之后"),
    "every_all": ("All values, before and after", "所有的数的之前与之后"),
    "more_rows": (
        "{n} more are not shown. --rows all shows every one, and --json gives every number.",
        "还有 {n} 个没有列出。--rows all 列出全部，--json 给出所有数值。",
    ),
    "now_column": (
        "Every column now has mean 0 and standard deviation 1.",
        "现在每一列的均值都是 0，标准差都是 1。",
    ),
    "now_channel": (
        "Every channel now has mean 0 and standard deviation 1.",
        "现在每个通道的均值都是 0，标准差都是 1。",
    ),
    "now_all": ("Their mean is now 0, and their standard deviation is 1.", "现在它们的均值是 0，标准差是 1。"),
    "now_others_column_one": (
        "The other column now has mean 0 and standard deviation 1.",
        "其余一列现在均值为 0，标准差为 1。",
    ),
    "now_others_column_many": (
        "The other {n} columns now have mean 0 and standard deviation 1.",
        "其余 {n} 列现在均值都是 0，标准差都是 1。",
    ),
    "now_others_channel_one": (
        "The other channel now has mean 0 and standard deviation 1.",
        "其余一个通道现在均值为 0，标准差为 1。",
    ),
    "now_others_channel_many": (
        "The other {n} channels now have mean 0 and standard deviation 1.",
        "其余 {n} 个通道现在均值都是 0，标准差都是 1。",
    ),
    "exactly": (
        "More exactly, the mean is {mean}, and the standard deviation is {std} because eps makes it {formula}.",
        "更准确地说，均值{mean}，标准差{std}，因为 eps 使它成为 {formula}。",
    ),
    "exactly_rounded": (
        "More exactly, the mean is {mean}, and the standard deviation is {std} because eps makes it {formula} and "
        "because {dtype} rounds.",
        "更准确地说，均值{mean}，标准差{std}，因为 eps 使它成为 {formula}，而且 {dtype} 有舍入。",
    ),
    "mean_exact": ("0", "是 0"),
    "mean_near": ("at most {far} away from 0", "与 0 至多相差 {far}"),
    "std_exact": ("{std}", "是 {std}"),
    "std_range": ("between {low} and {high}", "在 {low} 与 {high} 之间"),
    # What to look at twice
    "tag NaN, inf": ("NaN, inf", "NaN, inf"),
    "tag overflow": ("overflow", "溢出"),
    "tag 1 value": ("1 value", "一个数"),
    "tag constant": ("constant", "恒定"),
    "tag near eps": ("near eps", "近 eps"),
    "tag 16-bit": ("16-bit", "16 位"),
    "tag float32": ("float32", "float32"),
    "tag float64": ("float64", "float64"),
    "tag outlier": ("outlier", "离群值"),
    "same_as": (
        "The same is true of {others}.",
        "{others}也是如此。",
    ),
    "all_others_column": ("every other column", "其他各列"),
    "all_others_channel": ("every other channel", "其他各通道"),
    "listed_more": ("{listed} and {n} more", "{listed} 和另外 {n} 个"),
    "is_nonfinite": (
        "{Who} holds {what} among its {m} values, so its mean or its variance is not a number, and its whole "
        "output is NaN.",
        "{who}的 {m} 个数中有 {what}，因此均值或方差不是数，输出全为 NaN。",
    ),
    "nan_count_one": ("1 NaN", "1 个 NaN"),
    "nan_count_many": ("{n} NaN", "{n} 个 NaN"),
    "infinite_count_one": ("1 infinity", "1 个无穷"),
    "infinite_count_many": ("{n} infinities", "{n} 个无穷"),
    "is_overflow": (
        "{Who} reaches {value}, whose square float64 cannot hold, so its whole output is NaN.",
        "{who}达到 {value}，它的平方 float64 存不下，因此输出全为 NaN。",
    ),
    "is_one_value": (
        "{Who} has one value. This value is its own mean and becomes 0, whatever it was. A layer in training refuses "
        "such a batch.",
        "{who}只有一个数。它就是自己的均值，无论是多少都变成 0。训练中的层会拒绝这样的批。",
    ),
    "is_constant": (
        "{Who} is {value} everywhere, so its variance is 0 and its whole output is 0.",
        "{who}处处是 {value}，因此方差为 0，输出全为 0。",
    ),
    "is_near_eps": (
        "{Who} has the variance {var}, which is not large beside {eps}. Its standard deviation therefore becomes "
        "{formula}, not 1. Scale its values up, or choose a smaller eps.",
        "{who}的方差是 {var}，与 {eps} 相比不够大，因此标准差成为 {formula}，而不是 1。请放大它的数值，"
        "或选更小的 eps。",
    ),
    "is_beyond": (
        "{Who} reaches {value}, but {format} ends at {end}.",
        "{who}达到 {value}，而 {format} 只到 {end}。",
    ),
    "is_coarse": (
        "Around the mean of {who}, neighboring numbers of {format} lie {steps} standard deviations apart, so different "
        "values become equal.",
        "在{who}的均值附近，{format} 相邻的数相距 {steps} 个标准差，因此不同的数会变得相等。",
    ),
    "would_be_coarse": (
        "Around the mean of {who}, neighboring numbers of {format} lie {steps} standard deviations apart. In {format}, "
        "different values would become equal.",
        "在{who}的均值附近，{format} 相邻的数相距 {steps} 个标准差。如果用 {format}，不同的数会变得相等。",
    ),
    "is_outlier": (
        "{Value} ({where}) lies far from the other values, which take up only {share} of the range and lie "
        "between {low} and {high} afterwards. Make sure that it is right, because it decides the mean and the "
        "standard deviation.",
        "{value}（{where}）远离其他的数，它们只占范围的 {share}，归一化之后都在 {low} 与 {high} 之间。请确认它没"
        "有错，因为它决定了均值和标准差。",
    ),
    "are_outliers": (
        "{Value} ({where}) and {more} more lie far from the other values, which take up only {share} of the "
        "range and lie between {low} and {high} afterwards. Make sure that these {n} are right, because they "
        "decide the mean and the standard deviation.",
        "{value}（{where}）和另外 {more} 个数远离其他的数，后者只占范围的 {share}，归一化之后都在 {low} 与 {high}"
        " 之间。请确认这 {n} 个数没有错，因为它们决定了均值和标准差。",
    ),
    # What is kept, and what is lost
    "nothing": ("–", "–"),
    "order_all": ("the order of the values", "数的顺序"),
    "distances_all": ("the relative distances of the values", "数的相对距离"),
    "shape_column": ("the shape of a column's distribution", "列的分布形状"),
    "shape_channel": ("the shape of a channel's distribution", "通道的分布形状"),
    "shape_all": ("the shape of the distribution", "分布的形状"),
    "pairs_all": ("{n} pairs of values", "{n} 对数"),
    "sampled_all": ("{n} sampled pairs of values", "抽取的 {n} 对数"),
    "none_finite_all": (
        "There are no two values to compare, because some are NaN or infinite.",
        "有的数是 NaN 或无穷，没有两个数可比。",
    ),
    "single_all": ("There is one value, so there is nothing to compare.", "只有一个数，无从比较。"),
    "pairs_column": ("{n} pairs of values in the same column", "同一列的 {n} 对数"),
    "pairs_channel": ("{n} pairs of values in the same channel", "同一通道的 {n} 对数"),
    "sampled_column": ("{n} sampled pairs of values in the same column", "同一列中抽取的 {n} 对数"),
    "sampled_channel": ("{n} sampled pairs of values in the same channel", "同一通道中抽取的 {n} 对数"),
    "sides_changed": (
        "Among the {pairs}, {n} neighbors in sorted order changed places.",
        "在{pairs}中，按大小排列的相邻两数有 {n} 处调换了位置。",
    ),
    "without_order_one": (
        "One of them is left out because it has NaN or infinity, and nothing is kept there.",
        "其中一个含 NaN 或无穷，没有计入；那里什么也没有保留。",
    ),
    "without_order_many": (
        "{n} of them are left out because they have NaN or infinity, and nothing is kept there.",
        "其中 {n} 个含 NaN 或无穷，没有计入；那里什么也没有保留。",
    ),
    "none_finite_column": (
        "No column without NaN and infinity has two values to compare.",
        "没有一列不含 NaN 和无穷，并且有两个数可比。",
    ),
    "none_finite_channel": (
        "No channel without NaN and infinity has two values to compare.",
        "没有一个通道不含 NaN 和无穷，并且有两个数可比。",
    ),
    "single_column": (
        "A column has one value, so there is nothing to compare.",
        "一列只有一个数，无从比较。",
    ),
    "single_channel": (
        "A channel has one value, so there is nothing to compare.",
        "一个通道只有一个数，无从比较。",
    ),
    "same_place": ("Every value keeps its place exactly.", "每个数的位置都完全不变。"),
    "rounded_place": (
        "No value moved by more than {moved} of the range, and that is rounding.",
        "没有一个数移动超过范围的 {moved}，这只是舍入。",
    ),
    "moved_place": (
        "A value moved by {moved} of the range, which is more than rounding explains.",
        "有的数移动了范围的 {moved}，超出舍入所能解释的。",
    ),
    "side_ends": ("from {low} to {high}", "从 {low} 到 {high}"),
    "side_skewness": ("skewness {skewness}", "偏度 {skewness}"),
    "not_normal_all": (
        "Mean 0 and variance 1 do not make the values normally distributed: the histogram above keeps its shape, and "
        "the skewness was {before} before and is {after} now. (A normal distribution looks like a bell, and its "
        "skewness is 0.)",
        "均值 0、方差 1 并不会使这些数服从正态分布：上面的直方图形状不变，偏度之前是 {before}，之后还是 {after}。"
        "（正态分布是钟形的，偏度为 0。）",
    ),
    "shape_rounded_all": (
        "Rounding moved some values: the skewness was {before} before and is {after} after.",
        "舍入移动了一些数：偏度之前是 {before}，之后是 {after}。",
    ),
    "shape_rounded": (
        "Rounding moved some values of {which}: the skewness was {before} before and is {after} after.",
        "舍入移动了{which}的一些数：偏度之前是 {before}，之后是 {after}。",
    ),
    "no_shape_all": (
        "The values are all the same or not all finite, so there is no shape to compare.",
        "这些数全都相同，或者不全是有限的数，因此没有形状可比。",
    ),
    "pair_equal_now": (
        "Before, {a} ({a_at}) was greater than {b} ({b_at}). Now both are {after}.",
        "之前，{a}（{a_at}）大于 {b}（{b_at}）；现在两者都是 {after}。",
    ),
    "pair_smaller_now": (
        "Before, {a} ({a_at}) was greater than {b} ({b_at}). Now it is smaller: {a_after} < {b_after}.",
        "之前，{a}（{a_at}）大于 {b}（{b_at}）；现在反而更小：{a_after} < {b_after}。",
    ),
    "pair_different_now": (
        "Before, {a} ({a_at}) and {b} ({b_at}) were equal. Now they are {a_after} and {b_after}.",
        "之前，{a}（{a_at}）等于 {b}（{b_at}）；现在它们是 {a_after} 和 {b_after}。",
    ),
    "only_one_column": ("There is only one column, so no two columns can be compared.", "只有一列，没有两列可比。"),
    "only_one_channel": (
        "There is only one channel, so no two channels can be compared.",
        "只有一个通道，没有两个通道可比。",
    ),
    "few_column": (
        "Fewer than two columns are free of NaN and infinity, so no two columns can be compared.",
        "不含 NaN 和无穷的不到两列，没有两列可比。",
    ),
    "few_channel": (
        "Fewer than two channels are free of NaN and infinity, so no two channels can be compared.",
        "不含 NaN 和无穷的不到两个通道，没有两个通道可比。",
    ),
    # What to conclude
    "scale_column_but": (
        "The columns without a warning now have the same scale, so none of them weighs more because of its unit.",
        "没有警告的各列现在有相同的尺度，没有哪一列因为单位而占更大的分量。",
    ),
    "scale_channel_but": (
        "The channels without a warning now have the same scale, so none of them weighs more because its numbers are "
        "larger.",
        "没有警告的各通道现在有相同的尺度，没有哪一个因为数值更大而占更大的分量。",
    ),
    "scale_all": (
        "The values now have a known scale, whatever their unit was.",
        "无论原来用什么单位，这些数现在都有已知的尺度。",
    ),
    "compare_all": ("You can compare these values with each other as before.", "这些数彼此仍然可以比较。"),
    "stays_outlier": (
        "Skew and outliers stay, and you have an outlier. If it is right but troubles you, transform the values first, "
        "for example with a logarithm.",
        "偏斜和离群值都会留下，而你的数据中有离群值。如果它没有错但有妨碍，请先变换这些数，例如取对数。",
    ),
    "undone_all": (
        "A layer's weight and bias can undo all of it. With {weight} and {bias}, "
        "the values become {values} again. So the output of a trained layer need not have mean 0 and variance 1.",
        "层的 weight 和 bias 可以把这一切还原。取 {weight}，{bias}，这些数"
        "又变回 {values}。所以，训练过的层的输出，均值不一定是 0，方差也不一定是 1。",
    ),
    "next_page": ("shows this as a page to play with.", "把这些内容显示成可以动手操作的网页。"),
    # The command
    "page_written": ("{file}: open it in a browser.", "{file}：请用浏览器打开它。"),
}
