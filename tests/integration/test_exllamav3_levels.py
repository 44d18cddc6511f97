"""Levels of measurement, against the targets of exllamav3's own module tree."""

from __future__ import annotations

import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exltune.inventory import groups_at_level, inventory_from_config


def flattened(node: list[Any], level: int) -> list[frozenset[str]]:
    """The groups of a nest of keys: what lies deeper than the level is one.

    Restated from main() of exllamav3/conversion/measure_model.py 1.6.5.
    """
    if level == 0 or isinstance(node, str):
        return [frozenset(_keys(node))]
    return [part for child in node for part in flattened(child, level - 1)]


def _keys(node: list[Any] | str) -> list[str]:
    return [node] if isinstance(node, str) else [key for child in node for key in _keys(child)]


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_levels_are_exllamav3s(
    exllamav3: types.ModuleType, kind: str, config_of: Callable[..., dict[str, Any]], tmp_path: Path, level: int
) -> None:
    config = config_of(kind)
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = exllamav3.Model.from_config(exllamav3.Config.from_directory(str(tmp_path)))
    theirs = {part for module in model.modules[:-1] for part in flattened(module.optimizer_targets(), level) if part}
    inventory = inventory_from_config(config)
    tensors = {group.id: group.tensors for group in inventory.groups}
    parts = groups_at_level(inventory, level)
    ours = {frozenset(key for member in part.members for key in tensors[member]) for part in parts}
    assert len({part.id for part in parts}) == len(parts)
    if level < 3:
        assert ours == theirs
    else:
        # A shared expert is one group there, and two here: its kernels load gate+up and down at different bits.
        whole = {frozenset.union(*pair) for pair in zip(*_shared(ours), strict=True)}
        assert ours - {half for pair in _shared(ours) for half in pair} | whole == theirs
        assert bool(whole) == (kind == "glm4moe")


def _shared(parts: set[frozenset[str]]) -> tuple[list[frozenset[str]], list[frozenset[str]]]:
    """The halves of the shared experts, each list in the order of layers."""
    found = sorted((part for part in parts if any("shared" in key for key in part)), key=sorted)
    down = [part for part in found if any("down_proj" in key for key in part)]
    return [part for part in found if part not in down], down
