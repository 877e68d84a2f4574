"""What tests of the commands share: files to read, and what every refusal is."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm.tools.cli import main

Capture = pytest.CaptureFixture[str]


def write(name: str, text: str | bytes) -> str:
    Path(name).write_bytes(text.encode() if isinstance(text, str) else text)
    return name


def write_table(name: str, values: np.ndarray, header: list[str] | None = None, last: list[str] | None = None) -> str:
    with open(name, "w", newline="") as file:
        writer = csv.writer(file)
        if header:
            writer.writerow(header)
        for i, row in enumerate(values.tolist()):
            writer.writerow([*row, last[i]] if last else row)
    return name


def listing() -> list[str]:
    return sorted(p.name for p in Path().iterdir())


def save(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def parquet(**columns: list) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def is_one_plain_paragraph(message: str) -> bool:
    return (
        message.count("\n") == 1
        and message.endswith("\n")
        and message.startswith("batchnorm: ")
        and "Traceback" not in message
    )


def refused(argv: list[str], parts: list[str], capsys: Capture) -> None:
    before = listing()
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert is_one_plain_paragraph(captured.err)
    for part in parts:
        assert part in captured.err
    assert f": {argv[0]}: " not in captured.err, "a function of the package is no matter of who reads this"
    assert listing() == before


FLOATS = save(np.ones((4, 3)))
