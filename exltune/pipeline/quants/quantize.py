"""`exltune quantize`: base quants of a model, resumed at the tensor that a kill interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from exltune.assembly import assemble_quant
from exltune.corpora.dealing import ids
from exltune.engines.base import Converter, ConvertJob, Engine, Progress
from exltune.errors import (
    CorruptFileError,
    DataError,
    MissingTensorError,
    NonFiniteError,
    OutputExistsError,
    QuantMismatchError,
    UsageError,
)
from exltune.exl3.codebooks import Codebook, check_bits
from exltune.exl3.tensors import TensorFiles
from exltune.exl3.writer import QUANTIZATION_CONFIG
from exltune.inventory import check_same_model, load_unquantized
from exltune.pipeline.common.reporter import Reporter
from exltune.pipeline.common.session import Session
from exltune.quantization import TensorJob, all_jobs, check_weights, quantize_tensors
from exltune.schema.defaults import DEFAULT_HEAD_BITS, DEFAULT_WIDTHS
from exltune.schema.inventory import Inventory
from exltune.schema.provenance import Provenance
from exltune.schema.quant import QuantRecord, TensorErrors
from exltune.schema.tokens import Split
from exltune.store.files import exclusive, new_directory
from exltune.store.names import RECORD
from exltune.store.quants.directories import BaseQuant, check_weights_of, quant_dirs, read_base_quant
from exltune.store.records import read_record, write_record
from exltune.store.stages import QUANT, TENSORS
from exltune.store.tensors import TensorStore


@dataclass(frozen=True)
class QuantizeOptions:
    """Bit widths of the base quants, the head's bits (one for all, or one for each width), and the codebook of all.

    hq: how often exllamav3 raises the bits of its select layers, which makes mixes to compare with, no base quants.
    """

    widths: tuple[float, ...] = DEFAULT_WIDTHS
    head_bits: tuple[float, ...] = (DEFAULT_HEAD_BITS,)
    codebook: Codebook = "mul1"
    hq: int = 0

    def check(self) -> None:
        """Raise UsageError for bits that do not exist."""
        if not self.widths:
            raise UsageError("no bit widths are given", fix="For example `bits` 2,3,4")
        if len(self.head_bits) not in (1, len(self.widths)):
            raise UsageError(
                f"there are {len(self.head_bits)} bits for heads and {len(self.widths)} base quants",
                fix="Give `head_bits` one number for all, or one for each of `bits`",
            )
        for bits in (*self.widths, *self.head_bits):
            check_bits(bits, self.codebook)

    def head_of(self, bits: float) -> float:
        """The head's bits in the base quant at a width."""
        return self.head_bits[self.widths.index(bits)] if len(self.head_bits) > 1 else self.head_bits[0]

    @property
    def default_head(self) -> float:
        """The head's bits of mixes that do not choose them: exllamav3's default where a base quant has it."""
        return DEFAULT_HEAD_BITS if DEFAULT_HEAD_BITS in self.head_bits else self.head_bits[0]

    def directory(self, bits: float) -> str:
        """Name of the base quant at a width, e.g. `3bpw_H6`, or `3bpw_H6_hq1`."""
        return f"{bits:g}bpw_H{self.head_of(bits):g}{f'_hq{self.hq}' if self.hq else ''}"


def quantize(session: Session, out: Path, settings: QuantizeOptions, *, force: bool = False) -> list[Path]:
    """Write one EXL3 directory for each width into `out`; those that are there already are kept, whatever their names.

    Quants that others made of this model are taken as they are, head and all, unless force is given.
    Raises: UsageError for bits that do not exist, OutputExistsError for a directory made with other settings,
    QuantMismatchError for one that others made of another model or with another codebook,
    DataError, ModelError, and all that the engine raises.
    """
    reporter, opened = session.reporter, _engine(session, settings)
    if settings.hq and not isinstance(opened, Converter):
        raise UsageError(f"engine {opened.name} has no `hq`", fix="Leave it out, or take `engine` exllamav3")
    with exclusive(out):
        run = _Run(session, out, settings)
        taken = {} if force or settings.hq else run.made_elsewhere(reporter)
        missing = run.missing(force, taken)
        if missing:
            try:
                if isinstance(opened, Converter):
                    run.convert(opened, missing, force, reporter)
                else:
                    run.quantize(missing, reporter)
                    run.assemble(missing, force, reporter)
            except (NonFiniteError, MissingTensorError):
                # Once the model is mended it is another one: finished tensors of this one are of no use.
                run.store.remove()
                raise
        run.store.remove()
    return [taken[bits].path if bits in taken else out / settings.directory(bits) for bits in settings.widths]


