"""What diagnoses and recalibrations say: the English of the library, and the same in Chinese."""

from ...._findings import SENTENCES

_CAUSED = "（{cause}：方差 ×{factor}，均值相差 {distance} 个标准差）"
_RECALIBRATE = "调用 bnt.recalibrate(model, train)"

_WIDER = "让这一层保持 float32：在 model.half() 之后调用 layer.float()，再重新加载它的状态"

_CHINESE = {
    "non-finite": "{channels} 个通道中有 {n} 个含 NaN 或无穷大；通道 {c} 的均值为 {mean}，方差为 {var}",
    "non-finite: fix": "先用 on_nonfinite='raise' 找出是哪一批数据，再" + _RECALIBRATE,
    "overflow fp16": (
        "{channels} 个通道中有 {n} 个在 float16 中是无穷大，它的上限是 {end}；通道 {c} 的均值为 {mean}，方差为 {var}"
    ),
    "overflow fp16: fix": _WIDER + "，或" + _RECALIBRATE,
    "negative variance": "通道 {c} 的方差为 {var}",
    "negative variance: fix": _RECALIBRATE,
    "never-updated": "每个通道的均值都是 0，方差都是 {var}：这些统计量从未更新过，或者没有保存",
    "never-updated: fix": "加载含有这些统计量的状态，或" + _RECALIBRATE,
    "ranks differ": (
        "各进程的滑动统计量不一致；进程 {rank} 与进程 {other} 的方差相差 {factor} 倍，均值相差 {distance} 个标准差"
    ),
    "ranks differ: fix": "在所有进程上" + _RECALIBRATE + "，每个进程用自己的数据；或者在所有进程上加载同一个状态",
    "left in training": "它处于训练模式，而模型不是：评估时它用当前批的统计量做归一化",
    "left in training: fix": "最后再调用 model.eval()；不该变化的层用 bnt.freeze 冻结",
    "shared": (
        "它在每一批中被调用 {calls} 次，没有一个滑动平均适合所有调用：第 {call} 次与第一次的方差相差 {factor} 倍，"
        "均值相差 {distance} 个标准差"
    ),
    "shared: fix": "让每次调用有自己的批归一化层；这些层可以共用权重和偏置",
    "lag": "它的滑动统计量不是更新规则在当前权重下会给出的" + _CAUSED,
    "lag: fix": _RECALIBRATE + "；如果 lag 再次出现，请检查 momentum，以及之后是什么改变了权重",
    "dropout": "它的滑动统计量是在 dropout 开启时收集的，而评估时 dropout 关闭" + _CAUSED,
    "dropout: fix": "把 dropout 放到批归一化之后，或" + _RECALIBRATE,
    "batching": "它的滑动统计量来自单个的批，与全部数据的不同" + _CAUSED,
    "batching: fix": "用更大或打乱得更好的批，或用 bnt.SyncBatchNorm，或" + _RECALIBRATE,
    "shift": "它的滑动统计量来自与测试数据不同的数据" + _CAUSED,
    "shift: fix": "用与训练时相同的方法准备测试数据，或者用与测试数据相似的数据调用 bnt.recalibrate",
    "and that costs": "{sentence}；损失因此增加 {cost}",
    "eps decides": "{channels} 个通道中有 {n} 个的方差小于 eps={eps}，它们的尺度由 eps 决定",
    "eps decides: fix": "几乎不变的通道不含多少信息；移植这一层时请保留 eps",
    "other eps": "它的 eps={eps}，而模型中多数层的 eps={usual}",
    "other eps: fix": (
        "保留训练这一层时用的 eps，或者用 bnt.set_eps 改它，评估结果不变；"
        "{keras} 是 Keras 的默认值，{torch} 是 PyTorch 和 Flax 的默认值"
    ),
    "constant channels": "{channels} 个通道中有 {n} 个几乎不变；通道 {c} 的方差为 {var}，而这一层的中位数是 {median}",
    "constant channels: fix": "找出是什么使它们对每个样本都得到相同的数",
    "dead channels": "{channels} 个通道中有 {n} 个的权重接近零；无论输入是什么，通道 {c} 都只输出偏置",
    "dead channels: fix": "这样的通道可以剪枝去掉；请检查批归一化的权重是否受到权重衰减",
    "runaway channels": "{channels} 个通道中有 {n} 个被放大超过 {most} 倍；通道 {c} 被乘以 {gain}",
    "runaway channels: fix": "请检查几乎不变的输入，以及过大的学习率",
    "large momentum": "momentum={momentum} 是新批的权重，因此统计量只来自最后一两个批",
    "large momentum: fix": "评估前" + _RECALIBRATE + "；{others} 用这个名称表示 1 - momentum",
    "start": "在 momentum={momentum} 下经过 {batches} 个批之后，统计量中仍有 {share} 来自初始值",
    "start: fix": _RECALIBRATE + "，或者用更大的 momentum",
    "few positions": "每个通道在一个批中只有 {m} 个位置，太少，得不到好的统计量",
    "few positions: fix": "用更大的批、bnt.SyncBatchNorm 或 Renorm",
    "beyond fp16": (
        "{channels} 个通道中有 {n} 个在 model.half() 之后会失真；通道 {c} 的均值为 {mean}，方差为 {var}，"
        "会变成 {half_mean} 和 {half_var}"
    ),
    "beyond fp16: fix": _WIDER,
    "never called": "这些数据在评估和训练时都没有到达它，因此无从判断",
    "never called: fix": "给出能到达它的数据，或者把它从模型中删去",
    "the loss": (
        "评估时的损失是 {running}，用批统计量时是 {batch}，重新校准后是 {after}，因此滑动统计量使损失增加 {cost}"
    ),
    "the batches": "使用了 {n} 批训练数据；它们的大小和顺序须与训练时相同，否则会混淆 lag 与 batching",
    "heads": (
        "（m：每个通道在一批中的数值个数，相当于 m_eff 个独立的数值；均值偏差：两者的均值相差多少；\n"
        "方差 ×：保存的方差除以测试数据的方差，它是右边四个因子之积）"
    ),
    "no fault": "没有发现问题",
    "of a layer": "{layer}：{sentence}",
    "layer": "层 {name}",
    "itself": "模型本身",
    "left": "未处理 {name}（{kind}）：{reason}",
    "left without statistics": "它没有滑动统计量（track_running_stats=False）",
    "left by switch": "它已冻结（update_running_stats=False）",
    "left by freeze": "它已冻结（用 freeze）",
    "left alone": "没有一批数据到达它",
    "recalibrated": "用 {batches}、{samples} 个样本重新校准了 {layers}（{how}：{definition}），{passes}",
    "how whole": "全部数据作为一个批",
    "how pooled": "合并所有批的矩",
    "how batches": "各批的平均",
    "norms one": "1 个批归一化层",
    "norms many": "{n} 个批归一化层",
    "batches one": "1 个批",
    "batches many": "{n} 个批",
    "passes one": "数据读取了一遍",
    "passes many": "数据读取了 {n} 遍",
    "moved": "均值移动最多的是{layer}，移动了 {distance}；方差变化最大的是{other}，变为原来的 {factor} 倍",
    "std one": "1 个标准差",
    "std many": "{n} 个标准差",
    "batches skipped": "略去了含 NaN 或无穷大的 {batches}",
    "wrapped": "{kind}：使用了其中的模型",
    "again memory": "数据读取了 {passes} 遍：内存不够一次完成",
    "again state": "数据读取了 {passes} 遍：模型在模块上保存了数值",
    "again threads": "数据读取了 {passes} 遍：模型在各层周围切换 autocast 等设置，因此每个批需要一个线程",
    "head layer": "层",
    "head channel": "通道",
    "head variance": "方差",
    "head variance ×": "方差 ×",
    "head mean off": "均值偏差",
    "head loss": "损失",
    "cause lag": "lag",
    "cause dropout": "dropout",
    "cause batching": "batching",
    "cause shift": "shift",
    "mark variance": "方差",
    "mark mean": "均值",
    "page wrong": "滑动统计量有什么问题",
    "page well": "没有发现问题",
    "page findings": "发现的问题，最严重的在前",
    "page variance": "滑动方差",
    "page mean": "滑动均值",
    "page off": "相差 {distance} 个标准差",
    "page positions": "每批 {m} 个，相当于 {worth} 个",
    "page put back": "单独放回后",
    "page loss": "损失 {loss}，{cost}",
    "page factors": "方差的各个因子：{factors}",
    "page channels": "各通道",
    "page extremes": "{channels} 个通道中偏差最大的 {n} 个",
}

DIAGNOSE: dict[str, tuple[str, str]] = {
    f"diagnose.{key}": (english, _CHINESE[key]) for key, english in SENTENCES.items()
}
