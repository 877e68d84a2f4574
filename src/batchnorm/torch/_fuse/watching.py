"""What is run while a forward is traced: what a trace could not repeat in each call is refused before it happens.

A profile function sees every call that Python code makes, of Python functions and of native ones. The model's own code
is read for the globals it names. Of libraries it may call what is known to follow a trace, or to answer by its
arguments alone. So nothing has to be known of the many functions that ask the process: clocks, switches, files.
"""

from __future__ import annotations

import dis
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import _jit_internal
from torch.jit._trace import is_tracing as _is_tracing
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

from .reads import Reads, Unreadable, is_library

Refuse = Callable[[str], NoReturn]
OF_ITS_OWN = "its forward makes a tensor of its own, which a trace would freeze"

_FOLLOWED = {
    "abc",
    "bisect",
    "collections",
    "contextlib",
    "dataclasses",
    "enum",
    "fractions",
    "functools",
    "heapq",
    "importlib._bootstrap",
    "inspect",
    "itertools",
    "math",
    "numbers",
    "operator",
    "re",
    "string",
    "textwrap",
    "types",
    "typing",
    "torch._ops",
    "torch._tensor",
    "torch.fx",
    "torch.ao.nn",
    "torch.functional",
    "torch.nn.functional",
    "torch.nn.modules",
    "torch.overrides",
    "batchnorm.torch._layers",
    "batchnorm.torch._sync",
    "batchnorm.torch._fuse.trace",
    "batchnorm.torch._fuse.watching",
}
_FOLLOWED_OF = {
    "torch": {"_assert", "is_tensor", "sym_int", "sym_max", "sym_min"},
    "torch._jit_internal": {"fn"},  # chooses between two functions
}
_CHANGES_A_MODULE = {
    "_apply",
    "add_module",
    "apply",
    "bfloat16",
    "compile",
    "cpu",
    "cuda",
    "double",
    "eval",
    "float",
    "half",
    "load_state_dict",
    "register_buffer",
    "register_module",
    "register_parameter",
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
    "requires_grad_",
    "set_submodule",
    "share_memory",
    "state_dict",
    "to",
    "to_empty",
    "train",
    "type",
    "zero_grad",
}
_NATIVE = {"_bisect", "_collections", "_functools", "_heapq", "_operator", "builtins", "cmath", "itertools", "math"}
_NO_BUILTINS = {
    "breakpoint",
    "callable",
    "compile",
    "dir",
    "eval",
    "exec",
    "globals",
    "hash",
    "id",
    "input",
    "locals",
    "next",
    "open",
    "print",
    "vars",
}
_NATIVE_METHODS = {"builtins", "collections", "functools", "re", "types"}
_ANSWERING = {"_log_api_usage_once"}  # native functions of PyTorch without a meaning for the model

_CONTEXTS = {"torch.amp.autocast_mode", "torch.autograd.grad_mode", "torch.utils._contextlib"}

_SWITCHES: tuple[Callable[[], Any], ...] = (  # which a forward may ask for: each call asks again, and compares
    torch.is_grad_enabled,
    torch.is_inference_mode_enabled,
    torch.get_default_dtype,
    _jit_internal.is_scripting,
    _is_tracing,
    torch.compiler.is_compiling,
    torch.compiler.is_exporting,
)
_SWITCH_OF_CODE = {f.__code__: f for f in _SWITCHES if isinstance(f, types.FunctionType)}
_HANDING_ON = {"torch.overrides", "torch._tensor", "torch.functional", "torch.nn.functional", "torch._jit_internal"}
_ASIDE = {"CACHE", "EXTENDED_ARG", "NOP", "NOT_TAKEN", "PRECALL", "PUSH_NULL"}


def module_of(frame: types.FrameType | None) -> str:
    return "" if frame is None else str(frame.f_globals.get("__name__", ""))


def is_models(frame: types.FrameType | None) -> bool:
    """Whether a frame runs code of the model, not of a library."""
    return frame is not None and not is_library(module_of(frame))


def _is_called_by_model(frame: types.FrameType) -> bool:
    """Whether code of the model called this, by itself or through Python's library."""
    caller = frame.f_back
    while caller is not None and module_of(caller).partition(".")[0] in sys.stdlib_module_names:
        caller = caller.f_back
    return is_models(caller)


