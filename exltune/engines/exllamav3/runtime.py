"""Whether exllamav3 can be used here, and why not: told without importing it where that is known already."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import sys
from collections.abc import Sequence
from types import ModuleType

import torch

from exltune.engines.exllamav3.mends import mend
from exltune.errors import EngineError
from exltune.requirements import required

_LOG = logging.getLogger(__name__)
#: Packages of exllamav3 that an engine runs, and that print.
_PRINTING = ("exllamav3.loader.", "exllamav3.model.", "exllamav3.modules.", "exllamav3.util.")
_BUILD = "Install a wheel built for this torch and CUDA, or CUDA's toolkit with a C++ compiler so that it can build"


def check_version() -> None:
    """Raises: EngineError unless a version of exllamav3 is installed whose internals exltune was written against."""
    wanted = required("exllamav3")
    fix = f"pip install 'exllamav3{wanted}'"
    try:
        found = importlib.metadata.version("exllamav3")
    except importlib.metadata.PackageNotFoundError:
        raise EngineError(f"exllamav3 is not installed; wanted is {wanted}", fix=fix) from None
    if found not in wanted:
        raise EngineError(f"exllamav3 {found} is installed; wanted is {wanted}", fix=fix)


def cuda_devices() -> tuple[torch.device, ...]:
    """All CUDA devices of this machine."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return tuple(torch.device("cuda", number) for number in range(count))


def named_devices(numbers: Sequence[int]) -> tuple[torch.device, ...]:
    """The CUDA devices with these numbers, all of them if none are named.

    Raises: EngineError where there are none, or not these.
    """
    found = cuda_devices()
    if not found:
        raise EngineError("there is no CUDA device", where="engine exllamav3", fix="Use `engine` reference")
    absent = sorted(set(numbers) - set(range(len(found))))
    if absent:
        raise EngineError(
            f"there is no CUDA device {', '.join(map(str, absent))}", fix=f"Choose from 0 to {len(found) - 1}"
        )
    return tuple(found[number] for number in numbers) or found


def import_exllamav3() -> ModuleType:
    """exllamav3 with its extension. Raises: EngineError for a wrong version, no extension, or no compiler for it."""
    check_version()
    try:
        # Its import builds the extension where no wheel brought one, and fails in as many ways as builds do.
        extension = importlib.import_module("exllamav3.ext")
        module = importlib.import_module("exllamav3")
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EngineError(
            f"exllamav3's extension cannot be loaded ({reason[-400:]})", fix=f"{_BUILD}: {_hint()}"
        ) from error
    if not hasattr(extension, "exllamav3_ext"):
        raise EngineError("exllamav3 has no extension", fix=_BUILD)
    _log_what_it_prints()
    mend()
    return module


def _log_what_it_prints() -> None:
    """Keep exllamav3 off stdout, where a command's JSON goes: on CUDA it tells of every layer with mixed experts."""
    for name, module in list(sys.modules.items()):
        if name.startswith(_PRINTING):
            vars(module).setdefault("print", _log)


def _log(*words: object, **_options: object) -> None:
    _LOG.info(" ".join(map(str, words)))


def why_not() -> str | None:
    """Why `--engine auto` does not take this engine; None where it does."""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    try:
        import_exllamav3()
    except EngineError as error:
        return error.what
    return None


def _hint() -> str:
    """The parts of a build that this machine lacks."""
    from torch.utils import cpp_extension

    if cpp_extension.CUDA_HOME is None:
        return "no CUDA toolkit was found (CUDA_HOME)"
    if importlib.util.find_spec("exllamav3_ext") is None:
        return "no precompiled exllamav3_ext is installed"
    return "the installed exllamav3_ext does not fit this torch"
