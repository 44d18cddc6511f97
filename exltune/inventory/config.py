"""config.json, read and reduced to the numbers that shapes follow from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from exltune.errors import ModelError, NotAModelError, UnsupportedArchitectureError
from exltune.exl3.tensors import read_json
from exltune.inventory.architectures import Architecture, AttentionKind, Flag, architecture
from exltune.inventory.reader import ConfigReader, text_reader

#: The same number under the names that transformers has used.
_EXPERT_COUNT_KEYS = ("n_routed_experts", "num_experts", "num_local_experts")

#: Far above the layers of any model and the experts of any layer: more is a slip, and would take hours.
_MOST = 4096

#: exllamav3 cuts wider dense MLPs into slices with keys of their own (constants.py, MAX_MLP_INTERMEDIATE).
_MAX_DENSE_INTERMEDIATE = 55296

_MLP_KINDS = {"dense": True, "sparse": False}


@dataclass(frozen=True)
class Latent:
    """Widths of multi-head latent attention; q_lora_rank is None where q_proj is one matrix."""

    q_lora_rank: int | None
    kv_lora_rank: int
    nope: int
    rope: int
    v: int


@dataclass(frozen=True)
class LinearHeads:
    """Widths of gated-delta-net attention; qkv counts the channels that pass the convolution."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int

    @property
    def qkv(self) -> int:
        """Channels of q, k and v together."""
        return 2 * self.key_heads * self.key_dim + self.v

    @property
    def v(self) -> int:
        """Channels of v, and of the output gate."""
        return self.value_heads * self.value_dim


