"""The published outputs of exltune: finished EXL3 directories by branch, and the tunes around them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exltune.errors import DataError, NotAModelError, QuantMismatchError, UsageError
from exltune.exl3.directory import QuantDir
from exltune.exl3.writer import QUANTIZATION_CONFIG
from exltune.inventory import model_fingerprint
from exltune.publish.hub_files import branch_files
from exltune.store.names import EVALUATION, JOB, MEASUREMENT, MODEL, QUANTS, RECIPE, VERDICT

_CONFIG = "config.json"


@dataclass(frozen=True)
class PublishedQuant:
    """A finished EXL3 directory. tuned: whether a recipe of ours made it; config: its config.json."""

    path: Path
    branch: str
    tuned: bool
    config: Mapping[str, Any]

    @property
    def settings(self) -> Mapping[str, Any]:
        """Its quantization_config."""
        settings: Mapping[str, Any] = self.config["quantization_config"]
        return settings

    @property
    def files(self) -> dict[str, Path]:
        """The files of its branch, by name."""
        return branch_files(self.path)[0]


@dataclass(frozen=True)
class PublishedTune:
    """A finished tune directory and its tuned quant."""

    path: Path
    quant: PublishedQuant

    def file(self, name: str) -> Path:
        """One of the tune's files. Raises: DataError where the tune has not come that far."""
        path = self.path / name
        if not path.is_file():
            raise DataError(
                f"{name} is missing: the tune has not ended",
                where=str(self.path),
                fix="Run the same exltune tune again to end it",
            )
        return path

    @property
    def files(self) -> dict[str, Path]:
        """Recipe, measurement, evaluation and verdict by name. Raises: DataError."""
        return {name: self.file(name) for name in (RECIPE, MEASUREMENT, EVALUATION, VERDICT)}


@dataclass(frozen=True)
class Published:
    """All that stands in the outputs which were given."""

    quants: tuple[PublishedQuant, ...]
    tunes: tuple[PublishedTune, ...]


def find_published(outs: Sequence[Path]) -> Published:
    """Quants and tunes in outputs of exltune: tune directories, and EXL3 directories by themselves.

    Raises: UsageError, NotAModelError, QuantMismatchError, and all that opening the directories raises.
    """
    if not outs:
        raise UsageError("no output is given", fix="Name a tune's `out`, or EXL3 directories")
    quants: dict[Path, PublishedQuant] = {}
    tunes = []
    for out in outs:
        if not (out / JOB).is_file():
            quants[out.resolve()] = read_quant(out)
            continue
        found = [read_quant(path) for path in _base_dirs(out)]
        found = [quant for quant in found if not _known(quant, quants.values())]
        if not (out / MODEL).is_dir():
            raise DataError(
                "model/ is missing: the tune has not ended",
                where=str(out),
                fix="Run the same exltune tune again to end it",
            )
        tuned = read_quant(out / MODEL)
        tunes.append(PublishedTune(out, tuned))
        quants |= {quant.path.resolve(): quant for quant in (*found, tuned)}
    return Published(tuple(quants.values()), tuple(tunes))


def read_quant(path: Path) -> PublishedQuant:
    """An EXL3 directory, checked to be whole. Raises: NotAModelError, QuantMismatchError, CorruptFileError."""
    if not path.is_dir():
        raise NotAModelError("no such directory", where=str(path), fix="Name a tune's `out`, or an EXL3 directory")
    # Every shard is opened: a directory that lacks a tensor is not published.
    quant = QuantDir(path)
    if not (path / QUANTIZATION_CONFIG).is_file():
        raise QuantMismatchError(
            f"{QUANTIZATION_CONFIG} is missing: TabbyAPI and the Hub know the quant by it",
            where=str(path),
            fix="Build or convert it again",
        )
    settings = quant.config.get("quantization_config") or {}
    for field in ("bits", "head_bits"):
        if not isinstance(settings.get(field), int | float):
            raise QuantMismatchError(
                f"{_CONFIG}: quantization_config.{field} is not a number",
                where=str(path),
                fix="Build or convert it again",
            )
    return PublishedQuant(path, _branch(settings), (path / RECIPE).is_file(), quant.config)


def check_branches(quants: Sequence[PublishedQuant]) -> None:
    """Raises: UsageError where two directories would be one branch."""
    seen: dict[str, PublishedQuant] = {}
    for quant in quants:
        other = seen.setdefault(quant.branch, quant)
        if other is not quant:
            raise UsageError(
                f"{other.path} and {quant.path} are both branch {quant.branch}", fix="Give one of them alone"
            )


def _known(quant: PublishedQuant, others: Iterable[PublishedQuant]) -> bool:
    """Whether another tune's base quant is the same, file for file: it is published once."""
    alike = [other for other in others if other.branch == quant.branch and not other.tuned and not quant.tuned]
    return any(model_fingerprint(other.path) == model_fingerprint(quant.path) for other in alike)


def _base_dirs(out: Path) -> list[Path]:
    folder = out / QUANTS
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if (path / _CONFIG).is_file() and not path.name.startswith(".")]


def _branch(settings: Mapping[str, Any]) -> str:
    """`3.15bpw_H6`, as exllamav3's quants are named on the Hub; whole bits have no decimals."""
    return f"{round(settings['bits'], 2):g}bpw_H{settings['head_bits']:g}"
