"""A triton that satisfies import statements and decorators; its kernels cannot be launched."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any


class _Anything:
    """Stands for any attribute of triton: callable, indexable, usable as decorator, annotation or base."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> _Anything:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(f"{self._name}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def __getitem__(self, item: Any) -> _Anything:
        raise NotImplementedError(f"{self._name} cannot be launched on a CPU")


def _decorator(*args: Any, **kwargs: Any) -> Any:
    """`@jit` as well as `@jit(...)`: a kernel becomes something that refuses to be launched."""
    if len(args) == 1 and not kwargs and isinstance(args[0], types.FunctionType):
        return _Anything(args[0].__name__)
    return lambda function: _Anything(getattr(function, "__name__", "kernel"))


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(f"{self.__name__}.{name}")


def _next_power_of_2(value: int) -> int:
    return 1 << (value - 1).bit_length()


def modules() -> dict[str, types.ModuleType]:
    """What to put into sys.modules."""
    names = ("triton", "triton.language", "triton.compiler", "triton.runtime", "triton.language.extra")
    made: dict[str, types.ModuleType] = {name: _Module(name) for name in names}
    top = made["triton"]
    known: dict[str, Callable[..., Any] | types.ModuleType | str | list[str]] = {
        "__version__": "3.0.0",
        "__path__": [],
        "jit": _decorator,
        "autotune": _decorator,
        "heuristics": _decorator,
        "cdiv": lambda a, b: -(-a // b),
        "next_power_of_2": _next_power_of_2,
        "language": made["triton.language"],
        "compiler": made["triton.compiler"],
        "runtime": made["triton.runtime"],
    }
    for name, value in known.items():
        setattr(top, name, value)
    return made
