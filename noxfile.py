"""The quick tests with the oldest and the newest versions that pyproject.toml allows: `nox`, or `nox -s oldest`.

Each session builds the module in an environment of its own. PyTorch brings some GB along, so no server runs this.
`nox -s oldest -- tests/arrays/test_forward.py` runs a part.
"""

from __future__ import annotations

import nox

QUICK = ("pytest", "-n", "2", "--dist", "worksteal", "-m", "not slow")


@nox.session(python="3.10")
def oldest(session: nox.Session) -> None:
    """Every `>=` of what the tests need is an `==`."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    extras = project["optional-dependencies"]
    needed = [
        *project["dependencies"],
        *(
            line
            for name in ("cli", "parquet", "safetensors", "sklearn", "torch", "why", "test")
            for line in extras[name]
        ),
    ]
    pins = [line.replace(">=", "==") for line in needed if not line.startswith("batchnorm")]
    session.install(*pins, "pyparsing<3.2")  # which old versions of matplotlib call by its old names
    session.install("--no-deps", ".")
    session.run(*QUICK, *session.posargs)


@nox.session(python="3.13")
def newest(session: nox.Session) -> None:
    """What pip finds, with nothing held back."""
    session.install(".[test]")
    session.run(*QUICK, *session.posargs)
