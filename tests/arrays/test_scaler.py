"""StandardScaler: what scikit-learn's computes, exactly; merges, groups, and what is refused."""

from __future__ import annotations

import pickle
import tracemalloc
from itertools import pairwise, permutations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("sklearn")
import pandas as pd
import sklearn
from scipy import sparse
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler as Theirs

import batchnorm as bn
from batchnorm.sklearn import StandardScaler

OPTIONS = [dict(with_mean=m, with_std=s) for m, s in product((True, False), repeat=2)]
FITTED = ("mean_", "var_", "scale_", "n_samples_seen_")


def table(rng: np.random.Generator, shape=(60, 5), dtype: Any = np.float64) -> np.ndarray:
    """Columns of different scales, one constant, one of nothing but NaN, NaN here and there."""
    x = rng.normal(size=shape) * 10.0 ** np.arange(shape[1]) + 3
    x[::7, 0] = np.nan
    x[:, 1] = 5
    x[:, -1] = np.nan
    return x.astype(dtype)


def same(a: StandardScaler, b: Theirs, rtol: float = 0) -> None:
    """The fitted attributes are the same, in value, shape and dtype.

    But for n_samples_seen_: documented as integers without weights, which 1.9 makes floats; and as the sum of the
    weights, which scikit-learn leaves out where it computes no mean.
    """
    weights_left_out = a.mean_ is None and a._is_weighted()
    with np.errstate(invalid="ignore"):
        spread = np.nan_to_num(np.sqrt(a.moments_.m2 / a.moments_.count))
    for name in FITTED[: 3 if weights_left_out else 4]:
        ours, theirs = getattr(a, name), getattr(b, name)
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            assert np.shape(ours) == np.shape(theirs), name
            assert name == FITTED[-1] or ours.dtype == theirs.dtype, name
            atol = 1e-20 + rtol * (spread if name == "mean_" else 0)
            with np.errstate(invalid="ignore"):
                near = np.abs(ours - theirs) <= atol + rtol * np.abs(theirs)
            assert (near | (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))).all(), (name, ours, theirs)


# --- as scikit-learn's


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # theirs, of columns of nothing
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int32", ">f8"])
def test_fit_and_transform_are_theirs(rng, options, dtype):
    x = table(rng, dtype="float64")
    x = np.nan_to_num(x).astype(dtype) if dtype == "int32" else (x / 1e3).astype(dtype)
    sums, close = {"float32": (3e-7, 1e-5), "float16": (3e-7, 1e-2)}.get(dtype, (1e-12, 1e-12))
    for order, weight in product("CF", (None, rng.random(len(x)))):
        x = np.asarray(x, order=order)
        ours, theirs = (c(**options).fit(x, sample_weight=weight) for c in (StandardScaler, Theirs))
        same(ours, theirs, sums)
        for method in ("transform", "inverse_transform"):
            a, b = getattr(ours, method)(x), getattr(theirs, method)(x)
            assert a.dtype == b.dtype
            assert a.flags.forc
            np.testing.assert_allclose(a, b, rtol=close, atol=close)
        assert np.array_equal(ours.fit_transform(x, sample_weight=weight), ours.transform(x), equal_nan=True)


def test_float32_keeps_its_digits_at_an_offset(rng):
    """scikit-learn 1.9 subtracts a rounded mean: off by 4e-4 standard deviations at 1e4."""
    x = rng.normal(1e4, 1, (1000, 3)).astype(np.float32)
    exact = (x - x.mean(axis=0, dtype=np.float64)) / x.std(axis=0, dtype=np.float64)
    assert np.abs(StandardScaler().fit_transform(x) - exact).max() < 5e-7
    assert (
        np.abs(StandardScaler(with_std=False).fit_transform(x) - exact * x.std(axis=0, dtype=np.float64)).max() < 5e-7
    )
    wide = x.astype(np.float64) + 1e9  # the mean has more digits than a float64
    scaler = StandardScaler().fit(wide)
    assert scaler.moments_.mean_low.any()
    low = (wide - scaler.mean_) - scaler.moments_.mean_low
    np.testing.assert_allclose(scaler.transform(wide), low / scaler.scale_, rtol=1e-15, atol=1e-15)


