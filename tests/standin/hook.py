"""The bootstrap: an import hook that slips the stand-in under exllamav3 when, and only when, it is imported."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(__file__).resolve().parent / "site"

#: Imported while triton is stubbed, so that no later import of exllamav3 meets a missing triton.
_EAGER = (
    "exllamav3.architecture.architectures",
    "exllamav3.conversion.allocation",
    "exllamav3.conversion.compile",
    "exllamav3.conversion.convert_model",
    "exllamav3.conversion.optimize_model",
    "exllamav3.modules.quant.exl3_lib.quantize",
)


def child_pythonpath() -> str:
    """PYTHONPATH for a child process that shall have the hook: this repository and its sitecustomize first."""
    paths = [str(SITE), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(filter(None, paths))


def native() -> bool:
    """Whether exllamav3 runs on its own extension: under `pytest -m gpu` and in what such tests start."""
    return "EXLTUNE_TESTS_NATIVE" in os.environ


def install() -> None:
    """Make `import exllamav3` work without CUDA in this process; importing nothing itself. Safe to call twice.

    Does nothing where exllamav3 itself is to be tested.
    """
    if not native() and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the top package alone, and hands it to a loader that prepares and patches around it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "exllamav3":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, inner: importlib.abc.Loader) -> None:
        self._inner = inner

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        from tests.standin import extension

        extension_holder = types.ModuleType("exllamav3.ext")
        extension_holder.exllamav3_ext = extension  # type: ignore[attr-defined]
        sys.modules["exllamav3.ext"] = extension_holder
        with _stubbed_triton():
            self._inner.exec_module(module)
            for name in _EAGER:
                importlib.import_module(name)
        from tests.standin import patches

        patches.apply()


@contextmanager
def _stubbed_triton() -> Iterator[None]:
    """A triton that can be imported, not run, and that is gone again when exllamav3 has been imported."""
    if importlib.util.find_spec("triton") is not None:
        yield
        return
    from torch.utils import _triton

    from tests.standin import triton_stub

    _triton.has_triton_package()  # Cached: torch must not come to believe in the stub.
    before = set(sys.modules)
    sys.modules.update(triton_stub.modules())
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            if name.split(".", maxsplit=1)[0] == "triton":
                del sys.modules[name]
