"""`exltune peers`: round-to-nearest and AWQ-style W4A16 beside EXL3 on the same model, tokens and bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from exltune.budget import SizeModel, directory_size
from exltune.engines.base import Engine
from exltune.engines.streaming.weights import SIMULATED, CheckpointWeights
from exltune.errors import UsageError
from exltune.evaluation import whole
from exltune.evaluation.peers import peer_layers, peer_size
from exltune.exl3.hessian import Hessian
from exltune.exl3.tensors import TensorFiles, save_tensors
from exltune.inventory import load_unquantized, read_config
from exltune.metrics import evaluation_row, paired_difference
from exltune.pipeline.common.commands import command_line
from exltune.pipeline.common.session import Session
from exltune.schema.evaluation import EvaluationRow
from exltune.schema.inventory import Inventory, Role
from exltune.schema.mix import REFERENCE, UNQUANTIZED_BITS, Choice, Mix, MixSize, choice_of_bits
from exltune.schema.peers import Match, Peer, PeerMethod, PeersResult
from exltune.schema.score import Score
from exltune.schema.tokens import Split
from exltune.search import strategy_within
from exltune.store.files import refuse_existing_file
from exltune.store.quants.base_quants import BaseQuant, head_source
from exltune.store.records import write_record

#: Inputs that share a scale.
GROUPS = (32, 64, 128)
#: The engine that reads simulated weights.
ENGINE = "reference"


def peers(
    session: Session,
    *,
    groups: Sequence[int] = GROUPS,
    trust_data: bool = False,
    out: Path | None = None,
    force: bool = False,
) -> PeersResult:
    """Rows of all base quants and peers on held-out tokens, and EXL3 within the bytes of each peer.

    session: on the reference engine, which alone reads the simulated weights. groups: sizes of the peers' groups.
    The peers are simulated: rounded weights, at the bytes that the format takes.
    Raises: UsageError, QuantMismatchError, CompareRefusedError for base quants that may have seen the held-out text,
    DataError, OutputExistsError, and all that the engine raises.
    """
    if out is not None:
        refuse_existing_file(out, force=force)
    if not groups or min(groups) < 1:
        raise UsageError(
            f"groups of {', '.join(map(str, groups)) or 'no'} inputs do not exist", fix="For example `groups` 32,64,128"
        )
    load_unquantized(session.model)
    reporter, quants = session.reporter, session.base_quants
    new = session.held_out(trust=trust_data)
    remarks = [remark for quant in quants for remark in new.check(quant.path)]
    with TemporaryDirectory(prefix="exltune-peers-") as folder:
        simulated = _Simulation(session.engine, Path(folder), tuple(dict.fromkeys(groups)))
        with reporter.stage("Rounding") as progress:
            capture = session.engine.capture(session.ids(Split.CALIBRATION), simulated.keys, progress)
            for layer in capture:
                simulated.add(layer.layer, layer.hessians)
        session.add_quants(simulated.paths)
        table = _Table(session.engine.inventory, quants, simulated)
        with reporter.stage("Scoring") as progress:
            scores = session.scores.score(table.mixes, session.ids(Split.HELD_OUT), progress)
    base, peers = table.rows(scores)
    result = PeersResult(
        base=base,
        peers=peers,
        remarks=(*remarks, *table.remarks),
        calibration_sha256=session.token_sets[Split.CALIBRATION].info.sha256,
        command=command_line(
            ["peers", str(session.model), "--quants", str(session.quants_dir), "--groups", ",".join(map(str, groups))],
            session.data,
            ["--trust-data"] * trust_data,
            out,
        ),
        provenance=session.provenance(Split.HELD_OUT),
    )
    if out is not None:
        write_record(out, result)
    return result


@dataclass(frozen=True)
class _Kind:
    """A peer's method and group size; its name is its choice in mixes."""

    method: PeerMethod
    group: int

    @property
    def name(self) -> str:
        return f"{self.method.value} W4A16 g{self.group}"


class _Simulation:
    """Directories of rounded weights, a file for each layer, in a temporary folder."""

    def __init__(self, engine: Engine, folder: Path, groups: tuple[int, ...]) -> None:
        model = engine.model_dir
        self.kinds = tuple(_Kind(method, group) for group in groups for method in PeerMethod)
        self.groups = groups
        self.paths: dict[Choice, Path] = {kind.name: folder / f"{n}" for n, kind in enumerate(self.kinds)}
        self.alphas: dict[_Kind, list[float]] = {kind: [] for kind in self.kinds}
        self._weights = CheckpointWeights(TensorFiles(model))
        self._specs = {spec.key: spec for spec in engine.inventory.linears}
        note = {**read_config(model), "quantization_config": {"quant_method": SIMULATED}}
        for path in self.paths.values():
            path.mkdir()
            (path / "config.json").write_text(json.dumps(note))

    @property
    def keys(self) -> list[str]:
        """Linears that the peers round: all but the head and the fp16 tensors of every format."""
        return [key for key, spec in self._specs.items() if spec.role is not Role.HEAD and not spec.role.fp16]

    def add(self, layer: int | None, hessians: Mapping[str, Hessian]) -> None:
        """Round a layer every way and write it; biases stay as they are."""
        linears = {key: self._weights.linear(self._specs[key]) for key in hessians}
        biases = {f"{key}.bias": linear.bias for key, linear in linears.items() if linear.bias is not None}
        weights = {key: linear.weight for key, linear in linears.items()}
        for found in peer_layers(weights, hessians, self.groups):
            kind = _Kind(found.method, found.group)
            self.alphas[kind] += found.alphas
            tensors = {f"{key}.weight": weight.contiguous() for key, weight in found.weights.items()}
            save_tensors(self.paths[kind.name] / f"layer-{layer:05}.safetensors", tensors | biases, {})