def _engine(session: Session, settings: QuantizeOptions) -> Engine:
    """The engine, once it is known that there is something to do with it."""
    settings.check()
    load_unquantized(session.model)
    return session.engine


class _Run:
    """One quantization with its token set, and its store of finished tensors, the same for further widths."""

    def __init__(self, session: Session, out: Path, settings: QuantizeOptions) -> None:
        self.session, self.engine, self.out, self.settings = session, session.engine, out, settings
        self.tokens = session.token_sets[Split.CALIBRATION]
        self.tensors = TENSORS.identity(
            engine=session.engine.name,
            model_sha256=session.fingerprint(),
            tokens_sha256=self.tokens.info.sha256,
            options=replace(settings, widths=(), head_bits=()),
        )
        self.store = TensorStore(out / ".exltune" / self.tensors[:16])

    def job(self, bits: float) -> str:
        """The identity of the base quant at a width."""
        return QUANT.identity(tensors=self.tensors, bits=bits, head_bits=self.settings.head_of(bits))

    @property
    def inventory(self) -> Inventory:
        return self.engine.inventory

    def made_elsewhere(self, reporter: Reporter) -> dict[float, BaseQuant]:
        """Base quants that lie in `out` without a note of exltune's, by their bits, checked to be this model's."""
        strangers = [path for path in quant_dirs(self.out) if not (path / RECORD).is_file()]
        found: dict[float, BaseQuant] = {}
        for quant in filter(None, map(read_base_quant, strangers)):
            check_same_model(self.engine.model_dir, quant.path)
            self._check_codebook(quant)
            check_weights_of(quant, self.engine.model_dir)
            found[quant.bits] = quant
            if quant.bits in self.settings.widths:
                reporter.remark(f"Taking {quant.path.name} as it is: {quant.bits:g} bits, head {quant.head_bits:g}")
        return found

    def _check_codebook(self, quant: BaseQuant) -> None:
        if quant.codebook != self.settings.codebook:
            raise QuantMismatchError(
                f"it has codebook {quant.codebook}, and {self.settings.codebook} was asked for",
                where=str(quant.path),
                fix=f"Give `codebook` {quant.codebook}, or move it elsewhere",
            )

    def missing(self, force: bool, taken: Collection[float]) -> list[float]:
        """Widths whose directory has still to be made."""
        return [bits for bits in self.settings.widths if bits not in taken and (force or not self._is_done(bits))]

    def _is_done(self, bits: float) -> bool:
        directory = self.out / self.settings.directory(bits)
        if not directory.exists() or not any(directory.iterdir()):
            return False
        try:
            done = read_record(directory / RECORD, QuantRecord).job == self.job(bits)
        except (DataError, CorruptFileError):
            done = False
        if not done:
            raise OutputExistsError(
                "it holds a quant that was made otherwise (another model, other texts, codebook or version)",
                where=str(directory),
                fix="Give another `out`, or `force` to replace it",
            )
        return True

    def quantize(self, widths: Sequence[float], reporter: Reporter) -> None:
        """Quantize the linears that the store does not hold yet."""
        wanted = all_jobs(self.inventory, widths, [self.settings.head_of(bits) for bits in widths])
        todo = [job for job in wanted if job not in self.store]
        if len(todo) < len(wanted):
            reporter.remark(f"Taking up again: {len(wanted) - len(todo)} of {len(wanted)} tensors are done")
        if not todo:
            return
        self._check_weights(reporter)
        with (
            reporter.stage("Quantizing") as progress,
            closing(quantize_tensors(self.engine, ids(self.tokens), todo, self.settings.codebook, progress)) as tensors,
        ):
            rare_experts: dict[str, None] = {}
            for done in tensors:
                rare = done.job.key.rpartition(".")[0] in done.rare_experts
                rare_experts |= dict.fromkeys(done.rare_experts)
                self.store.put(done.job.key, done.job.bits, done.linear, done.stats, rare=rare)
        if rare_experts:
            reporter.remark(
                f"{len(rare_experts)} experts saw few calibration tokens by the model's own routing (all tokens were "
                f"shown to them all the same): {', '.join(list(rare_experts)[:8])}{', ...' * (len(rare_experts) > 8)}"
            )

    def convert(self, converter: Converter, widths: Sequence[float], force: bool, reporter: Reporter) -> None:
        """Write the directories of all widths with the engine's own converter, which keeps its own state to resume."""
        self._check_weights(reporter)
        for bits in widths:
            directory, work_dir = self.out / self.settings.directory(bits), self._work_dir(bits)
            if work_dir.is_dir():
                reporter.remark(f"Taking up again: {directory.name}")
            with (
                new_directory(directory, force=force, replaces=QUANTIZATION_CONFIG) as partial,
                reporter.stage(f"Converting {directory.name}") as progress,
            ):
                head = self.settings.head_of(bits)
                job = ConvertJob(bits, head, self.settings.codebook, partial, work_dir, hq=self.settings.hq)
                converter.convert(job, ids(self.tokens), progress)
                write_record(partial / RECORD, self._record(bits, {}))
            shutil.rmtree(work_dir)

    def _work_dir(self, bits: float) -> Path:
        return self.out / ".exltune" / f"{self.tensors[:16]}-{self.settings.directory(bits)}"

    def _check_weights(self, reporter: Reporter) -> None:
        with reporter.stage("Checking weights") as progress:
            check_weights(TensorFiles(self.engine.model_dir), self.inventory, progress)

    def assemble(self, widths: Sequence[float], force: bool, reporter: Reporter) -> None:
        """Write the directories of all widths from the store."""
        for bits in widths:
            with reporter.stage(f"Writing {self.settings.directory(bits)}") as progress:
                self._assemble(bits, force, progress)

    def _assemble(self, bits: float, force: bool, progress: Progress) -> None:
        jobs = {job.key: job for job in all_jobs(self.inventory, [bits], [self.settings.head_of(bits)])}
        directory = self.out / self.settings.directory(bits)
        with new_directory(directory, force=force, replaces=QUANTIZATION_CONFIG) as partial:
            quantization = {
                "bits": bits,
                "head_bits": self.settings.head_of(bits),
                "calibration": {"rows": self.tokens.info.rows, "cols": self.tokens.info.row_length},
                "out_scales": "always",
                "codebook": self.settings.codebook,
            }
            assemble_quant(
                self.engine.model_dir,
                partial,
                self.inventory,
                lambda key: self.store.pending(*jobs[key]),
                quantization,
                progress,
            )
            write_record(partial / RECORD, self._record(bits, jobs))

    def _record(self, bits: float, jobs: dict[str, TensorJob]) -> QuantRecord:
        notes = {key: self.store.note(*job) for key, job in jobs.items()}
        return QuantRecord(
            bits=bits,
            head_bits=self.settings.head_of(bits),
            codebook=self.settings.codebook,
            job=self.job(bits),
            rare_experts=tuple(sorted({key.rpartition(".")[0] for key, note in notes.items() if note.rare})),
            tensors={
                key: TensorErrors(proxy_err=note.stats.proxy_err, rfn=note.stats.rfn, feedback=note.stats.feedback)
                for key, note in notes.items()
            },
            provenance=self._provenance(),
        )

    def _provenance(self) -> Provenance:
        return self.session.provenance(Split.CALIBRATION)
