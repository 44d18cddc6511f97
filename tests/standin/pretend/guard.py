"""A device guard for CUDA, which torch without CUDA lacks and asks for when a tensor is indexed.

It is the meta device's, which does nothing, but for the two functions that tell its device. There is no other way from
Python: c10's table of guards is written to. Source: c10/core/impl/DeviceGuardImplInterface.h of torch 2.13.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

#: The torch whose table and functions these are; in another one, memory would be written to that means something else.
TORCH = "2.13."
_CUDA, _META, _TYPES = 1, 14, 21
_TABLE = "_ZN3c104impl26device_guard_impl_registryE"
#: Virtual functions, of which the first is type and the third getDevice.
_FUNCTIONS, _TYPE, _GET_DEVICE = 27, 0, 2

#: Number of the thread's current card; a guard once made stays, as C++ may have kept its address.
_current: list[Callable[[], int]] = [lambda: 0]


@contextmanager
def registered(current: Callable[[], int]) -> Iterator[None]:
    """CUDA devices have a guard meanwhile; current: the number of the thread's current card."""
    table = _guards()
    before, table[_CUDA] = table[_CUDA], ctypes.addressof(_made()[0])
    _current.append(current)
    try:
        yield
    finally:
        table[_CUDA] = before
        _current.pop()


def _guards() -> Any:
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    return (ctypes.c_void_p * _TYPES).in_dll(library, _TABLE)


@lru_cache
def _made() -> tuple[Any, ...]:
    """The guard, which is a pointer to its functions, and what must not be collected."""
    theirs = ctypes.c_void_p.from_address(_guards()[_META]).value
    functions = (ctypes.c_void_p * _FUNCTIONS).from_buffer_copy(
        (ctypes.c_char * (ctypes.sizeof(ctypes.c_void_p) * _FUNCTIONS)).from_address(theirs or 0)
    )
    type_ = ctypes.CFUNCTYPE(ctypes.c_int8, ctypes.c_void_p)(lambda _self: _CUDA)
    # A device is two bytes: its type, and its number.
    get_device = ctypes.CFUNCTYPE(ctypes.c_uint16, ctypes.c_void_p)(lambda _self: _CUDA | _current[-1]() << 8)
    functions[_TYPE] = ctypes.cast(type_, ctypes.c_void_p).value
    functions[_GET_DEVICE] = ctypes.cast(get_device, ctypes.c_void_p).value
    return ctypes.c_void_p(ctypes.addressof(functions)), functions, type_, get_device
