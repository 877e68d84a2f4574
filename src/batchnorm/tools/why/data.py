"""The data: scikit-learn's digits, or MNIST from its four IDX files."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..files import Refused

IMAGES, LABELS = 0x803, 0x801  # an IDX file's first four bytes: unsigned bytes, in 3 axes or in 1
CLASSES = 10
TEST = 500  # of the 1797 digits; the split is drawn once, so the spread over seeds is not that of the split


@dataclass(frozen=True)
class Data:
    """Images of values from 0 to 1, (N, height, width), and labels from 0 to 9."""

    name: str
    train_images: npt.NDArray[np.float32]
    train_labels: npt.NDArray[np.int64]
    test_images: npt.NDArray[np.float32]
    test_labels: npt.NDArray[np.int64]

    @property
    def size(self) -> tuple[int, int]:
        """The height and the width of an image."""
        height, width = self.train_images.shape[1:]
        return height, width

    def described(self) -> dict[str, Any]:
        """Return what a report says of the data."""
        return {
            "name": self.name,
            "image": list(self.train_images.shape[1:]),
            "train": len(self.train_images),
            "test": len(self.test_images),
        }


def load(choice: str) -> Data:
    """Return the data that ``--data`` names."""
    kind, _, folder = choice.partition(":")
    if choice == "digits":
        return _digits()
    if kind == "mnist" and folder:
        return _mnist(Path(folder))
    raise Refused(f"--data takes digits, or mnist:DIR with the directory of the four MNIST files; got {choice!r}.")


def _digits() -> Data:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = order[:TEST], order[TEST:]
    return Data("digits", images[train], labels[train], images[test], labels[test])


def _mnist(folder: Path) -> Data:
    if not folder.is_dir():
        raise Refused(f"--data mnist:{folder}: there is no such directory. Name the one that holds the MNIST files.")
    parts = [_part(folder, name) for name in ("train", "t10k")]
    (train_images, train_labels), (test_images, test_labels) = parts
    if train_images.shape[1:] != test_images.shape[1:]:
        raise Refused(
            f"{folder}: training images are {train_images.shape[1:]} and test images {test_images.shape[1:]}; "
            "they must have one size. Take the four files of one data set."
        )
    return Data("mnist", train_images, train_labels, test_images, test_labels)


def _part(folder: Path, name: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    images_file, images = _read(folder, f"{name}-images-idx3-ubyte", IMAGES)
    labels_file, labels = _read(folder, f"{name}-labels-idx1-ubyte", LABELS)
    if len(images) != len(labels):
        raise Refused(
            f"{images_file} holds {len(images)} images and {labels_file.name} {len(labels)} labels; each image needs "
            "one. Take the files of one data set."
        )
    if labels.size and labels.max() >= CLASSES:
        raise Refused(f"{labels_file} holds the label {labels.max()}; labels must be 0 to 9. Take MNIST's own file.")
    return (images / np.float32(255)).astype(np.float32), labels.astype(np.int64)


def _read(folder: Path, name: str, magic: int) -> tuple[Path, npt.NDArray[np.uint8]]:
    """Return an IDX file, raw or gzipped, and the array in it."""
    found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if not found:
        raise Refused(f"{folder} has neither {name} nor {name}.gz. Put MNIST's four files there.")
    path = found[0]
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise Refused(f"{path} cannot be read: {error}. Fetch it again.") from error
    return path, _array(path, content, magic)


def _array(path: Path, content: bytes, magic: int) -> npt.NDArray[np.uint8]:
    axes = magic & 0xFF
    start = 4 * (1 + axes)
    header = np.frombuffer(content[: len(content[:start]) // 4 * 4], ">u4").tolist()
    if not header or header[0] != magic:
        came = f"{header[0]:#010x}" if header else "fewer than four bytes"
        raise Refused(
            f"{path} must begin with {magic:#010x}, for unsigned bytes in {axes} axes; it begins with {came}. "
            "Take MNIST's own file, unpacked or as .gz."
        )
    shape = tuple(header[1:])
    if len(shape) < axes or len(content) - start != math.prod(shape):
        wanted = f"{start + math.prod(shape)} bytes for shape {shape}" if len(shape) == axes else f"at least {start}"
        raise Refused(f"{path} must have {wanted}; it has {len(content)}. It is cut off or damaged: fetch it again.")
    if 0 in shape:
        raise Refused(f"{path} holds nothing: its shape is {shape}. Fetch it again.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
