"""All that can be made before there is a card, in one folder that is carried to the box.

What is there already is kept, so that a preparation that was stopped goes on. The folder `<kit>-build` beside it holds
what made it (an environment like the box's, compiled objects), and stays behind.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from exltune.schema.inventory import Inventory
from exltune.schema.mix import REFERENCE, Choice, Mix
from parity import extension, wheels

ROOT = Path(__file__).resolve().parents[2]
#: What the device tool carries, less what the repository takes of it.
CARRIED_BYTES = 46 << 20

NOTE, WHEELS, EXTENSION, QUANTS, SCORES, TILES = (
    *("kit.json", "wheels", "extension.xz", "quants", "scores.json", "tiles.npz"),
)


@dataclass(frozen=True)
class Kit:
    """What a kit is made of; kept in it as NOTE.

    model: of the repository, or anywhere. widths: of its base quants. rows: over all four token sets, of which
    `scored_rows` of held-out text are scored. tiles: how many are encoded, at each of `tile_bits`.
    """

    model: str = "models/glm4moe"
    widths: tuple[float, ...] = (2.0, 3.0, 4.0)
    rows: int = 128
    row_length: int = 256
    scored_rows: int = 32
    tiles: int = 1024
    tile_bits: tuple[float, ...] = (1, 2, 3, 3.5, 4, 5, 6, 8)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises: FileNotFoundError where the folder is no kit."""
        values = json.loads((folder / NOTE).read_text())["made_of"]
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    @property
    def model_dir(self) -> Path:
        """On this machine."""
        return ROOT / self.model

    def quants(self, folder: Path) -> dict[str, Path]:
        """The base quants in the kit's folder, by choice."""
        return {f"{bits:g}": folder / QUANTS / f"{bits:g}bpw_H6" for bits in self.widths}

    def drawn_tiles(self) -> npt.NDArray[np.float32]:
        """Gaussian tiles (tiles, 256), the same on every machine."""
        return np.random.default_rng(0).standard_normal((self.tiles, 256), dtype=np.float32)


@dataclass(frozen=True)
class Box:
    """The machine with the card: a Python of its version on this machine, and its torch."""

    python: Path
    torch: str