def _is_followed(module: str, name: str) -> bool:
    if module in _FOLLOWED_OF:
        return name in _FOLLOWED_OF[module]
    if module == "torch.nn.modules.module" and name in _CHANGES_A_MODULE:
        return False
    parts = module.split(".")
    return any(".".join(parts[: i + 1]) in _FOLLOWED for i in range(len(parts)))


def _called(frame: types.FrameType) -> str:
    """The name of a function, or of the one that it wraps."""
    for name in ("fn", "func"):
        wrapped = frame.f_locals.get(name)
        if "<locals>" in getattr(frame.f_code, "co_qualname", "<locals>") and isinstance(wrapped, types.FunctionType):
            return f"{wrapped.__module__}.{wrapped.__qualname__}"
    return f"{module_of(frame)}.{getattr(frame.f_code, 'co_qualname', frame.f_code.co_name)}"


class Watch:
    """A profile function. `recorded` says how many nodes the trace has, so that a call can be seen to add one."""

    def __init__(self, refuse: Refuse, reads: Reads, recorded: Callable[[], int]) -> None:
        self.refuse, self.reads, self.recorded = refuse, reads, recorded
        self.native: list[tuple[Any, int]] = []  # the native functions that are running
        self.known: dict[tuple[types.CodeType, int], Any] = {}  # code of the model that was read
        self.models: dict[types.CodeType, bool] = {}
        self.inner: set[types.CodeType] = set()  # code of functions that such code makes

    def __call__(self, frame: types.FrameType, event: str, arg: Any) -> None:
        models = self.models.get(frame.f_code)
        if models is None:
            models = self.models[frame.f_code] = is_models(frame)
        if event == "call":
            if models:
                self._read(frame)
            elif _is_called_by_model(frame):
                self._enter(frame)
        elif event == "c_call":
            self.native.append((arg, self.recorded()))
            if models:
                self._call(arg)
        elif event in ("c_return", "c_exception") and self.native:
            function, before = self.native.pop()
            if event == "c_return" and models and before == self.recorded():
                self._answered(function)

    def running(self) -> Any:
        """The native function that runs now, called by Python code."""
        return self.native[-1][0] if self.native else None

    def note(self, read: Callable[..., None], *where: Any) -> None:
        try:
            read(*where)
        except Unreadable as error:
            self.refuse(f"its forward reads {error}")

    # Functions of libraries

    def _enter(self, frame: types.FrameType) -> None:
        code, module = frame.f_code, module_of(frame)
        if code in _SWITCH_OF_CODE:
            self.reads.of_switch(_SWITCH_OF_CODE[code])
        elif module in _CONTEXTS:  # a graph does not hold what surrounds an operation
            self.refuse("part of its forward runs under torch.no_grad(), autocast or their like")
        elif not _is_followed(module, code.co_name):
            self._refuse_call(_called(frame))

    def _call(self, function: Any) -> None:
        owner, name = function.__self__, function.__name__
        if function in _SWITCHES:
            self.reads.of_switch(function)
        elif owner is None or isinstance(owner, types.ModuleType):
            module = function.__module__ or ""
            top = module.partition(".")[0]
            if (top != "torch" and module not in _NATIVE) or (module == "builtins" and name in _NO_BUILTINS):
                self._refuse_call(f"{module}.{name}" if module != "builtins" else name)
        else:
            kind = owner if isinstance(owner, type) else type(owner)
            of = next((base for base in kind.__mro__ if name in base.__dict__), kind)
            top = of.__module__.partition(".")[0]
            if top != "torch" and of.__module__ not in _NATIVE_METHODS:
                self._refuse_call(f"{of.__name__}.{name}")

    def _answered(self, function: Any) -> None:
        """A native function came to its end without a trace of it."""
        owner = function.__self__
        at = function.__module__ if owner is None or isinstance(owner, types.ModuleType) else type(owner).__module__
        known = function in _SWITCHES or function.__name__ in _ANSWERING
        if (at or "").partition(".")[0] == "torch" and not known:
            self._refuse_call(f"torch.{function.__name__}")

    def _refuse_call(self, name: str) -> NoReturn:
        self.refuse(f"its forward calls {name}, and a trace would keep what that did once")

    # Code of the model

    def _read(self, frame: types.FrameType) -> None:
        code, names = frame.f_code, frame.f_globals
        if (code, id(names)) in self.known:
            return
        self.known[code, id(names)] = names
        self.inner.update(c for c in code.co_consts if isinstance(c, types.CodeType))
        instructions = [i for i in dis.get_instructions(code) if i.opname not in _ASIDE]
        for at, instruction in enumerate(instructions):
            name, said = instruction.opname, instruction.argval
            if name in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                self.refuse(f"its forward sets the global {said}")
            if name in ("STORE_DEREF", "DELETE_DEREF") and said in code.co_freevars and code not in self.inner:
                self.refuse(f"its forward sets {said}, a variable of a function around it")
            if name == "IMPORT_NAME" and not is_library(said):
                self.refuse(f"its forward imports {said}")
            if name == "MATCH_CLASS" or (name == "LOAD_GLOBAL" and self._asks_type(instructions[at : at + 2], frame)):
                self.refuse("its forward asks for the type of a value")
            if name == "IS_OP" and not self._is_of_constant(instructions[:at], names):
                self.refuse("its forward asks whether two values are the same object")
            if name == "LOAD_GLOBAL":
                path, _ = _followed(_path(instructions[at:]), names)
                if path:
                    self.note(self.reads.of_globals, names, path)

    def _asks_type(self, instructions: list[dis.Instruction], frame: types.FrameType) -> bool:
        """``type(x)``, which no value of a trace can answer; a module's own type is known."""
        if instructions[0].argval != "type" or "type" in frame.f_globals or len(instructions) < 2:
            return False
        of = instructions[1]
        own = of.opname.startswith("LOAD_FAST") and of.argval == next(iter(frame.f_code.co_varnames), None)
        return not (own and isinstance(frame.f_locals.get(str(of.argval)), torch.nn.Module))

    def _is_of_constant(self, before: list[dis.Instruction], names: dict[str, Any]) -> bool:
        """Whether the right side of ``a is b`` is a constant, or a global that no tensor has to do with."""
        if before and before[-1].opname == "LOAD_CONST":
            return True
        start = len(before) - 1
        while start > 0 and before[start].opname in ("LOAD_ATTR", "LOAD_METHOD"):
            start -= 1
        if start < 0 or before[start].opname != "LOAD_GLOBAL":
            return False
        _, value = _followed(_path(before[start:]), names)
        return not isinstance(value, (torch.dtype, torch.layout, torch.memory_format, torch.device, type))


