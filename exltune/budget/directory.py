"""Sizes read off a finished directory, as exllamav3's Model.get_storage_info counts them."""

from __future__ import annotations

from exltune.exl3.directory import QuantDir
from exltune.schema.inventory import Inventory, LinearSpec, Role
from exltune.schema.mix import MixSize


def directory_size(inventory: Inventory, quant: QuantDir) -> MixSize:
    """Bytes and bpw of all linears, router gates and head of an EXL3 directory."""
    head = [spec for spec in inventory.linears if spec.role is Role.HEAD]
    others = [spec for spec in inventory.linears if spec.role is not Role.HEAD]
    head_bytes = sum(quant.nbytes(spec.key) for spec in head)
    other_bytes = sum(stored_bytes(spec, quant) for spec in others)
    payload = sum(_payload_bytes(spec, quant) for spec in inventory.linears)
    return MixSize(
        size_bytes=head_bytes + other_bytes,
        bpw=8 * other_bytes / sum(_numel(spec) for spec in others),
        head_bpw=8 * head_bytes / sum(_numel(spec) for spec in head),
        overhead_bytes=head_bytes + other_bytes - payload,
    )


def _numel(spec: LinearSpec) -> int:
    """Weights as exllamav3 counts them: padded to 128, but for router gates."""
    if spec.role.fp16:
        return spec.in_features * spec.out_features
    return spec.padded_in * spec.padded_out


def stored_bytes(spec: LinearSpec, quant: QuantDir) -> int:
    """Bytes of all tensors of one linear. Raises: MissingTensorError."""
    if spec.role.fp16:
        # The gate's other tensors (e_score_correction_bias) belong to the block, not to the linear.
        bias = quant.files.entry(f"{spec.key}.bias").nbytes if spec.bias else 0
        return quant.files.entry(f"{spec.key}.weight").nbytes + bias
    return quant.nbytes(spec.key)


def _payload_bytes(spec: LinearSpec, quant: QuantDir) -> int:
    name = f"{spec.key}.trellis"
    if name in quant.files:
        return quant.files.entry(name).nbytes
    return quant.files.entry(f"{spec.key}.weight").nbytes if not spec.role.fp16 else 0