class _Table:
    """The mixes to score, in order: base quants, then each peer with the EXL3 mixes within its bytes."""

    def __init__(self, inventory: Inventory, quants: Sequence[BaseQuant], simulated: _Simulation) -> None:
        self.inventory, self.quants, self.simulated = inventory, quants, simulated
        self.head = head_source(quants, None)
        self.sizes = SizeModel(inventory, self.head.codebook)
        self.remarks: list[str] = []
        self.peer_sizes = {kind: peer_size(inventory, kind.group) for kind in simulated.kinds}
        by_group = {kind.group: self._matches(kind, self.peer_sizes[kind]) for kind in simulated.kinds}
        self.matches = {kind: by_group[kind.group] for kind in simulated.kinds}

    @property
    def mixes(self) -> list[Mix]:
        """The mixes for the engine."""
        mixes = [whole(self.inventory, quant.choice) for quant in self.quants]
        for kind in self.simulated.kinds:
            peer = whole(self.inventory, kind.name)
            mixes.append(peer.model_copy(update={"choices": peer.choices | {self.inventory.head.id: REFERENCE}}))
            mixes += [mix for mix, _, _ in self.matches[kind]]
        return mixes

    def rows(self, scores: Sequence[Score]) -> tuple[tuple[EvaluationRow, ...], tuple[Peer, ...]]:
        """The same mixes with their scores."""
        left = iter(scores)
        base = [
            _row(quant.path.name, str(quant.path), directory_size(self.inventory, quant.directory), next(left))
            for quant in self.quants
        ]
        peers = []
        for kind in self.simulated.kinds:
            peer = next(left)
            alphas = self.simulated.alphas[kind]
            peers.append(
                Peer(
                    method=kind.method,
                    group=kind.group,
                    row=_row(kind.name, None, self.peer_sizes[kind], peer),
                    mean_alpha=sum(alphas) / len(alphas) if alphas else None,
                    matches=tuple(_match(found, peer, next(left)) for found in self.matches[kind]),
                )
            )
        return tuple(base), tuple(peers)

    def _matches(self, kind: _Kind, size: MixSize) -> list[tuple[Mix, MixSize, bool]]:
        found = []
        for head_kept, bits, choice in (
            (False, self.head.head_bits, self.head.choice),
            (True, UNQUANTIZED_BITS, REFERENCE),
        ):
            mix = self._within(size.size_bytes, bits, choice)
            if mix is None:
                told = "in fp16" if head_kept else f"of {bits:g} bits"
                remark = f"No EXL3 mix with a head {told} fits the {size.size_bytes:,} bytes of g{kind.group}"
                self.remarks += [] if remark in self.remarks else [remark]
            else:
                found.append((*mix, head_kept))
        return found

    def _within(self, size_bytes: int, head_bits: float, head_choice: Choice) -> tuple[Mix, MixSize] | None:
        """The strategy's largest mix of at most these bytes, router gates and head included."""
        widths, head = [quant.bits for quant in self.quants], self.inventory.head.id
        fixed = self.sizes.uniform_size(widths[0], head_bits).size_bytes - self.sizes.groups_bytes(widths[0])
        bits = strategy_within(self.sizes, size_bytes - fixed, widths)
        if bits is None:
            return None
        size = self.sizes.mix_size(bits | {head: head_bits})
        groups = {group: choice_of_bits(width) for group, width in bits.items()}
        name = f"EXL3 {size.bpw:.2f} bpw, head {head_bits:g}"
        return Mix(name=name, choices=groups | {head: head_choice}), size


def _match(found: tuple[Mix, MixSize, bool], peer: Score, score: Score) -> Match:
    mix, size, head_kept = found
    return Match(
        row=_row(mix.name, None, size, score),
        choices=mix.choices,
        head_kept=head_kept,
        difference=paired_difference(peer, score),
    )


def _row(name: str, path: str | None, size: MixSize, score: Score) -> EvaluationRow:
    return evaluation_row(score, name=name, path=path, size_bytes=size.size_bytes, bpw=size.bpw, head_bpw=size.head_bpw)
