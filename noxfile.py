"""The quick tests with the oldest and the newest versions that pyproject.toml allows: `nox`, or `nox -s oldest`.

Each session builds the module in an environment of its own. PyTorch brings some GB along, so no server runs this.
`nox -s oldest -- tests/arrays/test_forward.py` runs a part, and `nox -s without_pytorch` what needs no PyTorch.
"""

from __future__ import annotations

from pathlib import Path

import nox

QUICK = ("pytest", "-n", "2", "--dist", "worksteal", "-m", "not slow")
PYTORCHS = ("torch", "greenlet", "onnx")  # what is installed for it only
USES_IT = ("torch", "plain_formulas", "why_numbers")  # words of tests that import it, by themselves or by a helper


def needed(*names: str) -> list[str]:
    """What these extras ask for, by pyproject.toml."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    lines = [line for name in names for line in project["optional-dependencies"][name]]
    return [*project["dependencies"], *(line for line in lines if not line.startswith("batchnorm"))]


@nox.session(python="3.10")
def oldest(session: nox.Session) -> None:
    """Every `>=` of what the tests need is an `==`."""
    lines = needed("cli", "parquet", "safetensors", "sklearn", "torch", "why", "test")
    # old versions of matplotlib call pyparsing by its old names
    session.install(*(line.replace(">=", "==") for line in lines), "pyparsing<3.2")
    session.install("--no-deps", ".")
    session.run(*QUICK, *session.posargs)


@nox.session(python="3.13")
def newest(session: nox.Session) -> None:
    """What pip finds, with nothing held back."""
    session.install(".[test]")
    session.run(*QUICK, *session.posargs)


@nox.session(python="3.13")
def without_pytorch(session: nox.Session) -> None:
    """What pip finds, and the tests of arrays and files in which PyTorch has no part."""
    lines = needed("cli", "parquet", "safetensors", "sklearn", "why", "test")
    session.install(".", *(line for line in lines if not line.startswith(PYTORCHS)))
    files = [f for part in ("arrays", "tools") for f in Path("tests", part).glob("test_*.py")]
    alone = [str(f) for f in sorted(files) if not any(word in f.read_text(encoding="utf-8") for word in USES_IT)]
    session.run(*QUICK, *(session.posargs or alone))
