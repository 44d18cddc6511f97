"""`exltune compare`: a candidate against a baseline of the same bytes, on the same held-out tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from exltune.budget import directory_size
from exltune.corpora import check_same_tokenizer
from exltune.errors import CompareLostError, CompareRefusedError
from exltune.evaluation import whole
from exltune.evaluation.compare import compare_metrics, task_verdicts
from exltune.exl3.directory import QuantDir
from exltune.inventory import check_same_model
from exltune.metrics import evaluation_row
from exltune.pipeline.common.commands import command_line
from exltune.pipeline.common.session import Session
from exltune.pipeline.evaluation.scored import read_scored
from exltune.pipeline.evaluation.tasks import TaskOptions, check_answers, task_runs
from exltune.schema.compare import CompareResult, Outcome, ScoredQuant, Source, TaskRuns
from exltune.schema.tokens import Split
from exltune.store.files import refuse_existing_file
from exltune.store.quants.held_out import HeldOut
from exltune.store.quants.reference import described
from exltune.store.records import write_record

#: The share of the baseline's bytes by which the candidate's may differ.
TOLERANCE = 0.005


@dataclass(frozen=True)
class Side:
    """One quant: an EXL3 directory or a file of compare; where its benchmark tasks are answered, or stand."""

    quant: Path
    tasks: str | None = None


@dataclass(frozen=True)
class CompareOptions:
    """tolerance: share of bytes. trust_data: take quants that may have been calibrated on the held-out text."""

    tolerance: float = TOLERANCE
    trust_data: bool = False
    tasks: TaskOptions = field(default_factory=TaskOptions)


def compare(
    session: Session,
    candidate: Side,
    baseline: Side,
    settings: CompareOptions | None = None,
    *,
    out: Path | None = None,
    force: bool = False,
) -> CompareResult:
    """Win, tie or loss of the candidate per metric; written to `out` with the sums of every row.

    Raises: CompareRefusedError unless bytes match, tokens are held-out and equal, and all runs are complete, before
    anything is scored wherever it can be told; QuantMismatchError, OutputExistsError, and what the engine raises.
    """
    settings = settings or CompareOptions()
    if out is not None:
        refuse_existing_file(out, force=force)
    source = Source(
        file=None if out is None else str(out), command=_command(session, candidate, baseline, settings, out)
    )
    run = _Run(session, settings, source)
    sides = [run.open(side, role) for side, role in ((candidate, "candidate"), (baseline, "baseline"))]
    excess = _check_bytes(run.size_of(sides[0]), run.size_of(sides[1]), settings.tolerance)
    ours, theirs = run.score(sides)
    _check_harness(ours, theirs)
    metrics = compare_metrics(ours.score, theirs.score)
    pairs = [scored.tasks for scored in (ours, theirs)]
    if (pairs[0] is None) != (pairs[1] is None):
        raise CompareRefusedError(
            f"the {'baseline' if pairs[1] is None else 'candidate'} has no benchmark tasks",
            fix="Give both sides an endpoint, or a file that exltune tasks wrote",
        )
    verdicts = task_verdicts(pairs[0], pairs[1]) if pairs[0] is not None and pairs[1] is not None else ()
    result = CompareResult(
        candidate=ours,
        baseline=theirs,
        bytes_difference=excess,
        tolerance=settings.tolerance,
        metrics=metrics,
        tasks=verdicts,
        outcome=metrics[0].outcome,
        remarks=tuple(run.remarks),
        source=source,
    )
    if out is not None:
        write_record(out, result)
    return result


def check_not_lost(result: CompareResult) -> None:
    """Raise CompareLostError where KL(ref‖quant) says that the candidate is worse."""
    first = result.metrics[0]
    if result.outcome is Outcome.LOSS:
        raise CompareLostError(
            f"it is worse than {result.baseline.row.name} by {-first.difference:.4f} {first.unit} of {first.name} "
            f"(95 % interval {-first.ci95[1]:.4f} to {-first.ci95[0]:.4f})",
            where=result.candidate.row.name,
            fix="Keep the baseline",
        )


@dataclass(frozen=True)
class _Opened:
    """A side before it is scored; scored where a file holds its sums already."""

    side: Side
    path: Path
    scored: ScoredQuant | None = None


class _Run:
    """The harness: one reference, one token set, one engine."""

    def __init__(self, session: Session, settings: CompareOptions, source: Source) -> None:
        self.session, self.reference, self.settings, self.source = session, session.model, settings, source
        self.inventory = session.inventory
        self.remarks: list[str] = []

    @cached_property
    def held_out(self) -> HeldOut:
        """What tells whether a quant has seen them."""
        return self.session.held_out(trust=self.settings.trust_data)

    def open(self, side: Side, role: str) -> _Opened:
        """Check one side by itself."""
        if side.tasks is not None:
            check_answers(side.tasks, self.settings.tasks)
        if side.quant.is_dir():
            check_same_model(self.reference, side.quant)
            check_same_tokenizer(self.reference, side.quant)
            self._check_not_reference(side.quant, role)
            self.remarks += self.held_out.check(side.quant)
            return _Opened(side, side.quant)
        scored = read_scored(side.quant, role)
        if scored.provenance.model_sha256 != self.session.fingerprint():
            noted = scored.provenance
            raise CompareRefusedError(
                f"it was scored against another reference, {described(noted.reference, noted.model_path)}",
                where=str(side.quant),
                fix=f"Give that one with `reference`, or the directory {scored.row.path} to score it again",
            )
        return _Opened(side, Path(scored.row.path or ""), scored)

    def _check_not_reference(self, quant: Path, role: str) -> None:
        """A reference that is a quant has a KL of 0 by definition, and would win over any other."""
        if self.session.fingerprint(quant) == self.session.fingerprint():
            raise CompareRefusedError(
                f"the {role} is the reference itself: its KL is 0 by definition",
                where=str(quant),
                fix="Give the unquantized model as `reference`, or a quant with more bits than both",
            )

    def size_of(self, opened: _Opened) -> tuple[str, int]:
        """Name and bytes."""
        if opened.scored is not None:
            return opened.scored.row.name, opened.scored.row.size_bytes
        return str(opened.path), directory_size(self.inventory, QuantDir(opened.path)).size_bytes

    def score(self, sides: Sequence[_Opened]) -> list[ScoredQuant]:
        """Both sides in one call of the engine, those of files as they are; then their tasks."""
        todo = {str(opened.path.resolve()): opened.path for opened in sides if opened.scored is None}
        fresh = self._score(todo) if todo else {}
        found = [opened.scored or fresh[str(opened.path.resolve())] for opened in sides]
        tasks = [self._tasks(opened, scored) for opened, scored in zip(sides, found, strict=True)]
        return [scored.model_copy(update={"tasks": runs}) for scored, runs in zip(found, tasks, strict=True)]

    def _tasks(self, opened: _Opened, scored: ScoredQuant) -> TaskRuns | None:
        if opened.side.tasks is None:
            return scored.tasks
        return task_runs(opened.side.tasks, self.settings.tasks, self.source, self.session.reporter)

    def _score(self, quants: dict[str, Path]) -> dict[str, ScoredQuant]:
        session, mixes = self.session, [whole(self.inventory, name) for name in quants]
        session.add_quants(quants)
        with session.reporter.stage("Scoring") as progress:
            scores = session.scores.score(mixes, session.ids(Split.HELD_OUT), progress)
        found = {}
        for (name, path), score in zip(quants.items(), scores, strict=True):
            size = directory_size(self.inventory, QuantDir(path))
            row = evaluation_row(
                score, name=path.name, path=name, size_bytes=size.size_bytes, bpw=size.bpw, head_bpw=size.head_bpw
            )
            found[name] = ScoredQuant(
                row=row,
                sha256=session.fingerprint(path),
                score=score,
                provenance=session.provenance(Split.HELD_OUT),
                source=self.source,
            )
        return found


def _check_bytes(candidate: tuple[str, int], baseline: tuple[str, int], tolerance: float) -> float:
    """The candidate's bytes beyond the baseline's, as a share of these."""
    (ours, our_bytes), (theirs, their_bytes) = candidate, baseline
    excess = our_bytes / their_bytes - 1
    if abs(excess) > tolerance:
        raise CompareRefusedError(
            f"the bytes do not match: {ours} has {our_bytes:,} and {theirs} {their_bytes:,}, {100 * excess:+.2f} % "
            f"where {100 * tolerance:g} % is allowed",
            fix=f"Compare with a quant of {math.ceil(our_bytes / (1 + tolerance)):,} to "
            f"{math.floor(our_bytes / (1 - tolerance)):,} bytes, or raise `tolerance`",
        )
    return excess


def _check_harness(ours: ScoredQuant, theirs: ScoredQuant) -> None:
    """Equal tokens, engine and version: what is compared is the quants alone."""
    fix = "Give the same `data`, `rows`, `row_length` and `seed`, or the directory in place of the file"
    sides = ours.provenance, theirs.provenance
    if sides[0].tokens_sha256 != sides[1].tokens_sha256:
        told = [f"{side.rows} rows of {side.row_length} (sha256 {(side.tokens_sha256 or '')[:12]})" for side in sides]
        raise CompareRefusedError(f"the tokens differ: {told[0]} and {told[1]}", where=_names(ours, theirs), fix=fix)
    harness = [f"exltune {side.exltune_version}, engine {side.engine}" for side in sides]
    if harness[0] != harness[1]:
        raise CompareRefusedError(
            f"the harnesses differ: {harness[0]} and {harness[1]}",
            where=_names(ours, theirs),
            fix="Give the directory in place of the file, to score both here",
        )


def _names(ours: ScoredQuant, theirs: ScoredQuant) -> str:
    return f"{ours.row.name} and {theirs.row.name}"


def _command(session: Session, candidate: Side, baseline: Side, settings: CompareOptions, out: Path | None) -> str:
    words = ["compare", str(candidate.quant), "--against", str(baseline.quant), "--reference", str(session.model)]
    more = ["--tolerance", f"{100 * settings.tolerance:g}%", *["--trust-data"] * settings.trust_data]
    for option, side in (("--candidate-endpoint", candidate), ("--baseline-endpoint", baseline)):
        more += [option, side.tasks] if side.tasks is not None else []
    more += settings.tasks.words() if settings.tasks.names else []
    return command_line(words, session.data, more, out)