def test_sparse_data_is_theirs_and_dense_data_may_follow(rng):
    x = np.where(rng.random((40, 4)) < 0.5, rng.normal(size=(40, 4)), 0)
    ours, theirs = (c(with_mean=False).fit(sparse.csr_array(x)) for c in (StandardScaler, Theirs))
    same(ours, theirs)
    assert np.array_equal(
        ours.transform(sparse.csr_array(x)).toarray(), theirs.transform(sparse.csr_array(x)).toarray()
    )
    same(ours.partial_fit(x + 1), theirs.partial_fit(x + 1), 1e-12)
    assert (ours + ours).n_samples_seen_ == 160
    same(ours.partial_fit(sparse.csr_array(x)), theirs.partial_fit(sparse.csr_array(x)), 1e-12)
    frame = pd.DataFrame.sparse.from_spmatrix(sparse.csr_matrix(x))
    same(StandardScaler(with_mean=False).fit(frame), Theirs(with_mean=False).fit(frame))
    bare = StandardScaler(with_mean=False, with_std=False).fit(sparse.csr_array(x))
    assert np.array_equal(bare.transform(x), x)
    with pytest.raises(ValueError, match="merge needs the moments"):
        bare.merge(bare)
    with pytest.raises(ValueError, match="groups need dense data"):
        ours.transform(sparse.csr_array(x), groups=np.zeros(40))


def test_changed_attributes_are_used(rng):
    """Columns are left out by setting mean_ and scale_, as with scikit-learn's."""
    x = rng.normal(3, 2, (50, 3))
    scaler, kept = StandardScaler().fit(x), StandardScaler().fit_transform(x)
    scaler.mean_[1], scaler.scale_[1] = 0, 1
    y = scaler.transform(x)
    assert np.array_equal(y[:, 1], x[:, 1])
    assert np.array_equal(y[:, ::2], kept[:, ::2])


def test_infinity_is_refused_and_large_numbers_are_not(rng):
    x = rng.normal(size=(30, 2))
    fitted = StandardScaler().fit(x)
    before = pickle.dumps(fitted)
    for bad in (np.inf, -np.inf):
        for missing in (0.0, np.nan):
            broken = x.copy()
            broken[3, 1], broken[5, 0] = bad, missing
            kept = broken.copy()
            for call in (
                lambda b=broken: StandardScaler().fit(b),
                lambda b=broken: StandardScaler().fit(b, sample_weight=np.arange(30.0) != 3),
                lambda b=broken: fitted.partial_fit(b),
                lambda b=broken: fitted.transform(b, copy=False),
                lambda b=broken: fitted.inverse_transform(b, copy=False),
            ):
                with pytest.raises(
                    ValueError, match=r"Input X contains infinity or a value too large for dtype\('float64'\)"
                ):
                    call()
            assert np.array_equal(broken, kept, equal_nan=True)
    with pytest.raises(ValueError, match=r"^StandardScaler: sample_weight must be finite and non-negative"):
        fitted.partial_fit(x, sample_weight=-np.ones(30))
    assert pickle.dumps(fitted) == before
    with sklearn.config_context(assume_finite=True):
        assert not np.isfinite(StandardScaler().fit(broken).mean_[1])
    large = x * 1e307
    assert np.isfinite(StandardScaler().fit(large).mean_).all()
    fitted.transform(np.full((4, 2), 1.7e308))  # whose sum is infinite


def test_copy_false_writes_into_x(rng):
    for order, dtype in product("CF", ("float64", "float32")):
        x = np.asarray(rng.normal(size=(20, 3)), dtype=dtype, order=order)
        kept = x.copy(order="K")
        scaler = StandardScaler(copy=False).fit(x)
        assert np.array_equal(x, kept)
        y = scaler.transform(x)
        assert y is x or np.shares_memory(x, y)
        assert np.array_equal(y, StandardScaler().fit(kept).transform(kept))
        np.testing.assert_allclose(scaler.inverse_transform(x), kept, atol=1e-6)
        assert np.shares_memory(scaler.transform(x), x)
        assert not np.shares_memory(scaler.transform(x, copy=True), x)
        x.flags.writeable = False
        assert not np.shares_memory(scaler.transform(x), x)
    strided = rng.normal(size=(40, 6))[::2, ::2]
    assert np.shares_memory(StandardScaler(copy=False).fit_transform(strided), strided)
    packed = np.zeros(20, dtype=[("pad", "i1"), ("x", "f8", 3)])["x"]  # not aligned
    packed[:] = rng.normal(size=packed.shape)
    assert np.array_equal(StandardScaler().fit_transform(packed), StandardScaler().fit_transform(packed.copy()))


