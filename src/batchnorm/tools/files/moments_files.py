"""Moments in files of either format, chosen by the file's name: JSON to read, safetensors beside a model's tensors."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from ..._moments import Moments
from ..._options import EPS
from ..._plan import Axis, channel_axes
from .atomic import replacing
from .refused import Refused
from .saved_moments import ARRAYS, FORMAT, VERSION, SavedMoments, assembled, read_moments, write_moments


def save_moments(
    path: str | os.PathLike[str],
    moments: Moments,
    *,
    axis: Axis = 1,
    names: Sequence[str] | None = None,
    eps: float | None = None,
) -> None:
    """Write moments to a file from which `load_moments` gives the same bits back.

    Parameters
    ----------
    path
        Ends in ``.json`` (text, which the commands read, too) or ``.safetensors`` (needs the package safetensors). The
        file is replaced whole, or not at all.
    moments
        Moments of any shape.
    axis
        The channel axes of the data they came from, one for each axis of the moments; kept for the commands.
    names
        A name for each channel, by default those of the moments; kept for the commands.
    eps
        What to add to the variance; kept for ``batchnorm normalize --use-moments``, which without it takes 1e-5 and
        says so.

    Raises
    ------
    ValueError
        Where the file cannot be written, axis or names do not fit, or eps is not positive and finite.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> import batchnorm as bn
    >>> m = bn.moments(np.array([[0.1], [0.2]]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     bn.save_moments(pathlib.Path(folder, "m.json"), m)
    ...     bn.load_moments(pathlib.Path(folder, "m.json")) == m
    True
    """
    if not isinstance(moments, Moments):
        raise TypeError(f"save_moments: moments must be Moments; got {type(moments).__name__}")
    if eps is not None:
        EPS.checked(eps, "save_moments")
    axes = channel_axes(axis)
    given = [axes] if isinstance(axes, int) else list(axes)
    arrays = {name: getattr(moments, name) for name in ARRAYS}
    try:
        names = moments.names if names is None else names
        saved = assembled(arrays, given, None if names is None else list(names), eps)
    except (TypeError, ValueError) as error:
        raise Refused(
            f"save_moments: {error}; the moments have shape {moments.shape}. axis names the channel axes of the data, "
            "one for each axis of the moments; names one name for each channel"
        ) from None
    suffix = suffix_of(path, "save_moments")
    with replacing(path) as temporary:
        write(temporary, saved, suffix)


def load_moments(path: str | os.PathLike[str]) -> Moments:
    """Moments that `save_moments`, or a command such as ``batchnorm moments``, wrote, with their names.

    Raises
    ------
    ValueError
        Where the file does not exist, or is none of saved moments.
    """
    saved = read(path, "load_moments")
    return saved.moments.named(saved.names)


def write(path: Path, saved: SavedMoments, suffix: str) -> None:
    """Write to ``path`` in the format of ``suffix``."""
    (write_moments if suffix == ".json" else _write_safetensors)(path, saved)


def read(path: str | os.PathLike[str], who: str) -> SavedMoments:
    """Return what ``write`` wrote."""
    return (read_moments if suffix_of(path, who) == ".json" else _read_safetensors)(Path(path))


def check_format(path: Path, who: str) -> None:
    """Refuse a file whose name tells no format, or one that cannot be read or written here."""
    if suffix_of(path, who) == ".safetensors":
        try:
            _safetensors()
        except ImportError as error:
            raise Refused(f"{who} {path}: {error}.") from error


def suffix_of(path: str | os.PathLike[str], who: str = "") -> str:
    """Return the suffix of a file of moments, or refuse it."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".json", ".safetensors"):
        raise Refused(f"{who}: the file's name must end in .json or .safetensors; got {os.fspath(path)}")
    return suffix


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            "moments in .safetensors files need the package safetensors, which is not installed. Install it with: pip "
            "install safetensors; or name a .json file, which needs nothing"
        ) from None
    return safetensors


def _write_safetensors(path: Path, saved: SavedMoments) -> None:
    arrays = {name: np.asarray(getattr(saved.moments, name), order="C") for name in ARRAYS}
    about = {name: json.dumps(value) for name, value in saved.about().items()}
    path.write_bytes(_safetensors().numpy.save(arrays, about))


def _read_safetensors(path: Path) -> SavedMoments:
    library = _safetensors()
    try:
        with library.safe_open(path, framework="numpy") as file:
            about = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except FileNotFoundError as error:
        raise Refused(f"{path} does not exist. Save moments first, with bn.save_moments.") from error
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror or error}.") from error
    except (library.SafetensorError, ValueError) as error:
        raise Refused(f"{path} is not a file of saved moments: it is not safetensors ({error}).") from error
    if about.get("format") != FORMAT or about.get("version") != VERSION:
        raise Refused(f"{path} is not a file of saved moments of version {VERSION}. Save them with bn.save_moments.")
    try:
        if any(arrays[name].dtype != np.float64 for name in ARRAYS):
            raise TypeError("count, mean, mean_low and m2 are not float64")
        return assembled({name: arrays[name] for name in ARRAYS}, about["axis"], about["names"], about.get("eps"))
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise Refused(f"{path} is damaged: {reason}. Save the moments again with bn.save_moments.") from error
