"""What only the page of `explain` says."""

PAGE: dict[str, tuple[str, str]] = {
    "title": ("Batch normalization, number by number", "批归一化：逐个数字看"),
    "language": ("中文", "English"),
    "tensor": ("Numbers", "数据"),
    "yours": ("Your data", "你的数据"),
    "table": ("the worked example, 5 × 5", "示例表格，5 × 5"),
    "sequences": ("three sequences", "三个序列"),
    "images": ("four small images", "四张小图像"),
    "volumes": ("two small volumes", "两个小体数据"),
    "normalization": ("Normalization", "归一化"),
    "kind_1d": ("1d", "1d"),
    "kind_2d": ("2d", "2d"),
    "kind_3d": ("3d", "3d"),
    "kind_axis": ("any axis", "任意轴"),
    "kind_layer": ("layer", "层"),
    "kind_group": ("group", "组"),
    "kind_instance": ("instance", "实例"),
    "batchNorms": ("Batch norm", "批归一化"),
    "others": ("For comparison", "对比"),
    "keptAxes": ("Axes kept", "保留的轴"),
    "groupCount": ("Groups", "组数"),
    "batchSize": ("Batch size", "批大小"),
    "before": ("Before: x", "之前：x"),
    "after": ("After: y", "之后：y"),
    "effects": ("Before and after", "之前与之后"),
    "gamma": ("weight γ", "缩放 γ"),
    "beta": ("bias β", "平移 β"),
    "eps": ("eps ε", "eps ε"),
    "reset": ("Start again", "重新开始"),
    "inside": ("Inside {group}", "{group} 之内"),
    "across": ("At the same place in every {unit}", "各{unit}的同一位置"),
    "running": ("Training and evaluation", "训练与评估"),
    "momentum": ("momentum", "momentum"),
    "cumulative": ("mean over all batches", "所有批的平均"),
    "steps": ("batches", "批数"),
    "whole": ("Every {unit} of the whole array", "整个数组的各{unit}"),
    "averagedToo": (", averaged together with the chosen value", "，与选中的数一起求平均"),
    "sample": ("sample", "样本"),
    "group": ("group", "组"),
    "everything": ("everything", "全部数据"),
    "seen": (
        "The numbers have the shape {shape}. They form {count}, and each group has {m}.",
        "这些数的形状是 {shape}，分成{count}，每组 {m}。",
    ),
    "groups": ("{n} groups", "{n} 组"),
    "values": ("{n} values", "{n} 个数"),
    "oneValue": ("1 value", "1 个数"),
    "lit": (
        "{Group} is lit: its {values} have one mean and one variance.",
        "亮起的是{group}：它的 {values}有一个均值和一个方差。",
    ),
    "alone": (
        "A value alone in its group has no spread: its variance is 0, and the bias is all that comes out. A "
        "layer in training refuses such a batch.",
        "一组只有一个数就没有离散程度：方差为 0，输出只剩偏置。训练中的层会拒绝这样的批。",
    ),
    "cut": (
        "The page draws a corner, {drawn} of {shape}. What is not drawn is averaged all the same.",
        "这里只画出一角：{shape} 中的 {drawn}。没有画出的数同样参与平均。",
    ),
    "seenOne": (
        "The numbers have the shape {shape}. They form one group of {m}.",
        "这些数的形状是 {shape}，只有一组，共 {m}。",
    ),
    "excerpt": (
        "This page holds the corner {shape} of your array {whole}, and computes with it. The table at the "
        "end has the whole array's numbers.",
        "本页只包含数组 {whole} 的一角 {shape}，并用它计算。页末的表格是整个数组的数值。",
    ),
    "moved": (
        "{kind} takes {axes}, so the page shows {tensor} instead.",
        "{kind} 需要 {axes}，因此改为显示：{tensor}。",
    ),
    "axes_1d": ("(N, C) or (N, C, L)", "(N, C) 或 (N, C, L)"),
    "axes_2d": ("four axes (N, C, H, W)", "四个轴 (N, C, H, W)"),
    "axes_3d": ("five axes (N, C, D, H, W)", "五个轴 (N, C, D, H, W)"),
    "axes_layer": ("two axes or more", "至少两个轴"),
    "axes_group": ("two axes or more", "至少两个轴"),
    "axes_instance": ("two axes or more", "至少两个轴"),
    "divides": (
        "This variance divides by m = {m}, so it is called biased: {biased}. Dividing by m - 1 gives the "
        "unbiased variance {unbiased}, which a layer's running_var takes.",
        "这个方差除以 m = {m}，称为有偏方差：{biased}。除以 m - 1 得到无偏方差 {unbiased}，层的 running_var 用的"
        "就是它。",
    ),
    "histogramBefore": (
        "Histogram of {group} before: mean {mean}, standard deviation {std}.",
        "{group} 之前的直方图：均值 {mean}，标准差 {std}。",
    ),
    "histogramAfter": (
        "Histogram of {group} after: mean {mean}, standard deviation {std}.",
        "{group} 之后的直方图：均值 {mean}，标准差 {std}。",
    ),
    "slopesInside": ("Lines from the values of {group} before to after.", "{group} 的数从之前到之后的连线。"),
    "slopesAcross": (
        "Lines from the values at the chosen place of every group, before to after.",
        "每组同一位置的数从之前到之后的连线。",
    ),
    "shownSome": ("{n} of {all} lines drawn.", "画出 {all} 条线中的 {n} 条。"),
    "perBatch": (
        "Each batch takes the next {b} of {n} samples, and starts over after the last. The charts show the running "
        "statistics over {steps} batches.",
        "每批依次取 {n} 个样本中的下 {b} 个，循环往复。图中是 {steps} 批之内滑动统计量的变化。",
    ),
    "runningMean": ("running_mean", "running_mean"),
    "runningVar": ("running_var", "running_var"),
    "unbiased": ("unbiased", "无偏"),
    "biased": ("biased", "有偏"),
    "batchDots": ("one batch", "单个批"),
    "wholeTarget": ("all samples", "所有样本"),
    "meanChart": (
        "running_mean over the batches: {value} at the end, {target} for all samples.",
        "running_mean 随批次的变化：最后为 {value}，所有样本为 {target}。",
    ),
    "varChart": (
        "running_var over the batches: unbiased {unbiased}, biased {biased} at the end.",
        "running_var 随批次的变化：最后无偏 {unbiased}，有偏 {biased}。",
    ),
    "trainingGives": ("Training (this batch's statistics)", "训练（用这一批的统计量）"),
    "evaluationGives": ("Evaluation (running statistics)", "评估（用滑动统计量）"),
    "chosenValue": (
        "The chosen x = {x} becomes one number in training and another in evaluation.",
        "选中的 x = {x} 在训练和评估中分别变成这样。",
    ),
    "noRunning": (
        "{kind} has no running statistics: it computes the same in training and in evaluation, from each sample alone.",
        "{kind} 没有滑动统计量：训练和评估的计算相同，都只看单个样本。",
    ),
    "noBatchAxis": (
        "Axis 0, the batch, is kept here: no channel outlives its batch, so there is nothing to remember.",
        "这里保留了批所在的轴 0：没有通道能延续到下一批，因此没有什么需要记住。",
    ),
    "refusedOne": (
        "A batch with one value in the channel has variance 0; a layer in training refuses it. Make the batch larger.",
        "通道在一批中只有一个数时方差为 0，训练中的层会拒绝它。请增大批大小。",
    ),
    "moreRows": (
        "{n} more; batchnorm explain --rows all shows every one.",
        "还有 {n} 个；batchnorm explain --rows all 显示全部。",
    ),
    "non-finite": ("NaN or infinity: all its output is NaN", "含 NaN 或无穷：输出全为 NaN"),
    "overflow": ("its squares overflow float64", "平方超出 float64"),
    "one value": ("one value: the output is the bias", "只有一个数：输出就是偏置"),
    "constant": ("constant: the output is the bias", "恒定：输出就是偏置"),
    "near eps": (
        "its variance is not large beside eps: std after stays below 1",
        "方差与 eps 相比不够大：之后的标准差小于 1",
    ),
    "float16 range": ("beyond float16's range", "超出 float16 的范围"),
    "float16 steps": ("float16's steps are coarse here", "float16 在此处步长太大"),
    "bfloat16 range": ("beyond bfloat16's range", "超出 bfloat16 的范围"),
    "bfloat16 steps": ("bfloat16's steps are coarse here", "bfloat16 在此处步长太大"),
    "float32 steps": ("float32's steps are coarse here", "float32 在此处步长太大"),
    "float64 steps": ("float64's steps are coarse here", "float64 在此处步长太大"),
    "how": (
        "This page computes in float64, in two passes, and rounds the results of float32 data once. The library's "
        "tests compare its numbers with those of the library.",
        "本页用 float64 计算，两遍求和；float32 数据的结果舍入一次。本库的测试把这些数与本库的结果核对。",
    ),
    "source": (
        "The layer: S. Ioffe and C. Szegedy, 2015, arXiv:1502.03167. Layer norm: arXiv:1607.06450. Instance "
        "norm: arXiv:1607.08022. Group norm: arXiv:1803.08494.",
        "批归一化：S. Ioffe 与 C. Szegedy, 2015, arXiv:1502.03167。层归一化：arXiv:1607.06450。实例归一化：ar"
        "Xiv:1607.08022。组归一化：arXiv:1803.08494。",
    ),
    "play": (
        "Point at a number, or move with the arrow keys. Every value that is averaged with it lights up, and the "
        "formulas show what happens to it.",
        "把指针移到一个数上，或用方向键移动。与它一起求平均的数都会亮起，公式显示它如何变化。",
    ),
    "missing": ("missing", "缺失"),
    "choose": ("Another layer, other numbers", "换一种层，换一些数"),
    "pairs_in": ("{n} pairs of values in {group}", "{group}的 {n} 对数"),
    "order_turned": (
        "The weight is negative, so the order is turned round: {n} of {pairs} changed their order.",
        "缩放为负，因此顺序颠倒：{pairs}中有 {n} 对调换了大小。",
    ),
    "order_ended": (
        "The weight is 0, so all values have become equal.",
        "缩放为 0，因此所有的数都变得相等。",
    ),
    "order_one": ("There is one value, so there is nothing to compare.", "只有一个数，无从比较。"),
    "order_sample": ("the order inside a sample", "样本内的顺序"),
    "order_group": ("the order inside a group", "组内的顺序"),
    "distances_sample": ("the relative distances inside a sample", "样本内的相对距离"),
    "distances_group": ("the relative distances inside a group", "组内的相对距离"),
    "between_sample": ("comparisons between samples", "样本与样本的比较"),
    "between_group": ("comparisons between groups", "组与组的比较"),
    "mirrored": (
        "The negative weight mirrors the histogram: the skewness was {before} before and is {after} now.",
        "负的缩放把直方图左右颠倒：偏度之前是 {before}，现在是 {after}。",
    ),
    "between_none": ("There is only one group, so all values can still be compared.", "只有一组，所有的数仍可比较。"),
    "between_pair": (
        "Before, {a} was greater than {b}. Now it is not: they are {c} and {d}.",
        "之前 {a} 大于 {b}；现在不是了：它们是 {c} 和 {d}。",
    ),
    "between_same": (
        "Before, {a} was greater than {b}. Now both are {c}.",
        "之前 {a} 大于 {b}；现在两者都是 {c}。",
    ),
    "do_not_compare_sample": (
        "A value now says only where it stands in its own sample, so do not compare it with a value of another sample: "
        "{share} of {such} come out differently now.",
        "现在一个数只说明它在自己那个样本中的位置，所以不要拿它与别的样本的数比较：{such}中有 {share} 结果变了。",
    ),
    "do_not_compare_group": (
        "A value now says only where it stands in its own group, so do not compare it with a value of another group: "
        "{share} of {such} come out differently now.",
        "现在一个数只说明它在自己那一组中的位置，所以不要拿它与别的组的数比较：{such}中有 {share} 结果变了。",
    ),
    "alike_sample": (
        "Every comparison comes out as before, because these samples were alike already.",
        "每个比较的结果都和以前一样，因为这些样本本来就相像。",
    ),
    "alike_group": (
        "Every comparison comes out as before, because these groups were alike already.",
        "每个比较的结果都和以前一样，因为这些组本来就相像。",
    ),
    "scale_sample": ("All samples now have the same scale.", "各样本现在有相同的尺度。"),
    "scale_group": ("All groups now have the same scale.", "各组现在有相同的尺度。"),
    "compare_sample": (
        "You can compare values inside a sample, but not values of two samples.",
        "同一样本的数可以比较，两个样本的数不能比较。",
    ),
    "compare_group": (
        "You can compare values inside a group, but not values of two groups.",
        "同一组的数可以比较，两个组的数不能比较。",
    ),
    "compare_everything": ("You can compare all values with each other as before.", "所有的数彼此仍然可以比较。"),
    "undo": ("Undo it", "还原"),
    "undo_title": (
        "This sets the weight to the standard deviation and the bias to the mean of the lit values.",
        "把缩放设为亮起的数的标准差，把平移设为它们的均值。",
    ),
    "outlier": ("An outlier squeezes the others.", "有离群值挤压其他的数。"),
}
