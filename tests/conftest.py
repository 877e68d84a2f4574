"""What every test shares: Hypothesis settings, the number of threads put back, and the table of measured errors."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np
import pytest

# Before PyTorch is imported: its threads sleep where there is nothing to do. By default they spin, and take the
# processors from the other test processes: a file of tests that takes 10 s takes two minutes then.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

os.environ["LC_ALL"] = "C.UTF-8"  # reports are in the language of the locale

# Whatever pytest's import mode.
sys.path.extend(str(Path(__file__).parent / folder) for folder in ("breaks", "fuzz", "support"))

import batchnorm as bn

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytest.register_assert_rewrite("chromium", "pages")

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, database=None, max_examples=60)
_FAST = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # what fails is not made small, nor explained
hypothesis.settings.register_profile("fast", hypothesis.settings.get_profile("repeatable"), phases=_FAST)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=2000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

_ERRORS: dict[str, dict[str, float]] = {}


class MeasuredErrors:
    """Worst errors, by ladder and rung, as multiples of the bound that was asserted."""

    def record(self, ladder: str, rung: str, ratio: float) -> None:
        rungs = _ERRORS.setdefault(ladder, {})
        rungs[rung] = max(ratio, rungs.get(rung, 0.0))


@pytest.fixture(scope="session")
def measured() -> MeasuredErrors:
    """Collects measured errors; they are printed after the run, and written where ``--errors-to`` says."""
    return MeasuredErrors()


@pytest.fixture(autouse=True)
def _settings_put_back() -> Iterator[None]:
    """No test leaves its number of threads or its instruction set to the next."""
    threads, isa = bn.get_num_threads(), bn._native.isa()
    yield
    bn.set_num_threads(threads)
    bn._native.force_isa(isa)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One browser for all tests of pages: a process may have one only."""
    from chromium import chromium

    with chromium() as started:
        yield started


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20150211)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Python would look through these million objects for cycles again and again; imports and tests stay anyway."""
    gc.disable()
    result = yield
    gc.collect()
    gc.freeze()
    gc.enable()
    return result


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--errors-to", metavar="FILE", help="write the measured errors of the accuracy ladders as JSON")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process of pytest-xdist has ended: what it measured joins the rest."""
    for ladder, rungs in getattr(node, "workeroutput", {}).get("errors", {}).items():
        for rung, ratio in rungs.items():
            MeasuredErrors().record(ladder, rung, ratio)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["errors"] = _ERRORS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--errors-to"):
        Path(config.getoption("--errors-to")).write_text(json.dumps(_ERRORS, indent=2) + "\n")
    if not _ERRORS:
        return
    terminalreporter.section("worst measured error, as a fraction of the bound asserted")
    for ladder, rungs in sorted(_ERRORS.items()):
        cells = "  ".join(f"{rung}: {ratio:.2f}" for rung, ratio in rungs.items())
        terminalreporter.write_line(f"{ladder:<40} {cells}")
