"""config.json, read and reduced to the numbers that shapes follow from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exltune.errors import ModelError, NotAModelError, UnsupportedArchitectureError
from exltune.exl3.tensors import read_json
from exltune.inventory.architectures import Architecture, Flag, architecture

#: The same number under the names that transformers has used.
_EXPERT_COUNT_KEYS = ("n_routed_experts", "num_experts", "num_local_experts")

#: exllamav3 cuts wider dense MLPs into slices with keys of their own (constants.py, MAX_MLP_INTERMEDIATE).
_MAX_DENSE_INTERMEDIATE = 55296


@dataclass(frozen=True)
class ModelShape:
    """What the shapes and names of all tensors of a model follow from."""

    row: Architecture
    layers: int
    hidden: int
    vocab: int
    q_heads: int
    kv_heads: int
    head_dim: int
    dense_intermediate: int
    dense_layers: int
    moe_intermediate: int
    experts: int
    shared_intermediate: int
    qk_norm: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    tied: bool


def read_config(model_dir: str | Path) -> dict[str, Any]:
    """The config.json of a model directory. Raises: NotAModelError, CorruptFileError."""
    path = Path(model_dir)
    file = path / "config.json"
    if not path.is_dir():
        raise NotAModelError("no such directory", where=str(path), fix="Give the path of a model directory")
    if not file.is_file():
        raise NotAModelError("it holds no config.json", where=str(path), fix="Give the path of a model directory")
    return read_json(file)


def model_shape(config: Mapping[str, Any], where: str = "config.json") -> ModelShape:
    """The shape of a model from its config.

    Raises: UnsupportedArchitectureError for a class without a row or a variant that exllamav3 does not load,
    NotAModelError for a config that lacks a number.
    """
    names = config.get("architectures") or ["(none)"]
    row = architecture(str(names[0]), where)
    _check_requirements(row, config, where)
    need = text_reader(config, where)
    layers, hidden = need.int("num_hidden_layers"), need.int("hidden_size")
    dense_layers = _dense_layers(row, need, layers)
    q_heads = need.int("num_attention_heads")
    moe = need.int("moe_intermediate_size") if row.moe else 0
    dense = need.int("intermediate_size") if dense_layers else 0
    if dense > _MAX_DENSE_INTERMEDIATE:
        raise UnsupportedArchitectureError(
            f"intermediate_size {dense} is above {_MAX_DENSE_INTERMEDIATE}, where exllamav3 slices tensors", where=where
        )
    return ModelShape(
        row=row,
        layers=layers,
        hidden=hidden,
        vocab=need.int("vocab_size"),
        q_heads=q_heads,
        kv_heads=need.int("num_key_value_heads", q_heads),
        head_dim=need.int("head_dim", hidden // q_heads),
        dense_intermediate=dense,
        dense_layers=dense_layers,
        moe_intermediate=moe,
        experts=need.int(*_EXPERT_COUNT_KEYS) if row.moe else 0,
        shared_intermediate=moe * need.int(row.shared_experts, 1) if row.shared_experts else 0,
        qk_norm=_flag(row.qk_norm, config),
        qkv_bias=_flag(row.qkv_bias, config),
        o_bias=_flag(row.o_bias, config),
        mlp_bias=_flag(row.mlp_bias, config),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def text_reader(config: Mapping[str, Any], where: str) -> ConfigReader:
    """The language model's part of a config: `text_config` where it is nested. Raises: NotAModelError."""
    nested = config.get("text_config", config)
    if not isinstance(nested, Mapping):
        raise NotAModelError(f"text_config is {nested!r} where an object is needed", where=where)
    return ConfigReader(nested, where)


class ConfigReader:
    """Positive integers of a config, with one message where one is missing."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config, self.where = config, where

    def has(self, key: str) -> bool:
        """Whether the config gives a value that is not null."""
        return self.config.get(key) is not None

    def int(self, *keys_and_default: str | int, minimum: int = 1) -> int:
        """The first of the keys that the config has; a trailing int is the default."""
        keys = [key for key in keys_and_default if isinstance(key, str)]
        found = next((self.config[key] for key in keys if self.config.get(key) is not None), None)
        if found is None and isinstance(keys_and_default[-1], int):
            found = keys_and_default[-1]
        if isinstance(found, bool) or not isinstance(found, int) or found < minimum:
            names = " / ".join(keys)
            raise NotAModelError(f"{names} is {found!r} where a number is needed", where=self.where)
        return found


def _dense_layers(row: Architecture, need: ConfigReader, layers: int) -> int:
    if row.dense_layers is None:
        return layers
    if isinstance(row.dense_layers, str):
        return min(layers, need.int(row.dense_layers, minimum=0))
    return row.dense_layers


def _flag(flag: Flag, config: Mapping[str, Any]) -> bool:
    return bool(config.get(flag, False)) if isinstance(flag, str) else flag


def _check_requirements(row: Architecture, config: Mapping[str, Any], where: str) -> None:
    for key, expected in row.requires.items():
        found = config.get(key)
        if found is not None and found != expected:
            raise _unsupported(row, key, found, expected, where)


def _unsupported(row: Architecture, key: str, found: object, expected: object, where: str) -> ModelError:
    return UnsupportedArchitectureError(
        f"{key} is {found!r}, and exllamav3 loads {row.name} only with {expected!r}", where=where
    )
