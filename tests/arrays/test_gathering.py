"""Moments of more data than memory holds, and moments in files."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

import batchnorm as bn
from batchnorm import _blocks

SUFFIXES = (".json", ".safetensors")


# --- gathering ---


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 64 values, so that small arrays have many."""
    monkeypatch.setattr(_blocks, "BLOCK", 64)


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), (1, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "bool"])
def test_an_array_in_blocks(small_blocks, rng, axis, dtype):
    x = (rng.standard_normal((9, 7, 11)) * 5).astype(dtype)
    found = {threads: bn.gather_moments(x, axis, threads=threads) for threads in (1, 2, 3, 8)}
    assert all(m == found[1] for m in found.values()), "the number of threads changes no bit"
    expected = bn.moments(x.astype(np.float64), axis)
    np.testing.assert_array_equal(found[1].count, expected.count)
    short = dtype == "float32"
    np.testing.assert_allclose(found[1].mean, expected.mean, rtol=1e-13, atol=5 * oracle.MEAN if short else 1e-14)
    np.testing.assert_allclose(found[1].m2, expected.m2, rtol=oracle.M2 if short else 1e-12)


def test_an_array_of_one_block_is_moments_exactly(rng):
    x = rng.standard_normal((50, 3, 4)).astype(np.float32)
    assert bn.gather_moments(x) == bn.moments(x)
    assert bn.gather_moments(x[:0]) == bn.Moments.empty(3)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_an_iterator_of_arrays(sizes, threads, seed):
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal((size, 3)) + 10 for size in sizes]
    found = bn.gather_moments(iter(parts), threads=threads)
    assert found == bn.gather_moments(parts, threads=1)
    whole = bn.moments(np.concatenate(parts))
    np.testing.assert_array_equal(found.count, whole.count)
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-13)
    np.testing.assert_allclose(found.m2, whole.m2, rtol=1e-11, atol=1e-12)


def test_a_memory_map(small_blocks, tmp_path, rng):
    np.save(tmp_path / "x.npy", rng.standard_normal((40, 3, 5)).astype(np.float32))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert bn.gather_moments(x, threads=3) == bn.gather_moments(np.array(x), threads=1)


def test_few_arrays_are_held_at_a_time():
    """An iterator is drawn from as its arrays are finished."""
    alive, most = set(), 0

    class Tracked(np.ndarray):
        def __del__(self):
            alive.discard(id(self))

    def batches():
        nonlocal most
        for i in range(100):
            x = np.full((4, 2), float(i)).view(Tracked)
            alive.add(id(x))
            most = max(most, len(alive))
            yield x
            del x

    assert bn.gather_moments(batches(), threads=2).count[0] == 400
    assert most <= 2 * 2 + 2  # those in work, the one that is drawn, and the one that is finished


def test_blocks_are_gathered_at_the_same_time(monkeypatch):
    """Two threads meet inside: neither waits for the other's result."""
    barrier = threading.Barrier(2, timeout=30)
    original = _blocks.load_exactly

    def meet(x, block):
        barrier.wait()
        return original(x, block)

    monkeypatch.setattr("batchnorm._gathering.load_exactly", meet)
    assert bn.gather_moments([np.eye(3)] * 4, threads=2).count[0] == 12


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ([], ValueError, "at least one array"),
        (3.0, TypeError, "an array or an iterable of arrays; got float"),
        ([[1.0, 2.0]], TypeError, "item 0 is list"),
        ([np.eye(3), np.ones((2, 4))], ValueError, r"item 1 \(shape \(2, 4\)\) has \(4,\), the first has \(3,\)"),
        ([np.eye(3), np.ones(3)], ValueError, r"item 1: axis 1 does not exist"),
        ([np.eye(3), np.eye(3) * 1j], TypeError, "complex"),
    ],
)
def test_sources_that_are_refused(source, error, message):
    with pytest.raises(error, match=message):
        bn.gather_moments(source, threads=2)


def test_threads_that_are_refused():
    with pytest.raises(ValueError, match="from 1 to 4096"):
        bn.gather_moments(np.eye(3), threads=0)


def test_an_error_of_the_iterator_comes_out():
    def broken():
        yield np.eye(3)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        bn.gather_moments(broken())


