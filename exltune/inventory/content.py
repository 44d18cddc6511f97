"""Hashes of groups of tensors, so that equal weights are known as such in whatever directory they lie."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from exltune.errors import CorruptFileError
from exltune.exl3.tensors import TensorFiles
from exltune.schema.inventory import Group

if TYPE_CHECKING:
    import torch

#: Tensors of files up to this size are hashed whole; of those in a larger one the first row, as 700 GB must not take
#: hours.
_WHOLE_BYTES = 64 << 20


def group_hashes(directory: Path, groups: Iterable[Group]) -> dict[str, str]:
    """Group id -> sha256 (hex) of its linears' tensors as the directory stores them: names, types, shapes and content.

    A group without tensors there is left out. Raises: NotAModelError, CorruptFileError.
    """
    files = TensorFiles(directory)
    groups = list(groups)
    names = {group.id: [name for key in group.tensors for name in files.of_module(key)] for group in groups}
    tensors = _tensor_hashes(files, {name for wanted in names.values() for name in wanted})
    return {id_: _joined(name + tensors[name] for name in wanted) for id_, wanted in names.items() if wanted}


def _tensor_hashes(files: TensorFiles, names: Iterable[str]) -> dict[str, str]:
    by_file: dict[Path, list[str]] = defaultdict(list)
    for name in names:
        by_file[files.entry(name).file].append(name)
    found = {}
    for file, wanted in by_file.items():
        whole = file.stat().st_size <= _WHOLE_BYTES
        try:
            with safe_open(file, framework="pt") as handle:
                for name in wanted:
                    entry = files.entry(name)
                    part = handle.get_slice(name)[:1] if len(entry.shape) > 1 and not whole else handle.get_tensor(name)
                    found[name] = _joined([entry.dtype, str(entry.shape), _content(part)])
        except (SafetensorError, OSError) as error:
            raise CorruptFileError(f"it cannot be read ({error})", where=str(file), fix="Make it again") from error
    return found


def _content(tensor: torch.Tensor) -> str:
    import torch

    return hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def _joined(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
