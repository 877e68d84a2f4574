"""A drop-in for scikit-learn's StandardScaler, on this library's moments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

try:
    from sklearn import get_config, preprocessing
    from sklearn.base import _fit_context, clone
    from sklearn.utils import assert_all_finite, check_array
    from sklearn.utils._param_validation import StrOptions
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        f"batchnorm.sklearn needs scikit-learn 1.6 or later ({error}); install it with: pip install 'scikit-learn>=1.6'"
    ) from error

from . import _inputs, _row_groups, _scaling
from ._batch_moments import moments
from ._moments import Moments

__all__ = ["StandardScaler"]

Array = NDArray[Any]

_DTYPES = (np.float64, np.float32, np.float16)  # of data that stays as it is; anything else becomes float64


class StandardScaler(preprocessing.StandardScaler):  # type: ignore[misc]  # scikit-learn has no types
    """Standardize the columns of a table: scikit-learn's StandardScaler on exact moments, which merge.

    A drop-in for `sklearn.preprocessing.StandardScaler`: its parameters, methods and fitted attributes, in pipelines,
    searches, ``set_output`` and ``clone``. It subtracts the mean exactly in float32, too, and needs no memory beyond
    the result. NaN is missing, cell by cell. Sparse matrices, and arrays of other libraries under scikit-learn's
    ``array_api_dispatch``, are left to scikit-learn.

    Beyond scikit-learn: fitted scalers merge (`merge`, ``+``), and ``groups=`` standardizes each group of rows by
    moments of its own.

    Parameters
    ----------
    copy
        False: write the result into X where that is possible.
    with_mean
        Subtract the mean of each column.
    with_std
        Divide by the standard deviation (biased) of each column. A column that is constant is not divided.
    unseen_groups
        What `transform` does with a group that `fit` did not see: "raise" ValueError, or standardize it by the
        "pooled" moments of all groups.

    Attributes
    ----------
    mean_, var_, scale_, n_samples_seen_, n_features_in_, feature_names_in_
        As scikit-learn has them. `mean_` and `scale_` are what `transform` uses, so they may be changed.
    moments_ : Moments
        Count, mean and M2 of each column, with the names of the features: what the others are computed from. There is
        none after a fit by scikit-learn's own code without `with_std`, or of another library's arrays.
    groups_ : ndarray of shape (n_groups,)
        The labels, sorted. Only after ``groups=``.
    group_moments_ : Moments of shape (n_groups, n_features)
        The moments of each group, in the order of `groups_`; `moments_` is their merge. Only after ``groups=``.

    Examples
    --------
    >>> import numpy as np
    >>> from batchnorm.sklearn import StandardScaler
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0], [5.0, np.nan]])
    >>> StandardScaler().fit(x[:2]).transform(x)
    array([[-1., -1.],
           [ 1.,  1.],
           [ 3., nan]])
    >>> merged = StandardScaler().fit(x[:1]) + StandardScaler().fit(x[1:])
    >>> merged.mean_, merged.n_samples_seen_
    (array([ 3., 20.]), array([3, 2]))
    """

    _parameter_constraints = {  # noqa: RUF012  # scikit-learn's way
        **preprocessing.StandardScaler._parameter_constraints,
        "unseen_groups": [StrOptions({"raise", "pooled"})],
    }

    def __init__(
        self, *, copy: bool = True, with_mean: bool = True, with_std: bool = True, unseen_groups: str = "raise"
    ) -> None:
        super().__init__(copy=copy, with_mean=with_mean, with_std=with_std)
        self.unseen_groups = unseen_groups

    def fit(
        self,
        X: ArrayLike,
        y: object = None,
        sample_weight: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
    ) -> StandardScaler:
        """Gather the moments of X; what was gathered before is forgotten.

        Parameters
        ----------
        X
            Table of shape (n_samples, n_features): an array, a DataFrame, a sparse matrix. NaN is a missing value.
        y
            Ignored.
        sample_weight
            A weight for each row, not negative; None counts each row once.
        groups
            A label for each row: each group gets moments of its own. None: all rows are one.

        Returns
        -------
        StandardScaler
            This scaler.
        """
        self._reset()
        fitted: StandardScaler = self.partial_fit(X, y, sample_weight, groups=groups)
        return fitted

    @_fit_context(prefer_skip_nested_validation=True)  # type: ignore[untyped-decorator]  # scikit-learn has no types
    def partial_fit(
        self,
        X: ArrayLike,
        y: object = None,
        sample_weight: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
    ) -> StandardScaler:
        """Merge the moments of X with those gathered before. Parameters and result are those of `fit`."""
        first = not hasattr(self, "n_samples_seen_")
        if not first and (groups is None) == hasattr(self, "groups_"):
            raise ValueError(
                "StandardScaler: partial_fit must be given groups at every call or at none; "
                + ("got none, after calls with groups" if groups is None else "got groups, after calls without")
            )
        if _is_theirs(X) or not (first or hasattr(self, "moments_")):
            _refuse_groups(groups)
            super().partial_fit(X, y, sample_weight)
            self._adopt()
            return self
        x = self._validated(X, reset=first)
        with self._told_to_callbacks(X, y, sample_weight):
            weight, weighted = None, sample_weight is not None or (not first and self._is_weighted())
            if sample_weight is not None:
                weight = _check_sample_weight(sample_weight, x, dtype=x.dtype)
                _refuse_infinity(x, self)  # that of a row of weight 0 does not show in the moments
            if groups is None:
                gathered = _gathered(x, weight, self)
                self._keep(gathered if first else self.moments_ + gathered, weighted)
            else:
                labels, parts = _row_groups.parts_of(groups, len(x))
                tables = [_gathered(x[rows], None if weight is None else weight[rows], self)._table for rows in parts]
                gathered = Moments._of_table(np.stack(tables, axis=1))
                if not first:
                    labels, gathered = _row_groups.merged_groups(
                        [(self.groups_, self.group_moments_), (labels, gathered)]
                    )
                self._keep_groups(labels, gathered, weighted)
        return self

    def fit_transform(
        self,
        X: ArrayLike,
        y: object = None,
        sample_weight: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
    ) -> Array:
        """Gather the moments of X and standardize it by them: `fit` and then `transform`."""
        result: Array = self.fit(X, y, sample_weight, groups=groups).transform(X, groups=groups)
        return result

    def transform(self, X: ArrayLike, copy: bool | None = None, *, groups: ArrayLike | None = None) -> Array:
        """Standardize X by the moments that were gathered.

        Parameters
        ----------
        X
            Table with the features of `fit`. NaN stays NaN.
        copy
            False: write the result into X where that is possible. None: as the scaler was built.
        groups
            A label for each row, after a fit with groups.

        Returns
        -------
        ndarray
            In the dtype of X where it is float64, float32 or float16, else in float64.
        """
        check_is_fitted(self)
        if _is_theirs(X) or not hasattr(self, "moments_"):
            _refuse_groups(groups)
            result: Array = super().transform(X, copy)
            return result
        return self._applied(X, copy, groups, inverse=False)

    def inverse_transform(self, X: ArrayLike, copy: bool | None = None, *, groups: ArrayLike | None = None) -> Array:
        """Bring standardized data back to where it came from: the inverse of `transform`, with its parameters."""
        check_is_fitted(self)
        if _is_theirs(X) or not hasattr(self, "moments_"):
            _refuse_groups(groups)
            result: Array = super().inverse_transform(X, copy)
            return result
        return self._applied(X, copy, groups, inverse=True)

    def merge(self, *others: StandardScaler) -> StandardScaler:
        """Build the scaler of all the data that this and the others were fitted to: of machines, folds or files.

        Merged in any order and grouping, the statistics are those of one fit to about 1e-12, not to the bit. Neither
        this scaler nor the others change.

        >>> from batchnorm.sklearn import StandardScaler
        >>> a, b = StandardScaler().fit([[1.0], [3.0]]), StandardScaler().fit([[8.0]])
        >>> a.merge(b).mean_
        array([4.])
        """
        scalers = (self, *others)
        for scaler in scalers:
            self._refuse_to_merge(scaler)
        merged: StandardScaler = clone(self)
        merged.n_features_in_ = self.n_features_in_
        for scaler in scalers:
            if hasattr(scaler, "feature_names_in_"):
                merged.feature_names_in_ = scaler.feature_names_in_
        weighted = any(scaler._is_weighted() for scaler in scalers)
        if hasattr(self, "groups_"):
            merged._keep_groups(*_row_groups.merged_groups([(s.groups_, s.group_moments_) for s in scalers]), weighted)
        else:
            merged._keep(self.moments_.merge(*(scaler.moments_ for scaler in others)), weighted)
        return merged

    def __add__(self, other: StandardScaler) -> StandardScaler:
        return self.merge(other) if isinstance(other, StandardScaler) else NotImplemented

    def __radd__(self, other: object) -> StandardScaler:
        return self if isinstance(other, int) and other == 0 else NotImplemented  # sum() starts with 0

    # --- state

    def _reset(self) -> None:
        super()._reset()
        for name in ("moments_", "groups_", "group_moments_"):
            if hasattr(self, name):
                delattr(self, name)

    def _keep(self, m: Moments, weighted: bool) -> None:
        """Take these moments, and compute scikit-learn's attributes from them."""
        self.moments_ = self._named(m)
        n = m.count if weighted else m.count.astype(np.int64)
        self.n_samples_seen_ = n[0] if n.max() == n.min() else n
        mean, var, scale = _scaling.statistics(m)
        self.mean_ = mean if self.with_mean or self.with_std else None
        self.var_ = var if self.with_std else None
        self.scale_ = scale if self.with_std else None

    def _keep_groups(self, labels: Array, m: Moments, weighted: bool) -> None:
        self.groups_, self.group_moments_ = labels, self._named(m)
        self._keep(m.reduce(), weighted)

    def _adopt(self) -> None:
        """Take the moments of what scikit-learn has fitted, if it has gathered any."""
        if hasattr(self, "moments_"):
            del self.moments_
        if isinstance(self.mean_, np.ndarray) and isinstance(self.var_, np.ndarray):
            self.moments_ = self._named(Moments(self.n_samples_seen_, self.mean_, self.var_ * self.n_samples_seen_))

    def _named(self, m: Moments) -> Moments:
        return m.named(getattr(self, "feature_names_in_", None))

    def _is_weighted(self) -> bool:
        return bool(np.asarray(self.n_samples_seen_).dtype.kind == "f")

    def _validated(self, X: ArrayLike, named: bool = True, **options: Any) -> Array:
        """X as an array of a dtype that stays; `named`: its features must be those of the fit."""
        if named:
            x: Array = validate_data(self, X, dtype=_DTYPES, ensure_all_finite=False, **options)
        else:
            x = check_array(X, dtype=_DTYPES, ensure_all_finite=False, **options)
        return x.copy() if _inputs.is_odd(x) else x

    @contextmanager
    def _told_to_callbacks(self, X: object, y: object, sample_weight: object) -> Iterator[None]:
        """Tell callbacks, which scikit-learn has from 1.9 on, of the one task of a fit."""
        if not hasattr(self, "_init_callback_context"):
            yield
            return
        context = self._init_callback_context()
        task = {"estimator": self, "X": X, "y": y, "metadata": {"sample_weight": sample_weight}}
        context.call_on_fit_task_begin(**task)
        yield
        context.call_on_fit_task_end(**task, reconstruction_attributes={})

    def _refuse_to_merge(self, other: StandardScaler) -> None:
        if not isinstance(other, StandardScaler):
            raise TypeError(
                f"StandardScaler: merge takes scalers of batchnorm.sklearn; got {type(other).__name__} of "
                f"{type(other).__module__}; fit one on the same data"
            )
        check_is_fitted(other)
        if not hasattr(other, "moments_"):
            raise ValueError(
                "StandardScaler: merge needs the moments of each scaler; got one that scikit-learn's own code fitted "
                "without gathering them (sparse with with_std=False, or arrays of another library)"
            )
        for what in ("with_mean", "with_std", "unseen_groups", "n_features_in_"):
            ours, theirs = getattr(self, what), getattr(other, what)
            if ours != theirs:
                raise ValueError(f"StandardScaler: merge needs the same {what} everywhere; got {ours} and {theirs}")
        if hasattr(self, "groups_") != hasattr(other, "groups_"):
            raise ValueError("StandardScaler: merge needs scalers that were all fitted with groups, or all without")
        names, others = (getattr(scaler, "feature_names_in_", None) for scaler in (self, other))
        if names is not None and others is not None and not np.array_equal(names, others):
            raise ValueError(
                f"StandardScaler: merge needs the same features in the same order; got {list(names)} and {list(others)}"
            )

    # --- apply

    def _applied(self, X: ArrayLike, copy: bool | None, groups: ArrayLike | None, inverse: bool) -> Array:
        """Transform, or its inverse, into X itself where that is asked for, or where X had to be converted."""
        if (groups is None) == hasattr(self, "groups_"):
            raise ValueError(
                "StandardScaler: this scaler was fitted with groups; give the group of each row with groups="
                if groups is None
                else "StandardScaler: this scaler was fitted without groups; fit it with groups= to use them"
            )
        in_place = not (self.copy if copy is None else copy)
        if inverse:  # results of transform may have lost their names
            x = self._validated(X, named=False, force_writeable=in_place)
        else:
            x = self._validated(X, reset=False, force_writeable=in_place)
        _refuse_infinity(x, self)
        converted = isinstance(X, np.ndarray) and not np.may_share_memory(x, X)
        out = x if in_place or converted else None
        if groups is None:
            return _scaling.apply(self._coefficients(), x, out, inverse)
        labels, parts = _row_groups.parts_of(groups, len(x))
        coefficients = self._coefficients_of(labels)
        y = np.empty_like(x) if out is None else out
        for rows, c in zip(parts, coefficients, strict=True):
            part = x[rows]
            if isinstance(rows, slice):
                _scaling.apply(c, part, y[rows], inverse)
            else:
                y[rows] = _scaling.apply(c, part, part, inverse)
        return y

    def _coefficients(self) -> _scaling.Coefficients:
        """Mean, what rounding left of it, and scale, as the attributes say."""
        mean, low = np.zeros((2, self.n_features_in_))
        if self.with_mean:
            mean = np.asarray(self.mean_, dtype=np.float64)
            low = np.where(mean == self.moments_.mean, self.moments_.mean_low, 0.0)  # not that of a changed mean_
        return mean, low, np.asarray(self.scale_, dtype=np.float64) if self.with_std else None

    def _coefficients_of(self, labels: Array) -> list[_scaling.Coefficients]:
        """Coefficients of each group; of those that were not seen, as `unseen_groups` says."""
        where = np.searchsorted(self.groups_, labels).clip(max=len(self.groups_) - 1)
        _row_groups.refuse_other_labels(self.groups_, labels)
        seen = self.groups_[where] == labels
        if self.unseen_groups == "raise" and not seen.all():
            raise ValueError(
                f"StandardScaler: every group must have been seen by fit; got {labels[~seen].tolist()}; fit them, or "
                "build the scaler with unseen_groups='pooled' to standardize them by the moments of all groups"
            )
        mean, _, scale = _scaling.statistics(self.group_moments_)
        low = self.group_moments_.mean_low
        none = np.zeros(self.n_features_in_)
        return [
            (
                (
                    mean[i] if self.with_mean else none,
                    low[i] if self.with_mean else none,
                    scale[i] if self.with_std else None,
                )
                if known
                else self._coefficients()
            )
            for i, known in zip(where, seen, strict=True)
        ]


