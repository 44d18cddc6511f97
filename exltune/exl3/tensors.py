"""Safetensors of a model directory, read lazily and checked first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from exltune.errors import CorruptFileError, MissingTensorError, NotAModelError, StorageError

if TYPE_CHECKING:
    import torch

_DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
}
_DTYPE_BYTES |= {"I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8}


@dataclass(frozen=True)
class TensorEntry:
    """Place, dtype and shape of a tensor, from a safetensors header."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    nbytes: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.nbytes // _DTYPE_BYTES[self.dtype]


class TensorFiles:
    """All safetensors of a directory; headers are read and lengths checked when it is made.

    Raises: NotAModelError without config.json or safetensors, CorruptFileError for a truncated or unreadable
    file, MissingTensorError for a shard that the index names and the directory lacks.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.entries: dict[str, TensorEntry] = {}
        files = _safetensors_in(self.path)
        for file in files:
            for name, entry in read_header(file).items():
                self.entries[name] = entry
        self.files = files

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def entry(self, name: str) -> TensorEntry:
        """Header entry of a tensor. Raises: MissingTensorError."""
        found = self.entries.get(name)
        if found is None:
            raise MissingTensorError(
                f"tensor {name!r} is missing", where=str(self.path), fix="Download or convert the model again"
            )
        return found

    def get(self, name: str) -> torch.Tensor:
        """The tensor as stored, in its own dtype. Raises: MissingTensorError, CorruptFileError."""
        entry = self.entry(name)
        try:
            with safe_open(entry.file, framework="pt", device="cpu") as handle:
                tensor: torch.Tensor = handle.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _corrupt(entry.file, str(error)) from error
        return tensor

    @cached_property
    def _by_module(self) -> dict[str, list[str]]:
        modules: dict[str, list[str]] = {}
        for name in sorted(self.entries):
            modules.setdefault(name.rpartition(".")[0], []).append(name)
        return modules

    def of_module(self, key: str) -> list[str]:
        """Names of a module's own tensors, `{key}.*` without further dots, sorted."""
        return self._by_module.get(key, [])


def save_tensors(file: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file that everyone may read whom the umask allows.

    Raises: StorageError where the disk is full or refuses; no file is left then.
    """
    from safetensors.torch import save_file

    file.touch()
    mode = file.stat().st_mode
    try:
        save_file(dict(tensors), file, metadata=dict(metadata))
    except SafetensorError as error:
        file.unlink(missing_ok=True)
        raise StorageError(f"it cannot be written ({error})", where=str(file), fix="Make room and run again") from error
    # safetensors 0.8 writes to a private temporary file first, whose mode the result keeps.
    file.chmod(mode)


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Entries of one safetensors file; its length must be that of the header. Raises: CorruptFileError."""
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or length > size - 8:
                raise _corrupt(file, "it is cut off within its header")
            header = json.loads(handle.read(length))
        header.pop("__metadata__", None)
        entries = {
            name: TensorEntry(file, tuple(e["shape"]), e["dtype"], e["data_offsets"][1] - e["data_offsets"][0])
            for name, e in header.items()
        }
        promised = 8 + length + max((e["data_offsets"][1] for e in header.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _corrupt(file, f"its header cannot be read ({error})") from error
    if size != promised:
        raise _corrupt(file, f"it has {size:,} bytes where its header promises {promised:,}")
    return entries


def _safetensors_in(path: Path) -> list[Path]:
    if not path.is_dir():
        raise NotAModelError("no such directory", where=str(path), fix="Give the path of a model directory")
    if not (path / "config.json").is_file():
        raise NotAModelError("it holds no config.json", where=str(path), fix="Give the path of a model directory")
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise _corrupt(index, f"it cannot be read ({error})") from error
        absent = [name for name in names if not (path / name).is_file()]
        if absent:
            raise MissingTensorError(
                f"shards named by the index are missing: {', '.join(absent)}",
                where=str(path),
                fix="Download the model again",
            )
        return [path / name for name in names]
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise NotAModelError(
            "it holds no safetensors",
            where=str(path),
            fix="Only safetensors checkpoints are read; convert it first",
        )
    return files


def _corrupt(file: Path, what: str) -> CorruptFileError:
    return CorruptFileError(f"the file is damaged: {what}", where=str(file), fix="Download or write it again")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises: CorruptFileError."""
    fix = "Download or write it again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptFileError(f"it cannot be read as JSON ({error})", where=str(path), fix=fix) from error
    if not isinstance(content, dict):
        raise CorruptFileError("it holds no JSON object", where=str(path), fix=fix)
    return content
