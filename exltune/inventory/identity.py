"""Whether two directories hold the same model, and a fingerprint to remember one by."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from exltune.errors import (
    CorruptFileError,
    MissingTensorError,
    NonFiniteError,
    QuantMismatchError,
    UnsupportedArchitectureError,
)
from exltune.exl3.tensors import TensorFiles
from exltune.inventory.config import model_shape, read_config
from exltune.inventory.inventory import check_runnable, inventory_from_config, verify_headers
from exltune.inventory.layout import unquantized_shapes

_MEND = "Download the model again"
_MIB = 1 << 20
#: Files up to this size are hashed whole.
_WHOLE_BYTES = 64 * _MIB
#: Of a larger file, this much of every tensor.
_SAMPLE_BYTES = 4096
#: Config keys that say nothing about the model.
_VOLATILE = ("transformers_version", "_name_or_path", "use_cache")
#: Config values beyond the shapes that change the output of the weights.
_COMPUTE_KEYS = (
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "num_experts_per_tok",
    "routed_scaling_factor",
    "sliding_window",
)


def model_fingerprint(model_dir: str | Path) -> str:
    """sha256 (hex) over config.json, every safetensors header and samples of content.

    A file up to 64 MiB is hashed whole; of a larger one the first 4 KiB of every tensor, so that 700 GB take seconds.
    Raises: NotAModelError, CorruptFileError, MissingTensorError.
    """
    config = {key: value for key, value in read_config(model_dir).items() if key not in _VOLATILE}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for file in TensorFiles(model_dir).files:
        digest.update(file.name.encode())
        _add_file(digest, file)
    return digest.hexdigest()


def check_same_model(model_dir: str | Path, quant_dir: str | Path) -> None:
    """Check that a quant was made from this model: shapes, settings and all unquantized values (as fp16).

    Raises: QuantMismatchError for another or an incomplete model, NonFiniteError where the model itself is broken,
    and all that reading either directory raises.
    """
    import torch

    model, quant = Path(model_dir), Path(quant_dir)
    _check_configs(model, quant)
    model_files, quant_files = TensorFiles(model), TensorFiles(quant)
    check_embedding(quant_files)
    config = read_config(model)
    shape = model_shape(config, str(model))
    check_runnable(shape, str(model))
    plain = unquantized_shapes(shape)
    try:
        verify_headers(inventory_from_config(config), plain, quant_files)
    except (MissingTensorError, CorruptFileError, UnsupportedArchitectureError) as error:
        raise _mismatch(quant, model, error.what) from error
    for name in plain:
        ours, stored = model_files.get(name), quant_files.get(name)
        if not torch.isfinite(ours).all():
            raise NonFiniteError(f"{name} holds NaN or inf", where=str(model), fix="Download the model again")
        if not torch.equal(ours.half(), stored.half()):
            raise _mismatch(quant, model, f"{name} has other values")


def check_embedding(files: TensorFiles) -> None:
    """Refuse a quant whose embedding is quantized: mixes are scored with the model's own.

    Raises: QuantMismatchError.
    """
    if any(name.endswith("embed_tokens.trellis") for name in files.entries):
        raise QuantMismatchError(
            "its embedding is quantized (exllamav3's --embed_bits), and exltune scores with the model's own",
            where=str(files.path),
            fix="Convert it again without --embed_bits",
        )


def _check_configs(model: Path, quant: Path) -> None:
    ours, theirs = read_config(model), read_config(quant)
    # A quant always has a head of its own, also where the model ties it to the embedding.
    shapes = [replace(model_shape(c, str(path)), tied=False) for c, path in ((ours, model), (theirs, quant))]
    if shapes[0] != shapes[1]:
        raise _mismatch(quant, model, "config.json describes another architecture or other sizes")
    for key in _COMPUTE_KEYS:
        if key in ours and key in theirs and ours[key] != theirs[key]:
            raise _mismatch(quant, model, f"{key} is {theirs[key]!r} instead of {ours[key]!r}")


def _mismatch(quant: Path, model: Path, what: str) -> QuantMismatchError:
    return QuantMismatchError(
        f"it is not a complete quant of {model}: {what}",
        where=str(quant),
        fix="Quantize this model again, or name the model that the quant was made from",
    )


def _add_file(digest: hashlib._Hash, file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as handle:
        if size <= _WHOLE_BYTES:
            digest.update(handle.read())
            return
        length = int.from_bytes(handle.read(8), "little")
        header = handle.read(length)
        digest.update(header)
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        for begin, end in sorted(entry["data_offsets"] for entry in tensors.values()):
            handle.seek(8 + length + begin)
            digest.update(handle.read(min(end - begin, _SAMPLE_BYTES)))
