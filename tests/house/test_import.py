"""Importing: what it loads, and what it says when the compiled module is missing or broken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import batchnorm as bn

PACKAGE = Path(bn.__file__).parent
HEAVY = ("torch", "rich", "matplotlib", "pandas", "sklearn", "pyarrow", "scipy", "ml_dtypes", "safetensors")


def _run(code: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-c", textwrap.dedent(code)]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "BATCHNORM"))}
    return subprocess.run(command, env=inherited | environment, capture_output=True, text=True, timeout=120)


def test_import_loads_numpy_and_nothing_else():
    """Every module that importing batchnorm adds to those of numpy is its own or of the standard library."""
    code = """
        import json, sys, time
        import numpy
        before = set(sys.modules)
        start = time.perf_counter()
        import batchnorm
        cost = time.perf_counter() - start
        print(json.dumps([sorted({name.partition(".")[0] for name in set(sys.modules) - before}), cost]))
    """
    run = _run(code)
    assert run.returncode == 0, run.stderr
    loaded, cost = json.loads(run.stdout)
    print(f"import batchnorm costs {1000 * cost:.1f} ms beyond numpy")
    assert not set(HEAVY) & set(loaded)
    foreign = set(loaded) - set(sys.stdlib_module_names) - {"batchnorm"}
    assert not {name for name in foreign if not name.startswith(("_", "numpy"))}, foreign


@pytest.mark.parametrize("module", ["batchnorm", "batchnorm._functional", "batchnorm._layers", "batchnorm._moments"])
def test_no_heavy_module_is_loaded_by(module):
    code = f"""
        import sys
        import {module}
        print([name for name in {HEAVY!r} if name in sys.modules])
    """
    assert _run(code).stdout.strip() == "[]"


def test_computing_loads_no_framework():
    """Nor does a call, also of bfloat16 data, whose type is asked for by name."""
    code = """
        import sys
        import numpy as np
        import batchnorm as bn
        layer = bn.BatchNorm1d(3)
        layer(np.random.rand(4, 3).astype(np.float32))
        layer.backward(np.random.rand(4, 3).astype(np.float32))
        repr(layer)
        print([name for name in ("torch", "rich", "pandas", "pyarrow", "ml_dtypes") if name in sys.modules])
    """
    run = _run(code)
    assert run.stdout.strip() == "[]", run.stderr


def test_the_package_says_its_version_and_that_it_is_typed():
    assert bn.__version__.count(".") >= 2
    assert (PACKAGE / "py.typed").exists()


def test_every_public_thing_is_documented():
    for name in bn.__all__:
        thing = getattr(bn, name)
        assert (thing.__doc__ or "").strip(), name
        for method, value in vars(thing).items() if isinstance(thing, type) else ():
            if callable(value) and not method.startswith("_"):
                assert (value.__doc__ or "").strip(), f"{name}.{method}"


# --- the compiled module, missing or broken ---


def _import_copy(tmp_path: Path, spoil) -> subprocess.CompletedProcess[str]:
    """Import a copy of the package whose compiled module `spoil` has put in place, or has not."""
    folder = tmp_path / "batchnorm"
    ignored = shutil.ignore_patterns("*.so", "*.pyd", "*.dylib", "__pycache__")
    shutil.copytree(PACKAGE, folder, ignore=ignored)
    spoil(folder)
    numpy_folder = str(Path(np.__file__).parent.parent)
    # -S: no site-packages, so neither an installed batchnorm nor an editable one is found
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {numpy_folder!r}]\nimport batchnorm"
    return _run(code, "-S", "-P") if sys.version_info >= (3, 11) else _run(code, "-S")


def _says_what_is_wrong(run: subprocess.CompletedProcess[str]) -> None:
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "ImportError: batchnorm: the compiled module batchnorm._native is missing or cannot be loaded"
    ), last
    assert "einstall" in last, "the message says how to mend it"
    assert "pip install" in last


def test_a_missing_compiled_module_is_a_plain_import_error(tmp_path):
    _says_what_is_wrong(_import_copy(tmp_path, lambda folder: None))


def test_a_broken_compiled_module_is_a_plain_import_error(tmp_path):
    suffix = Path(bn._native.__file__).name.partition(".")[2]
    _says_what_is_wrong(
        _import_copy(tmp_path, lambda folder: (folder / f"_native.{suffix}").write_bytes(b"not a library"))
    )


def test_an_empty_compiled_module_is_a_plain_import_error(tmp_path):
    name = Path(bn._native.__file__).name
    _says_what_is_wrong(_import_copy(tmp_path, lambda folder: (folder / name).write_bytes(b"")))


def test_the_copy_imports_when_it_is_whole(tmp_path):
    """What the three tests above spoil is a package that works."""
    name = Path(bn._native.__file__).name
    run = _import_copy(tmp_path, lambda folder: shutil.copy(bn._native.__file__, folder / name))
    assert run.returncode == 0, run.stderr


# --- PyTorch, which is not needed ---

_WITHOUT_TORCH = """
    import sys
    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name == "torch":
                raise ModuleNotFoundError("No module named 'torch'", name="torch")
    sys.meta_path.insert(0, Absent())