def _path(instructions: list[dis.Instruction]) -> tuple[str, ...]:
    """``("a", "b")`` of code that begins with ``a.b``."""
    path = [str(instructions[0].argval)]
    for instruction in instructions[1:]:
        if instruction.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
            break
        path.append(str(instruction.argval))
    return tuple(path)


def _followed(path: tuple[str, ...], names: dict[str, Any]) -> tuple[tuple[str, ...], Any]:
    """What of ``a.b.c`` is to be compared (nothing of libraries), and the value at the end of modules and classes."""
    if path[0] not in names:
        return (), None
    value, compared, library = names[path[0]], path[:1], False
    for length, name in enumerate(path[1:], 2):
        if not isinstance(value, (types.ModuleType, type)):
            break
        of = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
        library = library or is_library(of)
        value = getattr(value, name, None)
        compared = compared if library else path[:length]
    first = names[path[0]]
    return (() if isinstance(first, types.ModuleType) and is_library(first.__name__) else compared), value


class Aside(TorchFunctionMode):
    """Refuses what a forward does with tensors and no value of the trace: it would be done once."""

    def __init__(self, refuse: Refuse) -> None:
        super().__init__()
        self.refuse = refuse

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not any(issubclass(kind, torch.fx.Proxy) for kind in types) and is_models(_caller()):
            if any(isinstance(value, torch.Tensor) for value in tree_leaves((args, kwargs))):
                name = resolve_name(func) or getattr(func, "__name__", "something")
                self.refuse(f"its forward computes {name} of a tensor that a trace does not follow")
            self.refuse(OF_ITS_OWN)
        return func(*args, **(kwargs or {}))


def _caller() -> types.FrameType | None:
    """The frame that called a function of PyTorch, behind those of PyTorch that hand it on."""
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None and module_of(frame) in _HANDING_ON:
        frame = frame.f_back
    return frame
