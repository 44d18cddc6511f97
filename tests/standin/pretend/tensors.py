"""The tensors: each wraps one in main memory, on which everything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from tests.standin.pretend.memory import note

CPU = torch.device("cpu")
_ATEN = torch.ops.aten
#: Operations that take tensors of several devices.
_COPIES = (_ATEN._to_copy, _ATEN.copy_)
#: Operations whose indices may be in main memory, whatever device the indexed tensor is on.
_INDEXING = (_ATEN.index, _ATEN.index_put, _ATEN.index_put_, _ATEN._index_put_impl_, _ATEN._unsafe_index)


class CardTensor(Tensor):
    """A tensor of a pretend card; `inner` lies in main memory, and views share it as views do."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> CardTensor:
        # In inference mode, views of other tensors are other tensors still.
        with torch.inference_mode(inner.is_inference()):
            made = Tensor._make_wrapper_subclass(
                cls,
                inner.shape,
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                device=device,
            )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        # In inference mode, operations that torch makes of others come here too.
        return func.decompose(*args, **named) if _is_composite(func) else _run(func, args, named)

    def numpy(self, *, force: bool = False) -> Any:
        """As a card's tensor does it: not at all, unless a copy is asked for."""
        if force:
            return self.cpu().numpy()
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
            "memory first."
        )

    def __array__(self, dtype: Any = None) -> Any:
        return self.numpy()

    def __repr__(self, **_kwargs: Any) -> str:
        return f"{self.inner!r} on {self.device}"

    def tolist(self) -> Any:
        """Numbers in main memory."""
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        """An address, at which kernels find the memory as long as it is there (memory.py)."""
        note(self.inner.untyped_storage(), self.device)
        return self.inner.data_ptr()

    def untyped_storage(self) -> Any:
        """The storage, with which `set_` can make further tensors."""
        return CardStorage(self.inner, self.device)

    def set_(self, source: Any, offset: int = 0, size: Iterable[int] = (), stride: Any = None) -> CardTensor:
        """A tensor over a storage; unlike torch's, another object than this one."""
        if not isinstance(source, CardStorage) or source.device != self.device:
            raise RuntimeError(f"a tensor of {self.device} cannot use this storage")
        made = torch.empty(0, dtype=self.dtype).set_(source.inner.untyped_storage(), offset, tuple(size))
        return CardTensor(made, self.device)

    def record_stream(self, stream: Any) -> None:
        """Nothing is under way."""

    def pin_memory(self, *_args: Any) -> Any:
        """Refused."""
        raise RuntimeError(f"cannot pin '{self.type()}' only dense CPU tensors can be pinned")

    def is_pinned(self, *_args: Any) -> bool:
        """A card's memory is not page-locked."""
        return False


class CardStorage:
    """What `CardTensor.untyped_storage` gives."""

    def __init__(self, inner: Tensor, device: torch.device) -> None:
        self.inner, self.device = inner, device

    def __repr__(self, **_kwargs: Any) -> str:
        return f"{self.inner!r} on {self.device}"

    def tolist(self) -> Any:
        """Numbers in main memory."""
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        """Its address."""
        return self.inner.untyped_storage().data_ptr()

    def nbytes(self) -> int:
        """Its size."""
        return self.inner.untyped_storage().nbytes()


def unwrapped(value: Any) -> Any:
    """Structures with the tensors in main memory."""
    return tree_map(lambda item: item.inner if isinstance(item, CardTensor) else item, value)


def device_of(name: str, tensors: Iterable[Tensor], *, scalars: bool = True) -> torch.device:
    """The one device of an operation's tensors; scalars: numbers in main memory go with any.

    Raises: RuntimeError where they are on several.
    """
    given = list(tensors)
    counted = [tensor for tensor in given if not (scalars and tensor.dim() == 0 and tensor.device == CPU)]
    devices = list(dict.fromkeys(tensor.device for tensor in counted or given))
    if len(devices) != 1:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {devices[0]} and "
            f"{devices[1]}! (when running {name})"
        )
    return devices[0]


@lru_cache
def _is_composite(func: Any) -> bool:
    # Attention stays whole, or it would be done in steps that round to fp16.
    return func.overloadpacket is not _ATEN.scaled_dot_product_attention and bool(
        torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    )


@lru_cache
def _written(func: Any) -> tuple[int, ...]:
    """Places of the arguments that an operation writes to; keyword arguments are `out`."""
    arguments = func._schema.arguments
    return tuple(
        place
        for place, one in enumerate(arguments)
        if one.alias_info and one.alias_info.is_write and not one.kwarg_only
    )


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    flat, spec = tree_flatten((args, kwargs))
    device = _check(func, args, kwargs, [item for item in flat if isinstance(item, Tensor)], flat)
    own = {id(item.inner): item for item in flat if isinstance(item, CardTensor)}
    plain = [item.inner if isinstance(item, CardTensor) else _on_cpu(item) for item in flat]
    inner_args, inner_kwargs = tree_unflatten(plain, spec)
    inner_kwargs.pop("pin_memory", None)
    found = func(*inner_args, **inner_kwargs)
    for item in own.values():
        if item.shape != item.inner.shape:
            raise NotImplementedError(f"{func} changes a tensor's shape in place, which is not pretended")
    return tree_map(lambda item: _wrapped(item, own, device), found)


def _on_cpu(item: Any) -> Any:
    return CPU if isinstance(item, torch.device) else item


def _wrapped(item: Any, own: Mapping[int, CardTensor], device: torch.device) -> Any:
    if not isinstance(item, Tensor) or isinstance(item, CardTensor):
        return item
    if id(item) in own:
        return own[id(item)]
    return item if device.type == "cpu" else CardTensor(item, device)


def _check(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], tensors: list[Tensor], flat: list[Any]
) -> torch.device:
    """The device of an operation's result. Raises: RuntimeError where a card would."""
    packet = func.overloadpacket
    if packet in _COPIES:
        device = kwargs.get("device") or tensors[0].device
    elif packet in _INDEXING:
        device = _check_indexing(str(func), args)
    else:
        device = kwargs.get("device") or device_of(str(func), tensors)
        for place in _written(func):
            if place < len(args) and isinstance(args[place], Tensor) and args[place].device != device:
                raise RuntimeError(f"{func} on {device} cannot write to a tensor of {args[place].device}")
    for item in flat:
        if isinstance(item, torch.Generator) and item.device.type != device.type:
            raise RuntimeError(f"Expected a '{device.type}' device type for generator but found '{item.device.type}'")
    return torch.device(device)


def _check_indexing(name: str, args: tuple[Any, ...]) -> torch.device:
    """Indices are in main memory or with what they index; values are with it, or one number."""
    device: torch.device = args[0].device
    for index in args[1]:
        if isinstance(index, Tensor) and index.device not in (CPU, device):
            raise RuntimeError(
                f"indices should be either on cpu or on the same device as the indexed tensor ({device}), not on "
                f"{index.device}"
            )
    device_of(name, [args[0], *(item for item in args[2:3] if isinstance(item, Tensor))])
    return device