def __dir__() -> list[str]:
    return __all__


# --- moments


def _gathered(x: Array, weight: Array | None, estimator: StandardScaler) -> Moments:
    """Moments of what is not NaN; infinity, which they show, is refused."""
    try:
        m = moments(x, sample_weight=weight, nan_policy="omit")
    except (TypeError, ValueError) as error:  # of the weights: x has been checked
        raise type(error)(str(error).replace("moments:", f"{type(estimator).__name__}:", 1)) from None
    if not np.isfinite(m.mean).all():
        _refuse_infinity(x, estimator)
    return m


def _refuse_infinity(x: Array, estimator: StandardScaler) -> None:
    """Raise as scikit-learn does, where its configuration asks for checks; looked for at the speed of memory."""
    if get_config()["assume_finite"]:
        return
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.einsum("ij->", x)):  # a sum at the speed of memory
            return
    if not np.isfinite(moments(x, nan_policy="omit").mean).all():
        name = type(estimator).__name__
        assert_all_finite(x, allow_nan=True, estimator_name=name, input_name="X")


def _is_theirs(X: object) -> bool:
    """Whether scikit-learn has to do it: sparse data, and arrays of other libraries where it dispatches on them."""
    if isinstance(X, np.ndarray):
        return False
    return hasattr(X, "tocsr") or hasattr(X, "sparse") or bool(get_config()["array_api_dispatch"])


# --- groups


def _refuse_groups(groups: object) -> None:
    if groups is not None:
        raise ValueError(
            "StandardScaler: groups need dense data; got a sparse matrix, or an array of another library; convert it "
            "with X.toarray() or np.asarray(X)"
        )
