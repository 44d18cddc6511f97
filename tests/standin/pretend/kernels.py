"""exllamav3's extension on pretend cards: the stand-in's functions, which refuse tensors that a kernel cannot reach."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from tests.standin import extension
from tests.standin.pretend import experts, fused
from tests.standin.pretend.memory import running
from tests.standin.pretend.tensors import CardTensor, device_of, unwrapped

#: Runs in main memory too, by its own account.
_ANYWHERE = ("count_inf_nan",)


def functions() -> dict[str, Any]:
    """By name, what takes the place of the stand-in's functions and classes."""
    found: dict[str, Any] = {}
    for name, value in vars(extension).items():
        if name.startswith("_") or getattr(value, "__module__", None) != extension.__name__:
            continue
        if inspect.isfunction(value):
            found[name] = on_one_card(name, value)
        elif inspect.isclass(value):
            found[name] = _bound(name, value)
    pointing = fused.functions() | experts.functions()
    found |= {name: on_one_card(name, function) for name, function in pointing.items()}
    return found | {name: _bound(name, class_) for name, class_ in experts.classes().items()}


def on_one_card(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, for tensors of one pretend card."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        if getattr(running, "kernel", False):
            return function(*args, **kwargs)
        tensors = [item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
        device = _device(name, tensors)
        running.kernel, running.device = True, device
        try:
            found = function(*unwrapped(args), **unwrapped(kwargs))
        finally:
            running.kernel, running.device = False, None
        return tree_map(lambda item: CardTensor(item, device) if device and isinstance(item, Tensor) else item, found)

    return checked


def _device(name: str, tensors: list[Tensor]) -> torch.device | None:
    if not tensors:
        return None
    device = device_of(f"exllamav3_ext.{name}", tensors, scalars=False)
    if device.type == "cpu" and name not in _ANYWHERE:
        raise RuntimeError(f"exllamav3_ext.{name}: tensors in main memory would be an illegal access")
    return None if device.type == "cpu" else device


def _bound(name: str, class_: type) -> Callable[..., Any]:
    """A class of the extension, which holds on to the tensors that it is made of."""

    class Bound:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            tensors = [item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
            self._own = tensors[:1]
            device_of(f"exllamav3_ext.{name}", tensors, scalars=False)
            self.made = class_(*unwrapped(args), **unwrapped(kwargs))

        def __getattr__(self, method: str) -> Any:
            function = getattr(self.made, method)

            def run(own: list[Tensor], *args: Any, **kwargs: Any) -> Any:
                return function(*args, **kwargs)

            checked = on_one_card(f"{name}.{method}", run)
            return lambda *args, **kwargs: checked(self._own, *args, **kwargs)

    return Bound