@pytest.mark.parametrize("step", ["fit", "transform", "inverse_transform"])
@pytest.mark.parametrize("missing", [False, True])
def test_no_memory_beyond_the_result(rng, step, missing):
    """NumPy's memory is traced; the pool's, where large results lie, is not, so small ones are asked for."""
    x = rng.normal(size=(40_000, 10))  # 3.2 MB
    x[5, 5] = np.nan if missing else 0
    scaler = StandardScaler().fit(x)
    call = getattr(scaler, step)
    call(x)
    tracemalloc.start()
    try:
        call(x)
        assert tracemalloc.get_traced_memory()[1] < (0 if step == "fit" else x.nbytes) + 1e5
    finally:
        tracemalloc.stop()


# --- in scikit-learn


def test_in_pipelines_searches_and_frames(rng):
    x, y = rng.normal(3, 2, (80, 4)), rng.normal(size=80)
    frame = pd.DataFrame(x, columns=list("abcd"), index=range(100, 180))
    scaler = StandardScaler().set_output(transform="pandas").fit(frame)
    out = scaler.transform(frame)
    assert list(out) == list(scaler.get_feature_names_out()) == list("abcd")
    assert scaler.moments_.names == tuple("abcd")
    assert out.index.equals(frame.index)
    np.testing.assert_allclose(StandardScaler().fit(frame).inverse_transform(out.to_numpy()), x)  # without a warning
    with pytest.raises(ValueError, match="one value for each channel"):
        scaler.inverse_transform(np.ones((2, 5)))
    assert np.array_equal(out, StandardScaler().fit_transform(x))
    assert list(clone(scaler).fit_transform(frame)) == list("abcd")
    with pytest.raises(ValueError, match="feature names"):
        scaler.transform(frame[list("bacd")])
    search = GridSearchCV(make_pipeline(StandardScaler(), Ridge()), {"standardscaler__with_std": [True, False]}, cv=2)
    theirs = clone(search).set_params(estimator=make_pipeline(Theirs(), Ridge()))
    np.testing.assert_allclose(search.fit(x, y).predict(x), theirs.fit(x, y).predict(x), rtol=1e-9)
    again = pickle.loads(pickle.dumps(scaler))
    assert again.moments_ == scaler.moments_
    assert np.array_equal(again.transform(frame), out)
    with pytest.raises(ValueError, match="'unseen_groups' parameter"):
        StandardScaler(unseen_groups="mean").fit(x)


def test_groups_are_routed(rng):
    x, sites = rng.normal(size=(60, 3)) * 5, np.repeat(["a", "b"], 30)
    y = x[:, 0] + rng.normal(size=60)
    with sklearn.config_context(enable_metadata_routing=True):
        scaler = StandardScaler().set_fit_request(groups=True).set_transform_request(groups=True)
        model = make_pipeline(scaler, Ridge()).fit(x, y, groups=sites)
        z = StandardScaler().fit_transform(x, groups=sites)
        assert np.array_equal(model.predict(x, groups=sites), Ridge().fit(z, y).predict(z))
        assert model.score(x, y, groups=sites) == Ridge().fit(z, y).score(z, y)


# --- merged


@given(
    seed=st.integers(0, 2**32 - 1), cuts=st.lists(st.integers(1, 59), max_size=3, unique=True), weighted=st.booleans()
)
def test_merges_are_one_fit_in_any_order(seed, cuts, weighted):
    rng = np.random.default_rng(seed)
    x = table(rng)
    x[:, 2] += 10.0 ** rng.integers(0, 6)
    weight = rng.random(60) if weighted else np.ones(60)
    bounds = [0, *sorted(cuts), 60]
    parts = [slice(a, b) for a, b in pairwise(bounds)]

    def fitted(rows: slice) -> StandardScaler:
        return StandardScaler().fit(x[rows], sample_weight=weight[rows] if weighted else None)

    whole, scalers = fitted(slice(None)), [fitted(rows) for rows in parts]
    states = [pickle.dumps(s) for s in scalers]
    for order in permutations(scalers):
        same(sum(order), whole, 1e-12)
        same(order[0].merge(*order[1:]), whole, 1e-12)
    assert [pickle.dumps(s) for s in scalers] == states
    by_parts = StandardScaler()
    for rows in parts:
        by_parts.partial_fit(x[rows], sample_weight=weight[rows] if weighted else None)
    assert by_parts.moments_ == scalers[0].merge(*scalers[1:]).moments_


