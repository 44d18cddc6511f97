"""The inventory of a model: its linears and the groups that take one bit width together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from exltune.errors import CorruptFileError, MissingTensorError, NotAModelError, UnsupportedArchitectureError
from exltune.exl3.tensors import TensorFiles
from exltune.inventory.architectures import ARCHITECTURES
from exltune.inventory.config import ModelShape, model_shape, read_config
from exltune.inventory.layout import HEAD_KEY, linears, parameters, unquantized_shapes
from exltune.schema.inventory import Group, Inventory, LinearSpec, Role, Unit

_PLAIN_DTYPES = ("BF16", "F16", "F32")

#: How finely a model is measured: layers, attention and MLP, their parts, groups with k and v, gate and up together,
#: groups alone.
LEVELS = (0, 1, 2, 3, 4)


def inventory_from_config(config: Mapping[str, Any], where: str = "config.json") -> Inventory:
    """The inventory that a config promises, without looking at weights.

    Raises: UnsupportedArchitectureError, NotAModelError.
    """
    return _inventory(model_shape(config, where))


def load_inventory(model_dir: str | Path, *, planning: bool = False) -> Inventory:
    """The inventory of a model directory or an EXL3 directory, checked against its safetensors headers.

    planning: also of a class that exltune only plans; an EXL3 directory, as its model may be stored in other ways.
    Raises: NotAModelError, UnsupportedArchitectureError naming the supported classes, MissingTensorError naming
    the tensor, CorruptFileError for damaged files and for shapes that are not the config's.
    """
    return _load(Path(model_dir), planning)[0]


def load_unquantized(model_dir: str | Path) -> Inventory:
    """The inventory of a model directory that is not an EXL3 quant. Raises: as load_inventory."""
    inventory, files = _load(Path(model_dir))
    if is_exl3(files):
        raise NotAModelError(
            "it is an EXL3 quant, and this needs the weights before they were quantized",
            where=str(files.path),
            fix="Give the unquantized model that it was made from (measure, optimize, evaluate and gate take a quant "
            "as the reference)",
        )
    return inventory


def is_exl3(files: TensorFiles) -> bool:
    """Whether any tensor of a directory is quantized as EXL3."""
    return any(name.endswith(".trellis") for name in files.entries)


def check_runnable(shape: ModelShape, where: str) -> None:
    """Check that the class can be quantized and scored. Raises: UnsupportedArchitectureError."""
    if shape.row.planning_only:
        raise UnsupportedArchitectureError(
            f"exltune plans {shape.row.name} from its config.json, but cannot quantize, score or build it",
            where=where,
            fix=f"These can: {', '.join(row.name for row in ARCHITECTURES.values() if not row.planning_only)}",
        )


def _load(path: Path, planning: bool = False) -> tuple[Inventory, TensorFiles]:
    shape = model_shape(read_config(path), str(path / "config.json"))
    if not planning:
        check_runnable(shape, str(path))
    files = TensorFiles(path)
    inventory = _inventory(shape, tied=shape.tied and f"{HEAD_KEY}.weight" not in files)
    verify_headers(inventory, unquantized_shapes(shape), files)
    return inventory, files


def unquantized_tensor_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of all tensors that stay as they are: embedding, norms, routers and their buffers; no biases."""
    return tuple(unquantized_shapes(model_shape(config)))


def verify_headers(inventory: Inventory, plain: Mapping[str, tuple[int, ...]], files: TensorFiles) -> None:
    """Check that every tensor is there in its shape. Raises: MissingTensorError, CorruptFileError."""
    for name, dims in plain.items():
        _expect(files, name, dims)
    for spec in inventory.linears:
        # A tied head is the embedding, which is among the plain tensors.
        tied = spec.role is Role.HEAD and inventory.tied_head and f"{HEAD_KEY}.trellis" not in files
        if not spec.role.fp16 and not tied:
            _expect_linear(files, spec)


