"""Run each line ``$ batchnorm ...`` of docs/command-line.md and write what it prints below it."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "house"), str(ROOT / "tests" / "support")]

from test_docs import FENCE, Block, entries_of, output_of, run_python  # noqa: E402

PAGE = ROOT / "docs" / "command-line.md"


def main() -> None:
    names: dict[str, Any] = {}

    def renewed(match: re.Match[str]) -> str:
        block = Block(match[1], match[2], 1, False)
        if block.language == "python":
            run_python(block, PAGE, names)
        if block.language != "console":
            return match[0]
        shown = "".join(f"$ {command}\n{output_of(command)}" for command, _ in entries_of(block))
        return f"```console\n{shown}```"

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the page's blocks write files
        text = FENCE.sub(renewed, PAGE.read_text(encoding="utf-8"))
        os.chdir(ROOT)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
