"""NumPy's files: .npy as a memory map, one array of an .npz, and their outputs. Nothing is ever unpickled."""

from __future__ import annotations

import errno
import io
import lzma
import math
import os
import shutil
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np

from .refused import Refused

#: What NumPy's readers of headers raise: a header is a Python literal, parsed as one.
DAMAGED_HEADER = (ValueError, TypeError, SyntaxError, IndexError, RecursionError, MemoryError, tokenize.TokenError)
#: What zipfile raises: a member may be damaged, encrypted (RuntimeError), or packed in a way unknown here.
DAMAGED_ARCHIVE = (
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    RuntimeError,
    struct.error,
    UnicodeDecodeError,
)


class Header(NamedTuple):
    """What the first bytes of an .npy promise."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    offset: int


def read_npy(path: Path) -> np.ndarray:
    """Return the array of an .npy as a read-only memory map."""
    with open(path, "rb") as file:
        header = _read_header(file, str(path))
    _check_length(header, os.path.getsize(path) - header.offset, str(path))
    array: np.ndarray = np.memmap(path, header.dtype, "r", header.offset, header.shape, _order(header))
    return array


def read_npz(path: Path, key: str | None) -> tuple[np.ndarray, str]:
    """Return one array of an .npz and its key; the key may be left out when there is only one."""
    with _archive(path) as archive:
        key = _choose(archive, path, key)
        source = f"{path}, array {key!r}"
        with archive.open(f"{key}.npy") as file:
            header = _read_header(file, source)
            _check_length(header, archive.getinfo(f"{key}.npy").file_size - header.offset, source)
            data = file.read(needed := math.prod(header.shape) * header.dtype.itemsize)
            if len(data) < needed:
                raise EOFError(f"array {key!r} ends early")
    return np.ndarray(header.shape, header.dtype, data, order=_order(header)), key


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive to read; whatever is damaged in it, found now or later, is refused in one sentence."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (*DAMAGED_ARCHIVE, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system; bz2 has no number
            raise
        raise Refused(f"{path} is not a whole .npz archive ({error}). Write it again with numpy.savez.") from error


def create_npy(path: Path, shape: tuple[int, ...], dtype: np.dtype, fortran: bool) -> np.memmap:
    """Return a new .npy as a writable memory map, its space on the disk already reserved."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape, fortran_order=fortran)
    if hasattr(os, "posix_fallocate"):
        # Writing to a map of a sparse file kills the process when the disk is full; reserving fails with an error.
        _reserve(path)
    return array


def _reserve(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, os.path.getsize(path))
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # some file systems cannot, and need not
            raise
    finally:
        os.close(descriptor)


def replace_in_npz(source: Path, key: str, value: np.ndarray, target: Path) -> None:
    """Write the archive ``source`` to ``target`` with one array replaced; the other members keep their bytes."""
    with _archive(source) as old, zipfile.ZipFile(target, "w", allowZip64=True) as new:
        for member in old.infolist():
            with new.open(_like(member), "w", force_zip64=True) as out:
                if member.filename == f"{key}.npy":
                    np.lib.format.write_array(out, value, allow_pickle=False)
                else:
                    with old.open(member) as before:
                        shutil.copyfileobj(before, out, 1 << 20)


def _order(header: Header) -> Literal["C", "F"]:
    return "F" if header.fortran else "C"


def _like(member: zipfile.ZipInfo) -> zipfile.ZipInfo:
    new = zipfile.ZipInfo(member.filename, member.date_time)
    new.compress_type = member.compress_type
    new.external_attr = member.external_attr
    return new


def _choose(archive: zipfile.ZipFile, path: Path, key: str | None) -> str:
    keys = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    if not keys:
        raise Refused(f"{path} holds no array. Write one with numpy.savez.")
    listed = ", ".join(keys)
    if key is None and len(keys) > 1:
        raise Refused(
            f"{path} holds {len(keys)} arrays ({listed}), and one is needed. Choose it with --key, such as --key "
            f"{keys[0]}."
        )
    if key is not None and key not in keys:
        raise Refused(f"{path} holds no array {key!r}. Choose one of these with --key: {listed}.")
    return keys[0] if key is None else key


def _read_header(file: IO[bytes], source: str) -> Header:
    if not (start := file.read(6)):
        raise Refused(f"{source} is empty (0 bytes). Write the array again with numpy.save.")
    if start != b"\x93NUMPY":
        raise Refused(f"{source} is not an .npy file: it does not begin with NumPy's mark. Write it with numpy.save.")
    version = tuple(file.read(2))
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise Refused(f"{source} is an .npy of an unknown version {version}. Write it again with numpy.save.")
    try:
        shape, fortran, dtype = _parse_header(file, version[0])
    except DAMAGED_HEADER as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise Refused(
            f"{source}: its header is damaged or truncated ({reason}). Write it again with numpy.save."
        ) from error
    _check_dtype(dtype, source)
    return Header(shape, fortran, dtype, file.tell())


def _parse_header(file: IO[bytes], version: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read shape, order and dtype with NumPy's public readers; version 3 in ASCII, whose escapes say the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a file of Python 2 holds the same numbers
        if version == 1:
            return np.lib.format.read_array_header_1_0(file)
        if version == 2:
            return np.lib.format.read_array_header_2_0(file)
        text = file.read(int.from_bytes(file.read(4), "little")).decode("utf-8")
        escaped = text.encode("ascii", "backslashreplace")
        return np.lib.format.read_array_header_2_0(io.BytesIO(len(escaped).to_bytes(4, "little") + escaped))


def _check_dtype(dtype: np.dtype, source: str) -> None:
    if dtype.hasobject:
        raise Refused(
            f"{source} holds Python objects (dtype {dtype}); reading them would run code from the file, so it is "
            "never done. "
            "Save numbers: numpy.save(path, array.astype(numpy.float64))."
        )
    if dtype.names is not None:
        raise Refused(f"{source} holds records with the fields {', '.join(dtype.names)}. Save one field as an array.")
    if dtype.kind == "c":
        raise Refused(
            f"{source} holds complex numbers (dtype {dtype}), and a normalized value must be a real one. "
            "Save the real and imaginary parts, or the magnitude and phase, as channels."
        )
    if dtype.kind == "V":
        raise Refused(
            f"{source} holds raw bytes (dtype {dtype}); numpy.save forgets the name of bfloat16. "
            "Save such data with array.astype(numpy.float32)."
        )
    if dtype.kind in "Mm":
        first = " - array.min()" if dtype.kind == "M" else ""
        raise Refused(
            f"{source} holds times (dtype {dtype}). Count them in seconds before saving: (array{first}) / "
            "numpy.timedelta64(1, 's')."
        )
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise Refused(
            f"{source} has dtype {dtype}; float16, float32, float64, integers and booleans can be read. Convert "
            "it before saving."
        )


def _check_length(header: Header, available: int, source: str) -> None:
    size = math.prod(header.shape)
    if any(n < 0 for n in header.shape) or size * header.dtype.itemsize > np.iinfo(np.int64).max:
        raise Refused(
            f"{source}: the header says shape {header.shape}, which no file can hold. The header is damaged; "
            "write the file again with numpy.save."
        )
    if header.shape == () or size == 0:
        raise Refused(
            f"{source} has shape {header.shape}: there is nothing to average. At least one axis and one value are "
            "needed."
        )
    if (needed := size * header.dtype.itemsize) > available:
        raise Refused(
            f"{source} is truncated: shape {header.shape} of {header.dtype} needs {needed} bytes, and {available} "
            "are there. "
            "Copy or write it again."
        )
