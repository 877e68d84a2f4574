"""Outputs that appear whole or not at all: written beside the target, flushed to the disk, then renamed over it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .refused import Refused


def check_output(path: str | os.PathLike[str]) -> Path:
    """Return the file that ``path`` finally names, or say why nothing can be written there. Changes nothing."""
    if os.fspath(path) == "-":
        raise Refused("an output appears when it is complete, so it cannot be standard output; got -. Name a file.")
    target = Path(os.path.realpath(path))  # a link stays a link; what it points to is replaced
    folder = target.parent
    if not folder.is_dir():
        raise Refused(f"{path}: the directory {folder} does not exist. Create it first, or choose another output.")
    if target.is_dir():
        raise Refused(f"{path} is a directory. Name a file in it.")
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        raise Refused(f"{path} is not a regular file, and the output is put in place by renaming. Name a file.")
    if target.exists() and not os.access(target, os.W_OK):
        raise Refused(f"{path} exists and may not be written. Change its permissions, or choose another output.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Refused(f"{path}: no file may be created in {folder}. Change its permissions, or choose another output.")
    return target


def check_json(path: Path, first: str) -> None:
    """Refuse a name that is not one of JSON: the input, say, behind an option whose file may be left out."""
    if path.suffix.lower() != ".json":
        raise Refused(f"--json: the file's name must end in .json; got {path}. {first}")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the path of an empty temporary file; when the block ends well, it becomes ``path``, else it is removed.

    The permissions are those of the file replaced, or those the umask gives a new file.
    """
    target = check_output(path)
    temporary = target.with_name(f".{target.name[:40]}.{os.urandom(4).hex()}.tmp")  # a name has 255 bytes at most
    try:
        # Inside the try, so that an interruption right after its creation removes the file too.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        if target.exists():
            os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise Refused(
            f"{path} could not be written: {error.strerror or error}. Nothing was changed; make room or choose "
            "another output."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