"""


def test_without_pytorch_all_but_its_front_end_works():
    run = _run(
        textwrap.dedent(_WITHOUT_TORCH) + "import batchnorm as bn; print(bn.batch_norm([[1.0], [3.0]])[0].round(2))"
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["[[-1.]", "[", "1.]]"]


def test_without_pytorch_its_front_end_says_what_to_install():
    run = _run(textwrap.dedent(_WITHOUT_TORCH) + "import batchnorm.torch")
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: batchnorm.torch needs PyTorch")
    assert 'pip install "torch>=2.10"' in last


def test_a_pytorch_without_the_functions_we_call_is_refused(tmp_path):
    """As an older one is, before anything is registered: with the right one at hand the next import succeeds."""
    pytest.importorskip("torch")
    code = f"""
        import os
        import torch
        from pathlib import Path

        here, version, folder = torch.__file__, torch.__version__, Path({str(tmp_path)!r})
        (folder / "lib").mkdir()
        (folder / "lib" / "libtorch_cpu.so").symlink_to(Path(here).parent / "lib" / "libc10.so")
        torch.__file__, torch.__version__ = str(folder / "__init__.py"), "2.4.1"
        for _ in range(2):
            try:
                import batchnorm.torch
            except ImportError as error:
                print(error)
        print(hasattr(torch.ops.batchnorm, "forward"))
        torch.__file__, torch.__version__ = here, version
        import batchnorm.torch
        print(batchnorm.torch.status().torch == version)
    """
    run = _run(code)
    assert run.returncode == 0, run.stderr
    *refused, registered, works = run.stdout.splitlines()
    assert (len(set(refused)), len(refused), registered, works) == (1, 2, "False", "True")
    assert refused[0].startswith("batchnorm.torch needs PyTorch 2.10 or later")
    assert "got PyTorch 2.4.1, which has no aoti_torch_library_init_impl" in refused[0]
    assert 'pip install --upgrade "torch>=2.10"' in refused[0]


# --- which kernels run ---

_TELL = "import batchnorm; print(batchnorm._native.isa())"


@pytest.mark.parametrize("isa", bn._native.available_isas())
def test_an_environment_variable_forces_the_instruction_set(isa):
    assert _run(_TELL, BATCHNORM_ISA=isa).stdout.strip() == isa


@pytest.mark.parametrize("setting", [{}, {"BATCHNORM_ISA": ""}])
def test_the_default_is_the_best_instruction_set_of_the_machine(setting):
    assert _run(_TELL, **setting).stdout.strip() == bn._native.available_isas()[0]


def test_an_unknown_instruction_set_is_refused():
    run = _run(_TELL, BATCHNORM_ISA="avx1024")
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    for said in ("ImportError", "BATCHNORM_ISA", "'avx1024'", "portable"):
        assert said in last


def test_portable_kernels_are_always_there():
    assert "portable" in bn._native.available_isas()
    with pytest.raises(ValueError, match=r"avx1024.*portable"):
        bn._native.force_isa("avx1024")