# --- files ---


def _moments(rng: np.random.Generator, shape: tuple[int, ...] = (3,)) -> bn.Moments:
    return bn.Moments(
        rng.random(shape) * 9, rng.standard_normal(shape) / 3, rng.random(shape), rng.standard_normal(shape) * 1e-17
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("shape", "axis"), [((3,), 1), ((), ()), ((2, 3), (1, 2)), ((0,), 1)])
def test_moments_come_back_bit_for_bit(tmp_path, rng, suffix, shape, axis):
    m = _moments(rng, shape)
    bn.save_moments(tmp_path / f"m{suffix}", m, axis=axis)
    assert bn.load_moments(tmp_path / f"m{suffix}") == m
    assert [path.name for path in tmp_path.iterdir()] == [f"m{suffix}"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_values_that_json_lacks(tmp_path, suffix):
    m = bn.Moments([2.0, 2.0], [np.nan, np.inf], [np.nan, np.inf])
    bn.save_moments(str(tmp_path / f"m{suffix}"), m, names=["a", "ü"])
    assert bn.load_moments(str(tmp_path / f"m{suffix}")) == m


def test_the_commands_read_what_was_saved(tmp_path, rng):
    from batchnorm.tools.files.saved_moments import read_moments

    m = _moments(rng)
    bn.save_moments(tmp_path / "m.json", m, axis=1, names=["a", "b", "c"])
    saved = read_moments(tmp_path / "m.json")
    assert (saved.moments, saved.axis, saved.names) == (m, (1,), ("a", "b", "c"))


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("m.npz", {}, ValueError, r"must end in \.json or \.safetensors; got .*m\.npz"),
        ("m.json", {"axis": (1, 2)}, ValueError, "do not have one shape"),
        ("m.json", {"axis": -1}, ValueError, "from 0 on"),
        ("m.safetensors", {"names": ["a"]}, ValueError, "1 names for 3 channels"),
        ("no/m.json", {}, ValueError, "does not exist"),
        ("m.json", {"moments": np.zeros(3)}, TypeError, "must be Moments; got ndarray"),
    ],
)
def test_what_cannot_be_saved(tmp_path, rng, name, options, error, message):
    options = {"moments": _moments(rng)} | options
    with pytest.raises(error, match=message):
        bn.save_moments(tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def _safetensors(arrays: dict[str, np.ndarray], about: dict[str, str] | None) -> bytes:
    from safetensors.numpy import save

    return save(arrays, about)


ABOUT = {"format": '"batchnorm moments"', "version": "1", "axis": "[1]", "names": "null"}
ARRAYS = {name: np.ones(2) for name in ("count", "mean", "mean_low", "m2")}
DAMAGED = {
    "not safetensors": (b"hello", "it is not safetensors"),
    "without metadata": (_safetensors(ARRAYS, None), "not a file of saved moments of version 1"),
    "other version": (_safetensors(ARRAYS, ABOUT | {"version": "2"}), "version 1"),
    "metadata that is not JSON": (_safetensors(ARRAYS, ABOUT | {"version": "one"}), "not a file of saved moments"),
    "missing array": (_safetensors({k: v for k, v in ARRAYS.items() if k != "m2"}, ABOUT), "'m2' is missing"),
    "missing axis": (_safetensors(ARRAYS, {k: v for k, v in ABOUT.items() if k != "axis"}), "'axis' is missing"),
    "float32": (_safetensors({k: v.astype(np.float32) for k, v in ARRAYS.items()}, ABOUT), "are not float64"),
    "negative": (_safetensors(ARRAYS | {"m2": -np.ones(2)}, ABOUT), "a count or m2 is negative"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused(tmp_path, case):
    content, message = DAMAGED[case]
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        bn.load_moments(tmp_path / "m.safetensors")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_not_there(tmp_path, suffix):
    with pytest.raises(ValueError, match="does not exist"):
        bn.load_moments(Path(tmp_path, f"m{suffix}"))


def test_without_the_package_safetensors(tmp_path, monkeypatch, rng):
    import sys

    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        bn.save_moments(tmp_path / "m.safetensors", _moments(rng))
    assert list(tmp_path.iterdir()) == []
    bn.save_moments(tmp_path / "m.json", _moments(rng))