def prepare(folder: Path, kit: Kit, tell: Callable[[str], None], box: Box | None = None) -> None:
    """Make the kit; with a box, also its wheels and its extension, whose compilation takes two cores an hour or two.

    Raises: CalledProcessError, RuntimeError with the last lines of what failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = {"made_of": json.loads(json.dumps(asdict(kit))), "made_by": _made_by(box)}
    if (folder / NOTE).is_file():
        before = json.loads((folder / NOTE).read_text())
        _check(folder, before, note, tell)
        note["made_by"] = before["made_by"] | note["made_by"]
    (folder / NOTE).write_text(json.dumps(note, indent=1) + "\n")
    parts: list[tuple[str, Callable[[], None]]] = [
        (QUANTS, lambda: _make_quants(folder, kit)),
        (SCORES, lambda: _make_scores(folder, kit)),
        (TILES, lambda: _make_tiles(folder, kit)),
    ]
    if box is not None:
        parts.append((WHEELS, lambda: wheels.collect(folder / WHEELS, _version_of(box.python))))
        parts.append((EXTENSION, lambda: _make_extension(folder, box, tell)))
    for name, make in parts:
        if not (folder / name).exists():
            tell(f"{name}: being made")
            make()
        tell(f"{name}: {_bytes(folder / name) / 2**20:.1f} MiB")
    total = _bytes(folder)
    tell(f"{folder}: {total / 2**20:.1f} MiB{'' if total <= CARRIED_BYTES else ', more than the device tool carries'}")


def _made_by(box: Box | None) -> dict[str, str]:
    """Versions that decide what a kit holds; without a box there are none of wheels and extension."""
    from exltune.store.identity import scoring_versions

    scores = {"scores": scoring_versions("reference")}
    if box is None:
        return scores
    return {**scores, "box": f"exllamav3 {version('exllamav3')}, Python {_version_of(box.python)}, torch {box.torch}"}


def _check(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], tell: Callable[[str], None]) -> None:
    """Throw away the parts that other versions have made. Raises: RuntimeError for a kit of other settings."""
    if before["made_of"] != now["made_of"]:
        raise RuntimeError(f"{folder} holds a kit of other settings: remove it, or name another folder")
    parts_of = {"scores": (QUANTS, SCORES, TILES), "box": (WHEELS, EXTENSION)}
    for what, versions in now["made_by"].items():
        parts, old = parts_of[what], before["made_by"].get(what, versions)
        if old != versions:
            tell(f"{', '.join(parts)}: made by {old}, made again by {versions}")
            for path in (folder / part for part in parts):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _version_of(python: Path) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _make_quants(folder: Path, kit: Kit) -> None:
    """Base quants by the reference engine."""
    import exltune

    partial = folder / "quants.partial"
    texts = {"rows": kit.rows, "row_length": kit.row_length}
    exltune.quantize(kit.model_dir, partial, bits=kit.widths, engine="reference", **texts)
    partial.rename(folder / QUANTS)


def _make_scores(folder: Path, kit: Kit) -> None:
    """Rows of held-out text, mixes, and what the reference engine in fp32 says of them: the truth for the card."""
    import exltune
    from exltune.engines.reference.engine import ReferenceEngine
    from exltune.schema.tokens import Split

    with exltune.open_session(kit.model_dir, rows=kit.rows, row_length=kit.row_length) as session:
        ids = session.ids(Split.HELD_OUT)[: kit.scored_rows]
    engine = ReferenceEngine(kit.model_dir, kit.quants(folder))
    mixes = some_mixes(engine.inventory, list(kit.quants(folder)))
    found = {
        "tokens": ids.tolist(),
        "mixes": [mix.choices for mix in mixes],
        "scores": [score.model_dump() for score in engine.score(mixes, ids)],
    }
    partial = folder / "scores.partial"
    partial.write_text(json.dumps(found))
    partial.rename(folder / SCORES)


def some_mixes(inventory: Inventory, choices: Sequence[Choice]) -> list[Mix]:
    """Each uniform mix, five whose groups are drawn, and every third group alone at the lowest width."""
    draw, groups = random.Random(0), [group.id for group in (*inventory.groups, inventory.head)]
    unquantized = dict.fromkeys(groups, REFERENCE)
    return [
        *(Mix(name=f"uniform {choice}", choices=dict.fromkeys(groups, choice)) for choice in choices),
        *(Mix(name=f"drawn {n}", choices={group: draw.choice(choices) for group in groups}) for n in range(5)),
        *(Mix(name=f"{group} alone", choices={**unquantized, group: choices[0]}) for group in groups[::3]),
    ]


def tiles_hash(tiles: npt.NDArray[np.float32]) -> str:
    """sha256 of tiles: whether the box has drawn the same."""
    return hashlib.sha256(tiles.tobytes()).hexdigest()


def _make_tiles(folder: Path, kit: Kit) -> None:
    """States (n, 256) of tiles by both encoders of a CPU: fp32 costs for all, the kernel's fp16 costs for the first."""
    from half_costs import EMULATED_TILES, encode_with_half_costs

    from exltune.exl3.trellis import encode_tiles

    tiles = kit.drawn_tiles()
    arrays: dict[str, Any] = {"sha256": np.array(tiles_hash(tiles))}
    for bits in kit.tile_bits:
        arrays[f"fp32_{bits:g}"] = encode_tiles(tiles, bits, "mul1")
        arrays[f"fp16_{bits:g}"] = encode_with_half_costs(tiles[:EMULATED_TILES], bits)
    partial = folder / "partial.npz"
    np.savez_compressed(partial, **arrays)
    partial.rename(folder / TILES)


def _make_extension(folder: Path, box: Box, tell: Callable[[str], None]) -> None:
    """Compile it in an environment with the box's Python and torch, beside the kit."""
    beside = folder.with_name(f"{folder.name}-build")
    own, site = beside / "env", beside / "site"
    python = own / "bin" / "python"
    made = own / "made"
    if not made.is_file() or made.read_text() != box.torch:
        tell(f"{EXTENSION}: installing torch {box.torch} for {box.python}, some 3 GB")
        subprocess.run([str(box.python), "-m", "venv", "--clear", str(own)], check=True)
        pip = [str(python), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, f"torch=={box.torch}", "numpy", "ninja", "setuptools"], check=True)
        wheels.install(folder / WHEELS, site, python)
        made.write_text(box.torch)
    versions = extension.built_for(python, site)
    tell(f"{EXTENSION}: compiling for {versions}; see {beside / 'objects' / 'build.log'}")
    extension.packed(extension.build(python, site, beside / "objects"), folder / EXTENSION, versions)


def ids_of(scores: Mapping[str, Any]) -> torch.Tensor:
    """Token ids (rows, T) of the kit's scores."""
    return torch.tensor(scores["tokens"], dtype=torch.int64)
