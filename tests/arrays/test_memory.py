"""The pool of large results: what lies in it, what is reused, kept and given back; threads, forks, both front ends."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
import torch

import batchnorm as bn
import batchnorm.torch as bnt

MIB = 2**20
LARGE = (4, 16, 128, 128)  # 4 MiB of float32


@pytest.fixture(autouse=True)
def fresh_pool() -> Iterator[None]:
    """Begin with nothing kept and the limits of a new process."""
    before = bn.memory_stats()
    gc.collect()
    bn.set_memory_limit(256 * MIB, 30.0)
    bn.empty_cache()
    yield
    bn.set_memory_limit(before.limit, before.seconds)


def large(shape: tuple[int, ...] = LARGE, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype="float32").astype(dtype)


def address(x: np.ndarray) -> int:
    return int(x.__array_interface__["data"][0])


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def test_a_dropped_result_is_the_next_ones_memory() -> None:
    x, before = large(), bn.memory_stats()
    first = bn.batch_norm(x)[0]
    where = address(first)
    assert where % (2 * MIB) == 0
    during = bn.memory_stats()
    assert during.in_use - before.in_use >= first.nbytes
    del first
    assert bn.memory_stats().idle >= x.nbytes
    again = bn.normalize(x, bn.moments(x))
    assert address(again) == where
    after = bn.memory_stats()
    assert (after.served - before.served, after.reused - before.reused, after.idle) == (2, 1, 0)
    assert after.in_use == during.in_use


def test_gradients_lie_in_it_too() -> None:
    x, before = large(), bn.memory_stats()
    y, m = bn.batch_norm(x, residual=x)
    g = bn.batch_norm_backward(y, x, m, residual=x)
    assert bn.memory_stats().served - before.served == 3  # y, and the gradients by x and the residual
    assert len({address(y), address(g.x), address(g.residual)}) == 3


def test_a_view_keeps_the_block() -> None:
    y = bn.batch_norm(large())[0]
    part, expected = y[1:2, :3], y[1:2, :3].copy()
    del y
    gc.collect()
    other = bn.batch_norm(large() * 3 + 7)[0]
    np.testing.assert_array_equal(part, expected)
    assert not np.shares_memory(part, other)


def test_small_results_and_given_ones_do_not() -> None:
    before = bn.memory_stats()
    bn.batch_norm(large((4, 16, 64, 64)))
    x = large()
    bn.batch_norm(x, out=x)
    assert bn.memory_stats() == before


VIEWS = {
    "contiguous": lambda x: x,
    "channels-last": lambda x: x.transpose(0, 2, 3, 1),
    "permuted": lambda x: x.transpose(3, 1, 0, 2),
    "fortran": lambda x: np.asfortranarray(x),
    "reversed": lambda x: x[:, :, ::-1],
    "sliced": lambda x: x[:, :, :, ::2],
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
}
TYPES = ["float64", "float32", "float16", "bfloat16"]


@pytest.mark.parametrize(
    ("view", "dtype"), [(view, TYPES[i % 4]) for i, view in enumerate(VIEWS)] + [("contiguous", t) for t in TYPES[1:]]
)
def test_an_array_is_as_numpys_own(dtype: str, view: str) -> None:
    data = large((4, 32, 128, 128), "float32")
    x = VIEWS[view](data.astype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype))
    served = bn.memory_stats().served
    y = bn.normalize(x, bn.moments(x))
    bn_strides, expected = y.strides, np.empty_like(x, subok=False)
    assert (y.shape, y.dtype, bn_strides) == (expected.shape, expected.dtype, expected.strides)
    assert y.flags.writeable
    assert bn.memory_stats().served == served + 1
    bn.set_memory_limit(0)
    np.testing.assert_array_equal(y, bn.normalize(x, bn.moments(x)))


def test_the_limit_drops_what_was_idle_longest() -> None:
    x = large()
    kept = [bn.batch_norm(x)[0] for _ in range(4)]
    block = bn.memory_stats().in_use // 4
    bn.set_memory_limit(2 * block)
    where = [address(y) for y in kept]
    while kept:
        del kept[0]
    assert bn.memory_stats().idle == 2 * block
    assert {address(bn.batch_norm(x)[0]) for _ in range(1)} <= set(where[2:])


def test_empty_cache_gives_everything_back() -> None:
    y = bn.batch_norm(large())[0]
    held = bn.memory_stats().in_use
    del y
    bn.empty_cache()
    after = bn.memory_stats()
    assert after.idle == 0
    assert after.in_use < held


def test_what_is_idle_for_long_is_given_back_at_the_next_large_result() -> None:
    bn.set_memory_limit(256 * MIB, 0.2)
    x, larger = large(), large((8, 16, 128, 128))
    bn.batch_norm(x)
    idle = bn.memory_stats().idle
    assert idle > 0
    time.sleep(0.3)
    y = bn.batch_norm(larger)[0]
    assert bn.memory_stats().idle == 0
    del y


def test_a_limit_of_zero_is_the_off_switch() -> None:
    y = bn.batch_norm(large())[0]
    bn.set_memory_limit(0)
    before = bn.memory_stats()
    z = bn.batch_norm(large())[0]
    assert z.base is None
    assert bn.memory_stats() == before
    del y  # one from before the switch: not kept
    assert bn.memory_stats().idle == 0


@pytest.mark.parametrize("bad", [-1, 2**63, 1.5, True, "1GiB", None])
def test_a_limit_is_a_number_of_bytes(bad: object) -> None:
    before = bn.memory_stats()
    with pytest.raises((TypeError, ValueError), match=r"memory limit .* bytes"):
        bn.set_memory_limit(bad)  # type: ignore[arg-type]
    with pytest.raises((TypeError, ValueError), match="seconds"):
        bn.set_memory_limit(1, -1 if bad == -1 else "soon")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seconds"):
        bn.set_memory_limit(1, float("nan"))
    assert bn.memory_stats() == before


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


def test_the_environment_sets_the_limit() -> None:
    say = "import batchnorm as bn; print(bn.memory_stats().limit)"
    assert run(say, BATCHNORM_MEMORY_LIMIT="12345678").stdout.strip() == "12345678"
    refused = run(say, BATCHNORM_MEMORY_LIMIT="1 GiB")
    assert refused.returncode != 0
    assert "BATCHNORM_MEMORY_LIMIT is '1 GiB', which is not a number of bytes" in refused.stderr


def test_too_much_memory_is_numpys_own_error() -> None:
    x = np.broadcast_to(np.float32(1), (2**10, 2**40))
    m = bn.Moments.from_statistics(0.0, 1.0)
    with pytest.raises(MemoryError):
        bn.normalize(x, m, axis=())


def test_threads_share_it_and_no_result_is_given_twice() -> None:
    x, failures = large(), []

    def work(seed: int) -> None:
        for i in range(12):
            scale = np.full(16, seed * 100 + i, np.float64)
            y = bn.batch_norm(x, np.zeros(16), scale)[0]  # all of y is the bias
            time.sleep(0.001)
            if not (y == seed * 100 + i).all():
                failures.append((seed, i))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures
    stats = bn.memory_stats()
    assert stats.idle <= stats.limit


def test_a_forked_child_has_a_pool_that_works() -> None:
    x = large()
    y = bn.batch_norm(x)[0]
    kept = y.copy()
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            bn.batch_norm(x)

    thread = threading.Thread(target=busy)  # so that forks find the pool's lock taken now and then
    thread.start()
    try:
        for _ in range(10):
            pid = os.fork()
            if pid == 0:
                try:
                    z = bn.normalize(x, bn.moments(x))
                    y[...] = 0  # the child's copy
                    bn.empty_cache()
                    os._exit(0 if np.array_equal(z, kept) else 1)
                except BaseException:
                    os._exit(2)
            deadline = time.monotonic() + 60
            while (done := os.waitpid(pid, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
                time.sleep(0.005)
            assert done == (pid, 0)
    finally:
        stop.set()
        thread.join()
    np.testing.assert_array_equal(y, kept)


in_our_memory = pytest.mark.skipif(
    torch.__version__.startswith("2.10."), reason="PyTorch 2.10 takes no memory of ours for results"
)


@in_our_memory
def test_results_in_pytorch_lie_in_it() -> None:
    x = torch.from_numpy(large()).requires_grad_()
    before = bn.memory_stats()
    with bnt.accelerate():
        y = torch.nn.functional.batch_norm(x, None, None, training=True)
        assert bn.memory_stats().served - before.served == 1
        assert y.data_ptr() % (2 * MIB) == 0
        y.backward(torch.ones_like(y))
    layer = bnt.BatchNorm2d(16, activation="relu")
    z = layer(x.detach())
    assert bn.memory_stats().served - before.served == 3
    as_array, where = y.detach().numpy(), y.data_ptr()
    expected = as_array.copy()
    del y, z
    gc.collect()
    assert layer(x.detach()).data_ptr() != where  # NumPy still holds it
    np.testing.assert_array_equal(as_array, expected)


@in_our_memory
def test_large_results_cost_no_page_faults() -> None:
    x = torch.from_numpy(large((16, 64, 56, 112)))  # 24 MiB
    layer = bnt.BatchNorm2d(64)
    for _ in range(3):
        layer(x)
        bn.batch_norm(x.numpy())
    before = faults()
    for _ in range(5):
        layer(x)
        bn.batch_norm(x.numpy())
    assert (faults() - before) * 4096 < x.nbytes  # ten fresh results would be ten times that, in pages of 4 KiB


def test_a_result_in_another_thread_and_at_exit() -> None:
    code = f"""
import threading, torch, numpy as np, batchnorm as bn, batchnorm.torch as bnt
x = torch.zeros({LARGE}); layer = bnt.BatchNorm2d({LARGE[1]})
held = [layer(x)]
t = threading.Thread(target=held.clear); t.start(); t.join()
assert bn.memory_stats().in_use == 0, bn.memory_stats()
layer.kept = layer(x); torch.kept = layer(x); np.kept = bn.batch_norm(x.numpy())[0]; y = np.kept
print("fine")
"""
    done = run(code)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "fine", "")
