"""What the report of `why` says, in a terminal and on its page."""

WHY: dict[str, tuple[str, str]] = {
    # the frame of the report
    "why.title": ("Why batch normalization?", "为什么要用批归一化？"),
    "why.contents": ("Experiments", "实验"),
    "why.intro": (
        "Each experiment trains small networks with the layers of batchnorm, and tests one claim of a paper. "
        "Networks that are compared have the same initial weights, the same batches and the same number of steps.",
        "每个实验用 batchnorm 的层训练几个小网络，检验论文的一个说法。"
        "互相比较的网络有相同的初始权重、相同的批和相同的步数。",
    ),
    "why.numbers": (
        "Each number is the mean over the seeds; the smallest and the largest follow in parentheses.",
        "每个数是各个种子的平均值，括号里是最小值和最大值。",
    ),
    "why.drawn": ("The figures show them as bars or as a band.", "在图中，它们画成误差线或色带。"),
    "why.clear": (
        "A difference is called clear if all seeds agree on its direction. With five seeds, chance alone does that one "
        "time in sixteen.",
        "所有种子的差别方向一致时，才称差别是明确的。用五个种子时，偶然出现这种情况的机会是十六分之一。",
    ),
    "why.chosen": (
        "We found the settings in trials on the digits, partly with the first of these seeds. The option --seeds 10 "
        "adds five seeds that had no part in that. A network that diverged has no answer right.",
        "各项设置是在手写数字上试出来的，部分用了这些种子中的前几个。选项 --seeds 10 会再加五个没有参与过的种子。"
        "发散的网络按全部答错计算。",
    ),
    "why.quick": (
        "This was a quick run, with fewer steps, settings and seeds. It suggests what a full run may find, but it "
        "proves nothing.",
        "这是一次快速运行，步数、设置和种子都较少。它只提示完整运行可能得到的结果，并不证明什么。",
    ),
    "why.quick_reading": ("If a full run agrees, this is how to read it:", "如果完整运行的结果一致，可以这样理解："),
    "why.facts": (
        "The data are {name}: {train} training images and {test} test images of {height}×{width} pixels. Each "
        "experiment ran with {seeds}. The versions are {versions}.",
        "数据是 {name}：{train} 张训练图像和 {test} 张测试图像，每张 {height}×{width} 像素。每个实验用了 {seeds}。"
        "版本：{versions}。",
    ),
    "why.ran": (
        "Each experiment ran with {seeds} on the data set {name}.",
        "每个实验在数据集 {name} 上用了 {seeds}。",
    ),
    "why.seeds": ("{n} seeds", "{n} 个种子"),
    "why.seed": ("one seed", "一个种子"),
    "why.details": ("Numbers and settings", "数值与设置"),
    "why.runs": ("{n} runs.", "共 {n} 次运行。"),
    "why.alone": ("To run this one alone:", "单独运行这个实验："),
    "why.against": ("{title} against {place}. {curves}.", "{title}，横轴：{place}。{curves}。"),
    "why.from_to": (
        "from {begins} at {first} to {ends} at {last}",
        "从 {first} 处的 {begins} 到 {last} 处的 {ends}",
    ),
    "why.no_numbers": ("no numbers", "没有数值"),
    # writing files
    "why.ask": (
        "Do you want the report with figures in {html}, and all numbers in {json}? [y/N] ",
        "要把带图的报告写入 {html}、把全部数值写入 {json} 吗？[y/N] ",
    ),
    "why.ask_page": ("Do you want the report with figures in {html}? [y/N] ", "要把带图的报告写入 {html} 吗？[y/N] "),
    "why.replaces": ("{files} exists already; a yes replaces it.", "{files} 已经存在，回答 y 会替换它。"),
    "why.unasked": (
        "No file was written. If you want the report with figures and all numbers, run the command again with "
        "{options}. A second run gives the same bits.",
        "没有写任何文件。要得到带图的报告和全部数值，请在命令后加上 {options} 再运行一次。再次运行的结果逐位相同。",
    ),
    "why.unasked_page": (
        "No file was written. If you want the report with figures, run the command again with {options}.",
        "没有写任何文件。要得到带图的报告，请在命令后加上 {options} 再运行一次。",
    ),
    "why.wrote": ("The command wrote {files}.", "已写入 {files}。"),
    "why.from_paper": (
        "The claim is from {authors} ({year}), arXiv:{arxiv}.",
        "这个说法出自 {authors} ({year})，arXiv:{arxiv}。",
    ),
    # verdicts: in short, and as a sentence, of a whole run and of a quick one
    "why.confirms": ("confirms the paper", "证实了论文的说法"),
    "why.confirms in part": ("confirms the paper in part", "部分证实了论文的说法"),
    "why.contradicts": ("contradicts the paper", "与论文的说法相反"),
    "why.no clear difference": ("no clear difference", "没有明确差别"),
    "why.one seed": ("one seed allows no judgement", "一个种子无法判断"),
    "why.quick confirms": ("suggests that the paper is right", "提示论文是对的"),
    "why.quick confirms in part": ("suggests that the paper is right in part", "提示论文部分正确"),
    "why.quick contradicts": ("suggests that the paper is wrong", "提示论文不对"),
    "why.quick no clear difference": ("suggests no clear difference", "提示没有明确差别"),
    "why.quick one seed": ("one seed allows no judgement", "一个种子无法判断"),
    "why.says confirms": ("This confirms the paper.", "这证实了论文的说法。"),
    "why.says confirms in part": ("This confirms the paper in part.", "这部分证实了论文的说法。"),
    "why.says contradicts": ("This contradicts the paper.", "这与论文的说法相反。"),
    "why.says no clear difference": (
        "This neither confirms nor contradicts the paper.",
        "这既不证实也不否定论文的说法。",
    ),
    "why.says one seed": ("One seed allows no judgement.", "只有一个种子，无法判断。"),
    "why.says quick confirms": ("This suggests that the paper is right.", "这提示论文的说法是对的。"),
    "why.says quick confirms in part": (
        "This suggests that the paper is right in part.",
        "这提示论文的说法部分正确。",
    ),
    "why.says quick contradicts": ("This suggests that the paper is wrong.", "这提示论文的说法不对。"),
    "why.says quick no clear difference": (
        "This suggests neither that the paper is right nor that it is wrong.",
        "这既不提示论文是对的，也不提示它不对。",
    ),
    "why.says quick one seed": ("One seed allows no judgement.", "只有一个种子，无法判断。"),
    # what several experiments say
    "why.unclear": ("The seeds do not agree on this difference.", "各个种子在这一差别上并不一致。"),
    "why.nothing": (
        "Beware: {who} learned next to nothing. It had {right} right, and guessing has 10 %. So this comparison does "
        "not say how much batch norm gains.",
        "请注意：{who}几乎什么也没学到。它答对 {right}，而瞎猜也能答对 10 %。"
        "因此这一比较不能说明批归一化的收益有多大。",
    ),
    "why.net with": ("the network with batch norm", "有批归一化的网络"),
    "why.net without": ("the network without batch norm", "没有批归一化的网络"),
    "why.net group": ("the network with group norm", "有组归一化的网络"),
    "why.net mask": ("the network with a mask", "有掩码的网络"),
    "why.net no mask": ("the network without a mask", "没有掩码的网络"),
    "why.none": ("none", "无"),
    # faster
    "why.faster.title": ("Faster and higher", "更快，也更高"),
    "why.faster.question": (
        "Does a network with batch norm learn in fewer steps, and does it end higher?",
        "有批归一化的网络是否用更少的步数学会，最终正确率是否更高？",
    ),
    "why.faster.reached": (
        "With batch norm the network reached {goal} % right on the test images {with}, and without it {without}.",
        "要答对 {goal} % 的测试图像，有批归一化的网络{with}，没有批归一化的网络{without}。",
    ),
    "why.faster.after": ("after {steps} steps", "用了 {steps} 步"),
    "why.faster.after_some": (
        "after {steps} steps in {n} of {of} seeds, but never in the others",
        "在 {of} 个种子中的 {n} 个上用了 {steps} 步，在其余种子上没有做到",
    ),
    "why.faster.never": ("in none of its {steps} steps", "在 {steps} 步内没有做到"),
    "why.faster.final": (
        "At the end, after {steps} steps, it had {with} right with batch norm, and {without} without it.",
        "最后，在 {steps} 步之后，有批归一化的网络答对 {with}，没有批归一化的网络答对 {without}。",
    ),
    "why.faster.both": (
        "The network with batch norm was there sooner and ended higher.",
        "有批归一化的网络更早达到，最终也更高。",
    ),
    "why.faster.sooner": (
        "The network with batch norm was there sooner, but it did not end clearly higher.",
        "有批归一化的网络更早达到，但最终没有明确地更高。",
    ),
    "why.faster.neither": (
        "The picture of the paper did not come out whole in these runs.",
        "在这些运行中，论文的结果没有完整重现。",
    ),
    "why.faster.rates": (
        "Each network used the best of three learning rates, which its loss on the training images chose: {with} with "
        "batch norm, and {without} without it.",
        "每个网络都用三个学习率中最好的一个，由训练图像上的损失选出：有批归一化时是 {with}，没有时是 {without}。",
    ),
    "why.faster.rising": (
        "The network without batch norm was still rising, so its last number is not its best.",
        "没有批归一化的网络仍在上升，所以最后的数不是它的最好成绩。",
    ),
    "why.faster.but": (
        "Sigmoids after small random weights learn slowly at first. A network of ReLUs, with weights of a fitting "
        "size, gains less: see learning-rates. A step with batch norm takes longer than one without it, so fewer "
        "steps do not mean as much less time.",
        "小随机权重之后的 sigmoid 起初学得慢。使用 ReLU 且权重大小合适的网络收益较小，见 learning-rates。"
        "有批归一化的一步比没有的一步更费时，所以步数不等于秒数。",
    ),
    # learning-rates
    "why.learning-rates.title": ("Larger learning rates", "更大的学习率"),
    "why.learning-rates.question": ("Does batch norm allow larger learning rates?", "批归一化是否允许更大的学习率？"),
    "why.learning-rates.reached": (
        "The largest learning rate at which the network had {goal} % right was {with} with batch norm. Without it, the "
        "largest was {without}.",
        "网络能答对 {goal} % 的最大学习率，有批归一化时：{with}；没有批归一化时：{without}。",
    ),
    "why.learning-rates.some": (
        "{rate} in {n} of {of} seeds, and none in the others",
        "在 {of} 个种子中的 {n} 个上是 {rate}，在其余种子上一个也没有",
    ),
    "why.learning-rates.best": (
        "At its best rate the network had {with} right with batch norm (rate {rate_with}), and {without} without it "
        "(rate {rate_without}).",
        "在各自最好的学习率下，有批归一化的网络答对 {with}（学习率 {rate_with}），没有的答对 {without}（学习率 "
        "{rate_without}）。",
    ),
    "why.learning-rates.wider": (
        "Batch norm trained at rates that ruin the same network without it.",
        "在会毁掉普通网络的学习率下，有批归一化的网络仍能训练。",
    ),
    "why.learning-rates.narrower": (
        "Batch norm narrowed the range of rates that work.",
        "批归一化缩小了可用学习率的范围。",
    ),
    "why.learning-rates.same": ("Both networks trained up to the same rates.", "两个网络能用的最大学习率相同。"),
    "why.learning-rates.diverged": (
        "Of {total} runs with batch norm, {with} diverged; of as many without it, {without} did.",
        "各 {total} 次运行中，有批归一化的发散 {with} 次，没有的发散 {without} 次。",
    ),
    "why.learning-rates.but": (
        "The larger rate may explain one part of a gain in accuracy, and the normalization itself another. How large "
        "each part is depends on the network, and a few hundred steps of a small one cannot settle it.",
        "正确率的提高可能一部分来自更大的学习率，一部分来自归一化本身。各占多少取决于网络，"
        "一个小网络的几百步无法给出定论。",
    ),
    # smoother-loss
    "why.smoother-loss.title": ("A smoother loss", "更平滑的损失"),
    "why.smoother-loss.question": (
        "Is the loss smoother along the gradient with batch norm?",
        "有批归一化时，损失沿梯度方向是否更平滑？",
    ),
    "why.smoother-loss.loss_range": (
        "On a walk along the gradient, the loss ranged over {with} with batch norm, and over {without} without it.",
        "沿梯度方向走一段，有批归一化时损失的变化范围是 {with}，没有时是 {without}。",
    ),
    "why.smoother-loss.gradient_change": (
        "The gradient changed by {with} (its l2 norm) with batch norm, and by {without} without it.",
        "梯度的变化（l2 范数）在有批归一化时是 {with}，没有时是 {without}。",
    ),
    "why.smoother-loss.relative_change": (
        "As a multiple of its own length, the gradient changed by {with} with batch norm, and by {without} without it.",
        "相对于自身的长度，梯度的变化在有批归一化时是 {with}，没有时是 {without}。",
    ),
    "why.smoother-loss.less": (
        "During training, loss and gradient changed less along a step with batch norm.",
        "训练途中，有批归一化时损失和梯度沿一步的变化更小。",
    ),
    "why.smoother-loss.more": (
        "During training, loss and gradient changed more along a step with batch norm.",
        "训练途中，有批归一化时损失和梯度沿一步的变化更大。",
    ),
    "why.smoother-loss.mixed": (
        "The measures did not all come out on one side.",
        "各项度量的结果并不都在同一边。",
    ),
    "why.smoother-loss.where": (
        "The curves show at which steps. At the first points nothing is learned yet, so they may look unlike the rest.",
        "曲线显示差别出现在哪些步。在最初几个点上，网络还什么都没学到，所以可能与其余部分不同。",
    ),
    "why.smoother-loss.but": (
        "Both networks take steps of the same sizes, but each starts from points of its own path, and the gradients "
        "of the two differ in length. That is why the relative change is measured as well. One line says nothing "
        "about other directions.",
        "两个网络走的步长相同，但各自从自己路径上的点出发，梯度的长度也各不相同，所以还度量了相对变化。"
        "一条直线不能说明其他方向。",
    ),
    # noise
    "why.noise.title": ("Noise after batch norm", "在批归一化之后加噪声"),
    "why.noise.question": (
        "Does batch norm help because it makes distributions steadier? Noise after it takes the steadiness away.",
        "批归一化有帮助，是因为它使分布更稳定吗？在它之后加噪声会消除这种稳定。",
    ),
    "why.noise.shift": (
        "With noise after batch norm, the mean of a unit moved by {noisy} standard deviations from one step to the "
        "next. Without batch norm it moved by {without}.",
        "在批归一化之后加噪声时，一个单元的均值每步移动 {noisy} 个标准差；没有批归一化时移动 {without} 个标准差。",
    ),
    "why.noise.right": (
        "During training, the network had {noisy} right with the noise, and {without} without batch norm.",
        "训练途中，有噪声的网络答对 {noisy}，没有批归一化的网络答对 {without}。",
    ),
    "why.noise.stays": (
        "The noisy network had the least steady distributions, and it still did better than the one without batch "
        "norm. So a steadier distribution cannot be what helped.",
        "有噪声的网络分布最不稳定，却仍然胜过没有批归一化的网络。所以起作用的不可能是更稳定的分布。",
    ),
    "why.noise.gone": (
        "The noise made the distributions less steady, and it cost more than the gain.",
        "噪声使分布更不稳定，损失超过了收益。",
    ),
    "why.noise.open": (
        "These runs do not separate the steadiness of the distributions from the gain.",
        "这些运行无法把分布的稳定与收益区分开。",
    ),
    "why.noise.cost": (
        "Compared with batch norm alone, the noise cost some accuracy.",
        "与只有批归一化相比，噪声使正确率有所下降。",
    ),
    "why.noise.gain": (
        "Compared with batch norm alone, the noise even added accuracy.",
        "与只有批归一化相比，噪声甚至提高了正确率。",
    ),
    "why.noise.free": (
        "Compared with batch norm alone, the noise cost no clear accuracy.",
        "与只有批归一化相比，噪声没有使正确率明确下降。",
    ),
    "why.noise.but": (
        "Steady means here that the mean of a unit stays from one batch to the next. Without batch norm this mean "
        "includes the chance of the batch. Another kind of shift, or more noise, may do otherwise.",
        "这里的稳定是指单元的均值在批与批之间保持不变。没有批归一化时，这个均值包含抽取批次的偶然性。"
        "另一种移动或更强的噪声，结果可能不同。",
    ),
    # scale
    "why.scale.title": ("Scales that stop mattering", "不再重要的尺度"),
    "why.scale.question": (
        "Do the scales of weights and inputs stop mattering?",
        "权重和输入的尺度是否不再重要？",
    ),
    "why.scale.exact": (
        "If the weights of one layer are multiplied by a, the outputs stay equal within {output}, and the gradient is "
        "divided by a within {gradient}.",
        "把一层的权重乘以 a，输出在 {output} 以内保持不变，梯度除以 a，误差在 {gradient} 以内。",
    ),
    "why.scale.weights": (
        "The worst scale of the weights cost {with} points of accuracy with batch norm, and {without} points without "
        "it.",
        "最坏的权重尺度使正确率在有批归一化时下降 {with} 个百分点，没有时下降 {without} 个百分点。",
    ),
    "why.scale.inputs": (
        "The worst scale or shift of the inputs cost {with} points with batch norm, and {without} points without it.",
        "最坏的输入缩放或平移使正确率在有批归一化时下降 {with} 个百分点，没有时下降 {without} 个百分点。",
    ),
    "why.scale.proven": (
        "The invariance is exact as long as eps is small beside the variance.",
        "只要 eps 与方差相比很小，这种不变性就是精确的。",
    ),
    "why.scale.broken": ("The invariance did not come out exact.", "这种不变性没有精确成立。"),
    "why.scale.less": (
        "In training, scales that ruin the network without batch norm cost the one with it less.",
        "在训练中，会毁掉普通网络的尺度对有批归一化的网络影响较小。",
    ),
    "why.scale.more": (
        "In training, scales cost the network with batch norm more.",
        "在训练中，尺度对有批归一化的网络影响更大。",
    ),
    "why.scale.mixed": (
        "In training, the two networks did not differ clearly everywhere.",
        "在训练中，两个网络并非处处都有明确差别。",
    ),
    "why.scale.still weights": (
        "The cost is not zero: scaled weights cost up to {points} points.",
        "影响并不为零：权重的缩放最多使正确率下降 {points} 个百分点。",
    ),
    "why.scale.still inputs": (
        "The cost is not zero: scaled or shifted inputs cost up to {points} points.",
        "影响并不为零：输入的缩放或平移最多使正确率下降 {points} 个百分点。",
    ),
    "why.scale.but": (
        "Larger weights get smaller gradients, so they learn more slowly at the same rate. A shift of the inputs drops "
        "out of every training step, but the running mean, which evaluation uses, lags behind it. Statistics that are "
        "gathered anew (recalibrated) show how much of a loss that is.",
        "较大的权重得到较小的梯度，所以在同样的学习率下学得更慢。输入的平移在每个训练步中都会消去，但评估所用的 "
        "running_mean 会滞后。"
        "重新收集的统计量（重新校准）显示其中有多少损失来自滞后。",
    ),
    # small-batches
    "why.small-batches.title": ("Small batches", "小批量"),
    "why.small-batches.question": (
        "Where do batches become too small for batch norm?",
        "批小到什么程度，批归一化就不再适用？",
    ),
    "why.small-batches.right": (
        "With batches of {size}, the network had {batch} right with batch norm, {group} with group norm, and {frozen} "
        "with batch norm whose statistics are frozen.",
        "批大小为 {size} 时，用批归一化的网络答对 {batch}，用组归一化的答对 {group}，统计量冻结的批归一化答对 "
        "{frozen}。",
    ),
    "why.small-batches.sizes": (
        "Of the batch sizes {sizes}, group norm was clearly better at {lost}, and batch norm was clearly better at "
        "{won}.",
        "在批大小 {sizes} 中，组归一化明确更好的有：{lost}；批归一化明确更好的有：{won}。",
    ),
    "why.small-batches.poor": (
        "With batches of {size}, the statistics of one batch are too poor to learn from, and they are unlike the "
        "running ones.",
        "批大小为 {size} 时，一个批的统计量太粗糙，难以从中学习，也不像滑动统计量。",
    ),
    "why.small-batches.enough": (
        "Even batches of {size} were enough for batch norm here.",
        "在这里，批大小为 {size} 对批归一化也足够了。",
    ),
    "why.small-batches.open": (
        "With batches of {size}, batch norm and group norm were not clearly apart.",
        "批大小为 {size} 时，批归一化与组归一化没有明确差别。",
    ),
    "why.small-batches.froze_well": ("It helped to freeze the statistics.", "冻结统计量有帮助。"),
    "why.small-batches.froze_badly": ("Freezing the statistics did harm.", "冻结统计量有害。"),
    "why.small-batches.froze": (
        "It made no clear difference to freeze the statistics.",
        "冻结统计量没有明确差别。",
    ),
    "why.small-batches.renorm": (
        "With batches of {size}, batch renormalization had {right} right.",
        "批大小为 {size} 时，批重归一化答对 {right}。",
    ),
    "why.small-batches.ghosts": (
        "With batches of {usual}, the network had {whole} right if the whole batch was normalized together, and "
        "{ghosts} if every {ghost} samples were normalized by themselves (ghost batches).",
        "批大小为 {usual} 时，整批一起归一化答对 {whole}，每 {ghost} 个样本单独归一化（ghost 批）答对 {ghosts}。",
    ),
    "why.small-batches.better": ("That is clearly better.", "这明确更好。"),
    "why.small-batches.worse": ("That is clearly worse.", "这明确更差。"),
    "why.small-batches.equal": ("That is no clear difference.", "这没有明确差别。"),
    "why.small-batches.but": (
        "What counts is the number of values behind each mean, and images bring many. In a fully connected network, "
        "a batch of 2 gives two values for each mean. In this convolutional network, it gives 128 in the first layer "
        "and 8 in the last, on the digits. All networks saw the same few images, so large batches took few steps. "
        "One rule set the learning rates of all networks; a separate rate for each might move single points.",
        "重要的是每个均值背后有多少个数，而图像带来很多。在全连接网络中，大小为 2 的批给每个均值两个数；在手写数字上，"
        "这个卷积网络的第一层有 128 个，最后一层有 8 个。所有网络看的是同样少量的图像，所以批越大步数越少。"
        "所有网络的学习率出自同一条规则；若各用各的学习率，个别点可能会移动。",
    ),
    # running-statistics
    "why.running-statistics.title": ("Training or running statistics", "训练统计量还是滑动统计量"),
    "why.running-statistics.question": (
        "Can the running statistics replace those of training?",
        "滑动统计量能否代替训练时的统计量？",
    ),
    "why.running-statistics.way": (
        "During training, with batches of {size}, the network had {running} right with the running statistics, "
        "and {fresh} with recalibrated ones.",
        "训练途中，批大小为 {size} 时，用滑动统计量的网络答对 {running}，用重新校准的答对 {fresh}。",
    ),
    "why.running-statistics.end": (
        "At the end, with batches of {size}, the network had {running} right with the running statistics, and {fresh} "
        "with recalibrated ones.",
        "训练结束时，批大小为 {size}，用滑动统计量的网络答对 {running}，用重新校准的答对 {fresh}。",
    ),
    "why.running-statistics.lag": (
        "During training, the running statistics lag behind the network.",
        "训练途中，滑动统计量落后于网络。",
    ),
    "why.running-statistics.lead": (
        "During training, the running statistics did better than fresh ones.",
        "训练途中，滑动统计量胜过新收集的。",
    ),
    "why.running-statistics.even": (
        "During training, the running statistics were not clearly worse than fresh ones.",
        "训练途中，滑动统计量没有明确地比新收集的差。",
    ),
    "why.running-statistics.noisy": (
        "At the end of a training with small batches they were too noisy.",
        "小批量训练结束时，它们噪声太大。",
    ),
    "why.running-statistics.good": (
        "At the end of a training with small batches they were the better ones.",
        "小批量训练结束时，它们反而更好。",
    ),
    "why.running-statistics.fine": (
        "At the end of a training with small batches they were no clear problem.",
        "小批量训练结束时，它们没有明确的问题。",
    ),
    "why.running-statistics.neighbors": (
        "Statistics of the test batch make an answer depend on the other images of the batch.",
        "用测试批的统计量，一个回答就取决于同批的其他图像。",
    ),
    "why.running-statistics.chance_worse": (
        "With batches of {size} they were clearly worse.",
        "批大小为 {size} 时，它们明确更差。",
    ),
    "why.running-statistics.chance_better": (
        "With batches of {size} they were clearly better all the same.",
        "尽管如此，批大小为 {size} 时，它们明确更好。",
    ),
    "why.running-statistics.chance": (
        "With batches of {size} they were not clearly worse.",
        "批大小为 {size} 时，它们没有明确更差。",
    ),
    "why.running-statistics.but": (
        "A larger momentum or a longer training changes the lag. The statistics of the training images are a good "
        "stand-in only as long as the test images are like them.",
        "momentum 更大或训练更久，滞后就不同。只有测试图像与训练图像相像时，训练图像的统计量才是好的替代。",
    ),
    # shifted-test
    "why.shifted-test.title": ("Other data than in training", "与训练不同的数据"),
    "why.shifted-test.question": (
        "Do new statistics repair the accuracy on a shifted test set?",
        "新的统计量能否修复在偏移测试集上的正确率？",
    ),
    "why.shifted-test.right": (
        "On images with the shift “{shift}”, the network had {before} right with its own statistics, and {after} "
        "with new ones.",
        "在“{shift}”的图像上，网络用原来的统计量答对 {before}，用新的统计量答对 {after}。",
    ),
    "why.shifted-test.guessing": (
        "That is no better than guessing, which has 10 %, so nothing was repaired there.",
        "这不比瞎猜的 10 % 更好，所以在那里什么也没有修复。",
    ),
    "why.shifted-test.count": (
        "New statistics were clearly better for {better} of {all} shifts, and clearly worse for {worse}.",
        "在 {all} 种偏移中，新统计量明确更好的有 {better} 种，明确更差的有 {worse} 种。",
    ),
    "why.shifted-test.repaired": (
        "New statistics from shifted images repaired part of what the shift had broken, and they needed no labels. "
        "They did so for {names}.",
        "来自偏移图像的新统计量不用标签就修复了偏移造成的一部分损害：{names}。",
    ),
    "why.shifted-test.unrepaired": (
        "New statistics from shifted images repaired nothing clearly.",
        "来自偏移图像的新统计量没有明确修复什么。",
    ),
    "why.shifted-test.harmed": ("They did harm for {names}.", "它们对以下偏移有害：{names}。"),
    "why.shifted-test.cost": (
        "On images like those of training, new statistics had a cost.",
        "在与训练相同的图像上，新统计量有代价。",
    ),
    "why.shifted-test.gain": (
        "On images like those of training, new statistics even brought a gain.",
        "在与训练相同的图像上，新统计量甚至带来收益。",
    ),
    "why.shifted-test.free": (
        "On images like those of training, new statistics had no clear cost.",
        "在与训练相同的图像上，新统计量没有明确的代价。",
    ),
    "why.shifted-test.lopsided": (
        "Images of two classes alone gave clearly worse statistics on {n} of {all} test sets, so the mix of classes "
        "must be that of the test.",
        "只用两个类别的图像，在 {all} 个测试集中的 {n} 个上得到明确更差的统计量，所以类别的比例必须与测试相同。",
    ),
    "why.shifted-test.mixed": (
        "Images of two classes alone did as well here, but nobody can count on that.",
        "在这里，只用两个类别的图像结果同样好，但不能指望总是如此。",
    ),
    "why.shifted-test.but": (
        "These shifts move whole images, which is what means and variances can undo. The experiment says nothing about "
        "shifts that change what the classes look like.",
        "这些偏移移动整幅图像，而这正是均值和方差能够消除的。实验没有说明改变各类别外观的偏移会怎样。",
    ),
    # padding
    "why.padding.title": ("Padding", "填充"),
    "why.padding.question": (
        "Does padding spoil the statistics if there is no mask?",
        "没有掩码时，填充是否会破坏统计量？",
    ),
    "why.padding.moved": (
        "If a batch is padded to {times} times its length, its outputs move by {mask} of the largest with a mask, and "
        "by {plain} without one.",
        "把一批数据填充到原长的 {times} 倍，有掩码时输出移动最大值的 {mask}，没有掩码时移动 {plain}。",
    ),
    "why.padding.after": (
        "After a training in which all batches were padded to {times} times their length, the network had {mask} right "
        "with a mask, and {plain} without one.",
        "在所有批都填充到原长 {times} 倍的训练之后，有掩码的网络答对 {mask}，没有掩码的答对 {plain}。",
    ),
    "why.padding.mixed": (
        "After a training in which each batch was padded to another length, the network had {mask} right with a mask, "
        "and {plain} without one.",
        "在每批填充到不同长度的训练之后，有掩码的网络答对 {mask}，没有掩码的答对 {plain}。",
    ),
    "why.padding.still": (
        "With a mask, more padding changes only the last digits.",
        "有掩码时，再多的填充也只改变最后几位数字。",
    ),
    "why.padding.moves": (
        "Even with a mask, more padding changes the outputs.",
        "即使有掩码，更多的填充也会改变输出。",
    ),
    "why.padding.zeros": (
        "Without one, zeros that are no data enter the means and variances.",
        "没有掩码时，不属于数据的零会进入均值和方差。",
    ),
    "why.padding.harmless": (
        "Yet no kind of padded training tested clearly worse without the mask.",
        "但没有哪一种填充训练在没有掩码时测试结果明确更差。",
    ),
    "why.padding.worse": (
        "The test was clearly worse without the mask after {n} of {all} kinds of padded training.",
        "在 {all} 种填充训练中，有 {n} 种在没有掩码时测试结果明确更差。",
    ),
    "why.padding.but": (
        "Everything else in this network leaves the padding out, so the effect is that of batch norm alone. Where all "
        "batches are padded alike, the running statistics can fit that padding, but no other.",
        "这个网络的其他部分都不受填充影响，所以这只是批归一化的效应。如果所有批的填充都一样，"
        "滑动统计量能适应这种填充，但不能适应别的。",
    ),
}