def test_weights_stay_where_some_calls_have_none(rng):
    x, weight = rng.normal(size=(20, 2)), np.full(20, 0.125)
    scaler = StandardScaler().fit(x, sample_weight=weight).partial_fit(x[:3])
    assert scaler.n_samples_seen_ == (scaler + scaler).n_samples_seen_ / 2 == 5.5
    assert StandardScaler().fit(x[:3]).partial_fit(x, sample_weight=weight).n_samples_seen_ == 5.5


def test_a_merge_keeps_names_and_refuses_what_differs(rng):
    frame = pd.DataFrame(rng.normal(size=(20, 2)), columns=["a", "b"])
    a = StandardScaler().set_output(transform="pandas").fit(frame)
    b = StandardScaler().fit(frame.to_numpy())
    assert list((b + a).feature_names_in_) == list((a + b).transform(frame)) == ["a", "b"]
    assert (a + b).n_features_in_ == 2
    for other, message in (
        (StandardScaler(with_mean=False).fit(frame), "the same with_mean"),
        (StandardScaler(with_std=False).fit(frame), "the same with_std"),
        (StandardScaler(unseen_groups="pooled").fit(frame), "the same unseen_groups"),
        (StandardScaler().fit(frame[["b", "a"]]), "the same features in the same order"),
        (StandardScaler().fit(frame[["a"]]), "the same n_features_in_"),
        (StandardScaler().fit(frame, groups=np.zeros(20)), "all fitted with groups, or all without"),
    ):
        with pytest.raises(ValueError, match=message):
            a.merge(other)
    with pytest.raises(sklearn.exceptions.NotFittedError):
        a.merge(StandardScaler())
    with pytest.raises(TypeError, match=r"takes scalers of batchnorm\.sklearn; got StandardScaler of sklearn"):
        a.merge(Theirs().fit(frame))
    with pytest.raises(TypeError):
        a + 1


# --- groups


