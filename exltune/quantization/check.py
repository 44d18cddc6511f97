"""Look at all weights before the long work begins: faults that no quant can hold are found in minutes."""

from __future__ import annotations

from collections.abc import Iterator

from exltune.engines.base import Progress
from exltune.errors import NonFiniteError
from exltune.exl3.tensors import TensorFiles
from exltune.exl3.writer import KEPT_IN_FP32
from exltune.inventory import read_config, unquantized_tensor_names
from exltune.schema.inventory import Inventory, Role


def check_weights(files: TensorFiles, inventory: Inventory, progress: Progress | None = None) -> None:
    """Raise NonFiniteError naming the first tensor with NaN, inf, or values beyond the fp16 that it is stored in.

    progress counts bytes.
    """
    import torch

    checked = dict(_stored_in_fp16(files, inventory))
    total, done = sum(files.entry(name).nbytes for name in checked), 0
    for name, in_fp16 in checked.items():
        if progress is not None:
            progress(done, total, name)
        tensor = files.get(name)
        if not torch.isfinite(tensor.half() if in_fp16 else tensor).all():
            what = "NaN, inf or values beyond fp16" if in_fp16 else "NaN or inf"
            raise NonFiniteError(f"{name} holds {what}", where=str(files.path), fix="Download the model again")
        done += tensor.nbytes


def _stored_in_fp16(files: TensorFiles, inventory: Inventory) -> Iterator[tuple[str, bool]]:
    """Names of all tensors that the model uses, and whether a quant stores them in fp16 as they are."""
    for name in unquantized_tensor_names(read_config(files.path)):
        yield name, not name.endswith(KEPT_IN_FP32)
    for spec in inventory.linears:
        if spec.role is not Role.ROUTER and f"{spec.key}.weight" in files:
            yield f"{spec.key}.weight", False
        if spec.bias:
            yield f"{spec.key}.bias", True