#: Titles, axes and curves of the figures, in English and Chinese; "why: " and the English is the key.
_LABELS = {
    "%": "%",
    "% of seeds": "种子的百分比",
    "+ 10": "+ 10",
    "+ 100": "+ 100",
    "15th percentile": "第 15 百分位",
    "50th percentile": "第 50 百分位",
    "85th percentile": "第 85 百分位",
    "Change of the gradient (l2)": "梯度的变化 (l2)",
    "Change of the outputs": "输出的变化",
    "Input of one sigmoid, with batch norm (seed {seed})": "一个 sigmoid 的输入，有批归一化（种子 {seed}）",
    "Input of one sigmoid, without it (seed {seed})": "一个 sigmoid 的输入，没有批归一化（种子 {seed}）",
    "Length of its gradient": "其梯度的长度",
    "On the way, batches of {size}": "训练途中，批大小 {size}",
    "Range of the loss": "损失的变化范围",
    "Relative change of the gradient": "梯度的相对变化",
    "Runs that diverged": "发散的运行",
    "Shift of the units from batch to batch": "单元在批与批之间的移动",
    "Test images right": "答对的测试图像",
    "Test images right, at the end": "训练结束时答对的测试图像",
    "as they are": "原样",
    "batch norm": "批归一化",
    "batch norm, recalibrated": "批归一化，重新校准",
    "batch renorm": "批重归一化",
    "batch size": "批大小",
    "batch size of training": "训练的批大小",
    "brightness + 0.5": "亮度 + 0.5",
    "contrast × 0.3": "对比度 × 0.3",
    "factor on one layer": "一层的倍数",
    "factor on the weights": "权重的倍数",
    "frozen batch norm": "冻结的批归一化",
    "ghosts of 4": "4 个一组的 ghost 批",
    "group norm": "组归一化",
    "input": "输入",
    "learning rate": "学习率",
    "length padded to, in lengths": "填充后的长度（原长的倍数）",
    "mask": "有掩码",
    "mixed": "混合",
    "negative": "反色",
    "no mask": "没有掩码",
    "no normalization": "没有归一化",
    "no padding": "无填充",
    "no shift": "无偏移",
    "noise 0.3": "噪声 0.3",
    "padding in training": "训练中的填充",
    "recalibrated": "重新校准",
    "recalibrated on two classes": "用两个类别重新校准",
    "relative": "相对值",
    "running": "滑动统计量",
    "standard deviations": "标准差",
    "steps": "步数",
    "test batch": "测试批",
    "what was done to the inputs": "对输入的改动",
    "what was done to the test images": "对测试图像的改动",
    "whole test set": "整个测试集",
    "with batch norm": "有批归一化",
    "with batch norm, eps 1e-12": "有批归一化，eps 1e-12",
    "with batch norm, eps 1e-5": "有批归一化，eps 1e-5",
    "with batch norm, rate {rate}": "有批归一化，学习率 {rate}",
    "with batch norm, recalibrated": "有批归一化，重新校准",
    "with noise after it": "之后加噪声",
    "without it": "没有批归一化",
    "without it, rate {rate}": "没有批归一化，学习率 {rate}",
    "{n} times": "{n} 倍",
    "× 0.01": "× 0.01",
    "× 100": "× 100",
}
WHY |= {f"why: {english}": (english, chinese) for english, chinese in _LABELS.items()}