@given(
    seed=st.integers(0, 2**32 - 1),
    options=st.sampled_from(OPTIONS),
    together=st.booleans(),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_groups_are_fits_of_their_own(seed, options, together, dtype):
    """To the bit: moments, results, inverse, in place as well; the pooled moments are those of all rows."""
    rng = np.random.default_rng(seed)
    x, weight = table(rng, dtype=dtype), rng.random(60)
    names = rng.choice(["a", "b", "c"], 60)
    names = np.sort(names) if together else names
    scaler = StandardScaler(**options)
    y = scaler.fit_transform(x, sample_weight=weight, groups=names)
    back = scaler.inverse_transform(y, groups=names)
    into = x.copy()
    assert np.shares_memory(scaler.transform(into, copy=False, groups=names), into)
    assert np.array_equal(into, y, equal_nan=True)
    for i, name in enumerate(scaler.groups_):
        rows = names == name
        alone = StandardScaler(**options).fit(x[rows], sample_weight=weight[rows])
        assert bn.Moments._of_table(scaler.group_moments_._table[:, i].copy()) == alone.moments_
        assert np.array_equal(y[rows], alone.transform(x[rows]), equal_nan=True)
        assert np.array_equal(back[rows], alone.inverse_transform(y[rows]), equal_nan=True)
    same(scaler, StandardScaler(**options).fit(x, sample_weight=weight), 1e-12)
    some = rng.random(60) < 0.5
    if some.any() and not some.all():
        a, b = (StandardScaler(**options).fit(x[s], sample_weight=weight[s], groups=names[s]) for s in (some, ~some))
        for merged in (a + b, b + a, clone(a).fit(x[some], None, weight[some], groups=names[some]) + b):
            assert np.array_equal(merged.groups_, scaler.groups_)
            np.testing.assert_allclose(merged.group_moments_.m2, scaler.group_moments_.m2, rtol=1e-12, atol=1e-300)
        in_turn = a.partial_fit(x[~some], sample_weight=weight[~some], groups=names[~some])
        np.testing.assert_allclose(in_turn.group_moments_.mean, scaler.group_moments_.mean, rtol=1e-12)
        assert (
            in_turn.group_moments_ == (clone(a).fit(x[some], None, weight[some], groups=names[some]) + b).group_moments_
        )


def test_groups_merge_by_their_labels(rng):
    x, names = rng.normal(size=(40, 2)), np.array(["b", "d"] * 10 + ["a", "d"] * 10)
    parts = [StandardScaler().fit(x[rows], groups=names[rows]) for rows in (slice(20), slice(20, 40))]
    for merged in (sum(parts), parts[1] + parts[0], parts[0].partial_fit(x[20:], groups=names[20:])):
        assert merged.groups_.tolist() == ["a", "b", "d"]
        for name, mean in zip(merged.groups_, merged.group_moments_.mean, strict=True):
            np.testing.assert_allclose(mean, x[names == name].mean(axis=0), rtol=1e-12)


def test_unseen_groups_are_refused_or_pooled(rng):
    x, groups = rng.normal(size=(30, 2)), np.repeat([1, 2, 3], 10)
    new = np.where(groups == 2, 7, groups)
    scaler = StandardScaler().fit(x, groups=groups)
    kept = x.copy()
    with pytest.raises(ValueError, match=r"every group must have been seen by fit; got \[7\]"):
        scaler.transform(x, copy=False, groups=new)
    assert np.array_equal(x, kept)
    pooled = scaler.set_params(unseen_groups="pooled").transform(x, groups=new)
    assert np.array_equal(pooled[groups != 2], scaler.transform(x, groups=groups)[groups != 2])
    plain = StandardScaler().fit(x)
    np.testing.assert_allclose(pooled[groups == 2], plain.transform(x)[groups == 2], atol=1e-12)


def test_groups_that_make_no_sense_are_refused(rng):
    x = rng.normal(size=(4, 2))
    for groups in (
        ["a", None, "b", "b"],
        [1.0, np.nan, 2.0, 2.0],
        pd.Series([1, None, 2, 2], dtype="Int64"),
        np.array([1, "a", 2, 2], dtype=object),
    ):
        with pytest.raises(ValueError, match="all strings or all numbers, none of them missing"):
            StandardScaler().fit(x, groups=groups)
    for groups in ([1, 2], np.zeros((4, 1)), 3):
        with pytest.raises(ValueError, match="one label for each of the 4 rows"):
            StandardScaler().fit(x, groups=groups)
    scaler = StandardScaler().fit(x, groups=["a", "a", "b", "b"])
    categories = pd.Series(["a", "a", "b", "b"], dtype="category")
    assert np.array_equal(scaler.transform(x, groups=categories), scaler.transform(x, groups=["a", "a", "b", "b"]))
    for call in (lambda: scaler.transform(x, groups=[1, 1, 2, 2]), lambda: scaler.partial_fit(x, groups=[1, 1, 2, 2])):
        with pytest.raises(ValueError, match="labels of groups must be of one kind"):
            call()
    for call in (lambda: scaler.transform(x), lambda: scaler.inverse_transform(x)):
        with pytest.raises(ValueError, match="was fitted with groups"):
            call()
    with pytest.raises(ValueError, match="got none, after calls with groups"):
        scaler.partial_fit(x)
    scaler.fit(x)
    assert not hasattr(scaler, "groups_")
    with pytest.raises(ValueError, match="was fitted without groups"):
        scaler.transform(x, groups=[1, 1, 2, 2])
    with pytest.raises(ValueError, match="got groups, after calls without"):
        scaler.partial_fit(x, groups=[1, 1, 2, 2])


def test_a_column_that_differs_by_rounding_alone_is_constant() -> None:
    x = np.full((10, 2), 1e8)
    x[::2, 0] = np.nextafter(1e8, np.inf)  # one unit in the last place
    x[::2, 1] += 1e-3
    scaler, theirs = StandardScaler().fit(x), Theirs().fit(x)
    assert scaler.scale_[0] == theirs.scale_[0] == 1
    assert scaler.scale_[1] == pytest.approx(5e-4, rel=1e-4)
