"""Breaks the code on purpose, in one place after the other, and sees that the quick tests fail.

    python tests/breaks/breaks.py              # all of them; hours where the whole quick set has to look
    python tests/breaks/breaks.py ghosts renorm # those whose file or description has one of these words
    python tests/breaks/breaks.py --first      # only with the tests most likely to see them; what those miss is named
    python tests/breaks/breaks.py --write      # and put the table into docs/tests.md

Each break is made in a copy of the files, with the native module that is installed, or, for those in C++, one that
is built there for one instruction set. The checkout is left alone.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tests.md"
QUICK = "-q -x --tb=no -p no:cacheprovider -p no:randomly --timeout=900 --timeout-method=thread".split()  # noqa: SIM905
QUICK += ["-m", "not slow"]
LIST = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
CAUGHT, NOT_CAUGHT = 1, 0  # pytest's exit codes
MARKS = ("<!-- breaks-table -->", "<!-- /breaks-table -->")


class Break(NamedTuple):
    """Some text of a file, what stands in its place, what that breaks, and the tests that look first."""

    file: str
    old: str
    new: str
    what: str
    first: str

    def made_in(self, text: str) -> str:
        """The file's text, broken; the place must be found exactly once."""
        found = text.count(self.old)
        if found != 1:
            raise ValueError(f"{self.file}: text must be found once; got {found} times: {self.old!r}; mend the break")
        return text.replace(self.old, self.new)


def path_of(test: str) -> Path:
    """Where the file of tests of this name lies."""
    (path,) = (ROOT / "tests").rglob(test)
    return path


def all_breaks() -> list[Break]:
    """Those of the core, then those of Python."""
    import breaks_of_core
    import breaks_of_python

    return [*breaks_of_core.BREAKS, *breaks_of_python.BREAKS]


