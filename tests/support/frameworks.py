"""What other frameworks compute: a layer of each with its defaults, two batches of training, and an evaluation.

The numbers stand in ``frameworks.json``, so they are compared where the frameworks are not installed. This writes those
of the frameworks that are: ``python tests/support/frameworks.py``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_suffix(".json")

# Two batches of different sizes, whose biased and unbiased variances differ, with the channels last.
BATCHES = [
    np.array([[1, 2], [3, 7], [8, 0]], np.float32),
    np.array([[2, 5], [4, 4], [9, 1], [0, 3]], np.float32),
]
WEIGHT, BIAS = np.array([0.5, 2], np.float32), np.array([-1, 3], np.float32)


def evaluated(record: Any, x: np.ndarray) -> np.ndarray:
    """What a layer makes of an array in evaluation, by its record, in float64 and in the order of the formula."""
    shape = [1] * x.ndim
    shape[record.axis] = record.channels
    of_channels = lambda values: 1.0 if values is None else values.reshape(shape)  # noqa: E731
    y = (np.asarray(x, np.float64) - of_channels(record.mean)) / np.sqrt(of_channels(record.var) + record.eps)
    return y * of_channels(record.weight) + (0 if record.bias is None else of_channels(record.bias))


def _run(layer: Any, train: Callable[[np.ndarray], Any], arrays: Callable[[], dict[str, Any]], evaluate: Any) -> Any:
    """What comes of the second batch, then the arrays, then what evaluation makes of the first batch."""
    trained = [np.asarray(train(x), np.float64).tolist() for x in BATCHES][-1]
    named = {name: np.asarray(value, np.float64).reshape(-1).tolist() for name, value in arrays().items()}
    return {"arrays": named, "trained": trained, "evaluated": np.asarray(evaluate(BATCHES[0]), np.float64).tolist()}


def pytorch() -> Any:
    import torch

    layer = torch.nn.BatchNorm1d(2)
    layer.load_state_dict({"weight": torch.tensor(WEIGHT), "bias": torch.tensor(BIAS)}, strict=False)
    state = lambda: {k: v.numpy() for k, v in layer.state_dict().items() if k != "num_batches_tracked"}  # noqa: E731
    call = lambda x: layer(torch.tensor(x)).detach()  # noqa: E731
    return torch.__version__, _run(layer, call, state, lambda x: (layer.eval(), call(x))[1])


def keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    layer = keras.layers.BatchNormalization()
    layer.build((None, 2))
    layer.gamma.assign(WEIGHT), layer.beta.assign(BIAS)
    to_numpy = keras.ops.convert_to_numpy
    variables = lambda: {v.name: to_numpy(v) for v in layer.variables}  # noqa: E731
    train, evaluate = (lambda x, on=on: to_numpy(layer(x, training=on)) for on in (True, False))
    return keras.__version__, _run(layer, train, variables, evaluate)


def flax() -> Any:
    import flax
    import jax

    layer = flax.linen.BatchNorm(use_running_average=False)
    state = layer.init(jax.random.key(0), BATCHES[0])
    state = {"params": {"scale": WEIGHT, "bias": BIAS}, "batch_stats": state["batch_stats"]}

    def train(x: np.ndarray) -> Any:
        y, new = layer.apply(state, x, mutable=["batch_stats"])
        state.update(new)
        return y

    evaluation = flax.linen.BatchNorm(use_running_average=True)
    return flax.__version__, _run(
        layer, train, lambda: state["params"] | state["batch_stats"], lambda x: evaluation.apply(state, x)
    )


def haiku() -> Any:
    import haiku as hk
    import jax

    call = hk.transform_with_state(lambda x, on: hk.BatchNorm(True, True, decay_rate=0.99)(x, is_training=on))
    _, state = call.init(jax.random.key(0), BATCHES[0], True)
    given = {"batch_norm": {"scale": WEIGHT[None], "offset": BIAS[None]}}

    def train(x: np.ndarray) -> Any:
        nonlocal state
        y, state = call.apply(given, state, None, x, True)
        return y

    def arrays() -> dict[str, Any]:
        averages = {f"{n}_ema/average": state[f"batch_norm/~/{n}_ema"]["average"] for n in ("mean", "var")}
        return given["batch_norm"] | averages

    return hk.__version__, _run(None, train, arrays, lambda x: call.apply(given, state, None, x, False)[0])


def mlx() -> Any:
    from importlib.metadata import version

    import mlx.core
    import mlx.nn

    layer = mlx.nn.BatchNorm(2)
    layer.weight, layer.bias = mlx.core.array(WEIGHT), mlx.core.array(BIAS)
    call = lambda x: np.array(layer(mlx.core.array(x)))  # noqa: E731
    state = lambda: {k: np.array(v) for k, v in layer.parameters().items()}  # noqa: E731
    return version("mlx"), _run(layer, call, state, lambda x: (layer.eval(), call(x))[1])


def onnx() -> Any:
    """Training by its reference, for onnxruntime only evaluates; evaluation by onnxruntime."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    names = ["x", "scale", "B", "input_mean", "input_var"]

    def model(outputs: list[str], **options: int) -> Any:
        infos = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ns] for ns in (names, outputs)]
        node = helper.make_node("BatchNormalization", names, outputs, **options)
        opset = [helper.make_opsetid("", 15)]
        return helper.make_model(helper.make_graph([node], "one layer", *infos), opset_imports=opset, ir_version=9)

    state = {"scale": WEIGHT, "B": BIAS, "input_mean": np.zeros(2, np.float32), "input_var": np.ones(2, np.float32)}
    reference = ReferenceEvaluator(model(["y", "mean", "var"], training_mode=1))

    def train(x: np.ndarray) -> Any:
        y, state["input_mean"], state["input_var"] = reference.run(None, {"x": x} | state)
        return y

    session = onnxruntime.InferenceSession(model(["y"]).SerializeToString(), providers=["CPUExecutionProvider"])
    evaluate = lambda x: session.run(None, {"x": x} | state)[0]  # noqa: E731
    return f"{onnx.__version__}, onnxruntime {onnxruntime.__version__}", _run(None, train, lambda: state, evaluate)


#: By the names of CONVENTIONS. What is missing: the fused layer of tf.keras needs TensorFlow; Equinox has no names.
RUN: dict[str, Callable[[], Any]] = {
    "PyTorch": pytorch,
    "Keras": keras,
    "Flax": flax,
    "Haiku": haiku,
    "MLX": mlx,
    "ONNX": onnx,
}


def recorded() -> dict[str, Any]:
    """The numbers in the file."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Write what the frameworks that are here compute; keep the others' numbers."""
    found = recorded() if FILE.exists() else {}
    for name, run in RUN.items():
        try:
            version, numbers = run()
        except ImportError as error:
            print(f"{name}: {error}")
            continue
        found[name] = {"version": version, **numbers}
        print(f"{name} {version}")
    lines = [f"{json.dumps(name)}: {json.dumps(found[name], sort_keys=True)}" for name in RUN if name in found]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
