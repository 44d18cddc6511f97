"""Wheels and the carried extension into the work folder, and what is there then."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from typing import Any

import torch

from parity import extension, wheels
from parity.kit import EXTENSION, WHEELS
from parity.take import Task

_NAMED = ("exllamav3", "transformers", "triton", "numpy", "numba", "pytest")


def take(task: Task) -> dict[str, Any]:
    site, refused = task.work / "site", None
    if not task.dry and task.kit is not None:
        wheels.install(task.carried(WHEELS), site)
        versions = extension.built_for(sys.executable, site)
        refused = extension.unpacked(task.kit / EXTENSION, site, versions)
    if not task.dry and not (site / extension.NAME).is_file():
        extension.start_build(task.work)
    return {"versions": _versions(), "extension_refused": refused, "cores": os.cpu_count(), **_card(task.dry)}


def _versions() -> dict[str, Any]:
    found: dict[str, Any] = {"python": sys.version.split()[0], "torch": torch.__version__, "cuda": torch.version.cuda}
    for name in _NAMED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _card(dry: bool) -> dict[str, Any]:
    if dry:
        return {"vram_bytes": 0, "capability": None, "multiprocessors": 0}
    properties = torch.cuda.get_device_properties(0)
    return {
        "vram_bytes": properties.total_memory,
        "capability": [properties.major, properties.minor],
        "multiprocessors": properties.multi_processor_count,
    }