def groups_at_level(inventory: Inventory, level: int) -> tuple[Unit, ...]:
    """The parts that are probed together, without the head.

    level 0: whole layers (`3`). 1: a layer's attention, and its MLP with shared and routed experts (`3.attn`, `3.mlp`).
    2: shared and routed experts apart (`3.experts`). 3: their projections, k with v and gate with up (`3.attn.kv`).
    4: single groups (`3.attn.k`); the routed experts' gate and up are one.
    Source: exllamav3 conversion/measure_model.py 1.6.5, which flattens `optimizer_targets()` of modules/transformer.py,
    attn.py, mlp.py and block_sparse_mlp.py to a depth of `level`. Its level 3 keeps a shared expert whole; ours splits
    it, as its kernels load gate+up and down at different bits.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {LEVELS}, not {level}")
    members: dict[tuple[str, str], list[Group]] = {}
    for group in inventory.groups:
        members.setdefault(_part_of(group, level), []).append(group)
    return tuple(
        Unit(
            id=part,
            role=role,
            layer=groups[0].layer,
            members=tuple(group.id for group in groups),
            numel=sum(group.numel for group in groups),
        )
        for (part, role), groups in members.items()
    )


def cache_half(key: str) -> Unit:
    """The keys (CACHE_K) or the values (CACHE_V) of the KV cache as a unit."""
    return Unit(id=key, role=key, layer=None, members=(key,), numel=0)


def _part_of(group: Group, level: int) -> tuple[str, str]:
    """Id and role of the part that a group is in."""
    if level == 4:
        return group.id, group.role
    if level == 3:
        return f"{group.layer}.{group.role.pair}", group.role.pair
    if level == 0:
        return str(group.layer), "layer"
    role = group.role.part
    if level == 1 and role in ("shared", "experts"):
        role = "mlp"
    return f"{group.layer}.{role}", role


def _inventory(shape: ModelShape, tied: bool | None = None) -> Inventory:
    specs = tuple(linears(shape))
    *groups, head = _groups(spec for spec in specs if not spec.role.fp16)
    return Inventory(
        architecture=shape.row.name,
        layers=shape.layers,
        hidden_size=shape.hidden,
        vocab_size=shape.vocab,
        tied_head=shape.tied if tied is None else tied,
        parameters=parameters(shape, specs),
        linears=specs,
        groups=tuple(groups),
        head=head,
    )


def _groups(specs: Iterable[LinearSpec]) -> list[Group]:
    members: dict[tuple[int | None, Role], list[LinearSpec]] = {}
    for spec in specs:
        members.setdefault((spec.layer, spec.role), []).append(spec)
    return [
        Group(
            id=role.value if layer is None else f"{layer}.{role.value}",
            role=role,
            layer=layer,
            tensors=tuple(spec.key for spec in group),
            numel=sum(spec.in_features * spec.out_features for spec in group),
        )
        for (layer, role), group in members.items()
    ]


def _expect_linear(files: TensorFiles, spec: LinearSpec) -> None:
    if f"{spec.key}.trellis" in files:
        _expect_trellis(files, spec)
    else:
        _expect(files, f"{spec.key}.weight", (spec.out_features, spec.in_features))
        if files.entry(f"{spec.key}.weight").dtype not in _PLAIN_DTYPES:
            raise UnsupportedArchitectureError(
                f"{spec.key}.weight is stored as {files.entry(f'{spec.key}.weight').dtype}",
                where=str(files.path),
                fix="Give a checkpoint in bf16, fp16 or fp32",
            )
    if spec.bias and f"{spec.key}.bias" not in files:
        raise _missing(files, f"{spec.key}.bias")


def _expect_trellis(files: TensorFiles, spec: LinearSpec) -> None:
    found = files.entry(f"{spec.key}.trellis").shape
    tiles = (spec.padded_in // 16, spec.padded_out // 16)
    if found[:2] != tiles:
        raise _wrong_shape(files, f"{spec.key}.trellis", found, (*tiles, 16 * 2))
    _expect(files, f"{spec.key}.suh", (spec.padded_in,))
    _expect(files, f"{spec.key}.svh", (spec.padded_out,))


def _expect(files: TensorFiles, name: str, dims: tuple[int, ...]) -> None:
    if name not in files:
        raise _missing(files, name)
    if files.entry(name).shape != dims:
        raise _wrong_shape(files, name, files.entry(name).shape, dims)


def _missing(files: TensorFiles, name: str) -> MissingTensorError:
    return MissingTensorError(
        f"the tensor {name} is missing", where=str(files.path), fix="Download or convert the model again"
    )


def _wrong_shape(files: TensorFiles, name: str, found: tuple[int, ...], dims: tuple[int, ...]) -> CorruptFileError:
    return CorruptFileError(
        f"the tensor {name} has shape {found} where config.json implies {dims}",
        where=str(files.path),
        fix="config.json and the safetensors do not belong together: download both again",
    )