class Copy:
    """A copy of the files that can be broken, built and tested."""

    def __init__(self, place: Path) -> None:
        self.place, self.build, self.is_built = place, place / "build", True  # the module that is installed
        tracked = subprocess.run(LIST, cwd=ROOT, check=True, capture_output=True, text=True)
        for name in filter(None, tracked.stdout.split("\0")):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(place / "src"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "CCACHE_BASEDIR": str(place),
            "HYPOTHESIS_PROFILE": "fast",
        }
        say = "import batchnorm._native as native; print(native.isa(), native.__file__)"
        told = subprocess.run([sys.executable, "-c", say], check=True, capture_output=True, text=True)
        self.isa, _, installed = told.stdout.strip().partition(" ")
        shutil.copy2(installed, place / "src" / "batchnorm")

    def make(self) -> None:
        """Build what changed of the native module, and put it into the package."""
        if self.is_built:
            return
        if not self.build.exists():
            asked = [sys.executable, "-m", "nanobind", "--cmake_dir"]
            nanobind = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
            options = [f"-Dnanobind_DIR={nanobind}", f"-DPython_EXECUTABLE={sys.executable}"]
            options.append(f"-DBATCHNORM_ISAS={self.isa}")
            options += ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] * bool(shutil.which("ccache"))
            configure = ["cmake", "-S", self.place, "-B", self.build, "-G", "Ninja", *options]
            subprocess.run(configure, check=True, stdout=subprocess.DEVNULL, env=self.environment)
        done = subprocess.run(["ninja", "-C", self.build], capture_output=True, text=True, env=self.environment)
        if done.returncode:
            raise SystemExit(f"does not compile:\n{done.stdout[-3000:]}")
        name = f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
        shutil.copy2(self.build / name, self.place / "src" / "batchnorm" / name)
        self.is_built = True

    def test(self, names: list[str]) -> tuple[int, str]:
        """Run quick tests, up to the first that fails; pytest's exit code, and the test that failed."""
        self.make()
        with tempfile.TemporaryFile("w+") as output:
            process = os.fork()  # what the tests import of others is here already
            if process == 0:
                self._test_in_child(output.fileno(), [str(path_of(name).relative_to(ROOT)) for name in names])
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            output.seek(0)
            said = output.read()
        failed = re.search(r"^(?:FAILED|ERROR) tests/\w+/([\w.:]+)", said, re.MULTILINE)
        crashed = re.search(r"File \"\S*/(test_\w+\.py)\", line \d+ in (test_\w+)", said)
        if code < 0:  # a signal
            return CAUGHT, f"{'::'.join(crashed.groups()) if crashed else names[0]} (crash)"
        if code not in (CAUGHT, NOT_CAUGHT):
            raise SystemExit(f"the tests did not run:\n{said[-3000:]}")
        return code, failed.group(1) if failed else f"{names[0]} (hangs)" * code

    def _test_in_child(self, output: int, names: list[str]) -> NoReturn:
        code = 3  # an error within pytest
        try:
            os.dup2(output, 1), os.dup2(output, 2)
            os.chdir(self.place)
            os.environ.update(self.environment)
            sys.path.insert(0, str(self.place / "src"))
            code = int(pytest.main([*QUICK, *names]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)

    def caught_by(self, broken: Break, first_only: bool) -> str:
        """The test that sees the break; nothing where none does."""
        file = self.place / broken.file
        whole = file.read_text(encoding="utf-8")
        native = broken.file.startswith("cpp/")
        file.write_text(broken.made_in(whole), encoding="utf-8")
        self.is_built = self.is_built and not native
        try:
            code, test = self.test(broken.first.split())
            if code == NOT_CAUGHT and not first_only:
                code, test = self.test([])
        finally:
            file.write_text(whole, encoding="utf-8")
            self.is_built = self.is_built and not native
        return test if code == CAUGHT else ""


def key_of(broken: Break) -> str:
    """What a line of the table begins with."""
    return f"| `{broken.file.removeprefix('src/batchnorm/')}` | {broken.what} | "


def row_of(broken: Break, test: str) -> str:
    """A line of the table."""
    return f"{key_of(broken)}{f'`{test}`' if test else 'NOT CAUGHT'} |"


def table_of(text: str) -> dict[str, str]:
    """The lines of the page's table, by what they begin with."""
    rows = text.partition(MARKS[0])[2].partition(MARKS[1])[0].splitlines()
    return {row[: row.rindex(" | ") + 3]: row for row in rows if row.startswith("| `")}


def write(rows: dict[str, str]) -> None:
    """Put rows into the page's table, in the order of the breaks; others stay, those of breaks that are gone go."""
    text = PAGE.read_text(encoding="utf-8")
    known = table_of(text) | rows
    lines = [known[key] for key in map(key_of, all_breaks()) if key in known]
    table = "\n".join(["", "", "| file | what is broken | caught by |", "| --- | --- | --- |", *lines, "", ""])
    before, after = text.partition(MARKS[0])[0], text.partition(MARKS[1])[2]
    PAGE.write_text(f"{before}{MARKS[0]}{table}{MARKS[1]}{after}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="of files or descriptions; default all breaks")
    parser.add_argument("--first", action="store_true", help="only the tests most likely to see a break")
    parser.add_argument("--missing", action="store_true", help="only those whose catcher docs/tests.md does not name")
    parser.add_argument("--unchecked", action="store_true", help="do not see first that all passes without a break")
    parser.add_argument("--write", action="store_true", help="put the table into docs/tests.md")
    options = parser.parse_args()
    chosen = [b for b in all_breaks() if not options.words or any(w in f"{b.file} {b.what}" for w in options.words)]
    if options.missing:
        rows = table_of(PAGE.read_text(encoding="utf-8"))
        chosen = [b for b in chosen if "NOT CAUGHT" in rows.get(key_of(b), "NOT CAUGHT")]
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as conftest.py does, before PyTorch is imported
    for module in ("ml_dtypes", "mpmath", "torch", "torch.utils.checkpoint"):
        importlib.import_module(module)
    missed = 0
    with tempfile.TemporaryDirectory(prefix="batchnorm-breaks-") as place:
        copy = Copy(Path(place))
        looking = sorted({name for b in chosen for name in b.first.split()})
        code, test = (NOT_CAUGHT, "") if options.unchecked else copy.test(looking)
        if code != NOT_CAUGHT:
            raise SystemExit(f"a test fails without any break: {test}")
        for number, broken in enumerate(chosen, 1):
            start = time.monotonic()
            test = copy.caught_by(broken, options.first)
            missed += not test
            seconds = time.monotonic() - start
            print(f"{number}/{len(chosen)}, {seconds:.0f} s: {row_of(broken, test)}", flush=True)
            if options.write:
                write({key_of(broken): row_of(broken, test)})
    print(f"{len(chosen)} breaks, {missed} not caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.modules["breaks"] = sys.modules["__main__"]  # which the tables import from
    sys.exit(main())