@dataclass(frozen=True)
class ModelShape:
    """The numbers that give shapes and names of all tensors of a model.

    attention: the kind of every layer. window: tokens that a sliding layer sees, its own included. latent, linear:
    None where no layer is of that kind.
    """

    row: Architecture
    layers: int
    hidden: int
    vocab: int
    attention: tuple[AttentionKind, ...]
    q_heads: int
    kv_heads: int
    head_dim: int
    window: int | None
    latent: Latent | None
    linear: LinearHeads | None
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
    row = architecture(_class_name(config, where), where)
    need = _reader(row, config, where)
    _check_requirements(row, need)
    layers, hidden = need.number("num_hidden_layers", maximum=_MOST), need.number("hidden_size")
    kinds = _attention_kinds(row, need, layers)
    dense_layers = _dense_layers(row, need, layers)
    q_heads = need.number("num_attention_heads")
    latent = _latent(need) if "mla" in kinds else None
    moe = need.number(row.moe_intermediate) if row.moe else 0
    return ModelShape(
        row=row,
        layers=layers,
        hidden=hidden,
        vocab=need.number("vocab_size"),
        attention=kinds,
        q_heads=q_heads,
        kv_heads=1 if latent else _kv_heads(need, q_heads),
        head_dim=latent.nope + latent.rope if latent else need.number("head_dim", hidden // q_heads),
        window=need.number("sliding_window") if "sliding" in kinds else None,
        latent=latent,
        linear=_linear_heads(need) if "linear" in kinds else None,
        dense_intermediate=_dense_intermediate(need) if dense_layers else 0,
        dense_layers=dense_layers,
        moe_intermediate=moe,
        experts=need.number(*_EXPERT_COUNT_KEYS, maximum=_MOST) if row.moe else 0,
        shared_intermediate=_shared_intermediate(row, need, moe),
        qk_norm=_flag(row.qk_norm, need),
        qkv_bias=_flag(row.qkv_bias, need),
        o_bias=_flag(row.o_bias, need),
        mlp_bias=_flag(row.mlp_bias, need),
        # exllamav3 reads this one beside text_config, not in it.
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def _kv_heads(need: ConfigReader, q_heads: int) -> int:
    heads = need.number("num_key_value_heads", q_heads)
    if q_heads % heads:
        raise need.error(f"num_key_value_heads is {heads} where a divisor of num_attention_heads, {q_heads}, is needed")
    return heads


def _class_name(config: Mapping[str, Any], where: str) -> str:
    names = config.get("architectures") or ["(none)"]
    if not isinstance(names, list) or not isinstance(names[0], str):
        raise NotAModelError(f"architectures is {names!r} where a list of names is needed", where=where)
    return names[0]


def _reader(row: Architecture, config: Mapping[str, Any], where: str) -> ConfigReader:
    if not row.text_config:
        return ConfigReader(config, where)
    if config.get("text_config") is None:
        raise NotAModelError(f"text_config is missing, which {row.name} keeps its numbers in", where=where)
    nested = text_reader(config, where).config
    if config.get("vocab_size") is None:
        return ConfigReader(nested, where)
    return ConfigReader({**nested, "vocab_size": config["vocab_size"]}, where)  # exllamav3 looks there first.


def _attention_kinds(row: Architecture, need: ConfigReader, layers: int) -> tuple[AttentionKind, ...]:
    if row.layer_types is not None and (row.interval is None or need.has("layer_types")):
        return tuple(
            cast(AttentionKind, row.layer_types[name]) for name in need.names("layer_types", layers, row.layer_types)
        )
    if row.interval is not None:
        every = need.number(row.interval, 4)
        return tuple("linear" if (layer + 1) % every else "full" for layer in range(layers))
    return (row.attention,) * layers


def _latent(need: ConfigReader) -> Latent:
    return Latent(
        q_lora_rank=need.number("q_lora_rank") if need.has("q_lora_rank") else None,
        kv_lora_rank=need.number("kv_lora_rank"),
        nope=need.number("qk_nope_head_dim"),
        rope=need.number("qk_rope_head_dim"),
        v=need.number("v_head_dim"),
    )


def _linear_heads(need: ConfigReader) -> LinearHeads:
    return LinearHeads(
        key_heads=need.number("linear_num_key_heads", 16),
        value_heads=need.number("linear_num_value_heads", 32),
        key_dim=need.number("linear_key_head_dim", 128),
        value_dim=need.number("linear_value_head_dim", 128),
        kernel=need.number("linear_conv_kernel_dim", 4),
    )


def _dense_layers(row: Architecture, need: ConfigReader, layers: int) -> int:
    if row.dense_layers is None:
        return layers
    if isinstance(row.dense_layers, int):
        return row.dense_layers
    if need.has("mlp_layer_types"):
        return _leading_dense(row, need, layers)
    return min(layers, need.number(row.dense_layers, minimum=0))


def _leading_dense(row: Architecture, need: ConfigReader, layers: int) -> int:
    dense = [_MLP_KINDS[name] for name in need.names("mlp_layer_types", layers, _MLP_KINDS)]
    if sorted(dense, reverse=True) != dense:
        raise UnsupportedArchitectureError(
            f"mlp_layer_types has dense layers behind sparse ones, which exltune does not know of {row.name}",
            where=need.where,
        )
    return sum(dense)


def _dense_intermediate(need: ConfigReader) -> int:
    dense = need.number("intermediate_size")
    if dense > _MAX_DENSE_INTERMEDIATE:
        raise UnsupportedArchitectureError(
            f"intermediate_size {dense} is above {_MAX_DENSE_INTERMEDIATE}, where exllamav3 slices tensors",
            where=need.where,
        )
    return dense


def _shared_intermediate(row: Architecture, need: ConfigReader, moe: int) -> int:
    if row.shared_size is not None:
        return need.number(row.shared_size, 512)
    return moe * need.number(row.shared_experts, 1, minimum=0) if row.shared_experts else 0


def _flag(flag: Flag, need: ConfigReader) -> bool:
    return bool(need.config.get(flag, False)) if isinstance(flag, str) else flag


def _check_requirements(row: Architecture, need: ConfigReader) -> None:
    for key, expected in row.requires.items():
        found = need.config.get(key)
        if found is not None and found != expected:
            raise _unsupported(row, key, found, expected, need.where)


def _unsupported(row: Architecture, key: str, found: object, expected: object, where: str) -> ModelError:
    return UnsupportedArchitectureError(
        f"{key} is {found!r}, and exllamav3 loads {row.name} only with {expected!r}", where=where
    )
