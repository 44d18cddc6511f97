"""`exltune build --requantize`: the mixed model of a recipe, quantized anew from the unquantized model."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

from exltune.assembly import assemble_quant, resolve_recipe
from exltune.assembly.assemble import half_weight
from exltune.budget import directory_size
from exltune.corpora.dealing import ids
from exltune.engines.base import Converter, ConvertJob, Progress
from exltune.errors import UsageError
from exltune.exl3.codebooks import Codebook, check_bits
from exltune.exl3.directory import QuantDir
from exltune.exl3.tensors import TensorFiles
from exltune.exl3.writer import QUANTIZATION_CONFIG, PendingTensor
from exltune.inventory import load_unquantized
from exltune.pipeline.common.session import Session
from exltune.pipeline.quants.build import check_planned
from exltune.quantization import TensorJob, check_weights, quantize_tensors
from exltune.schema.defaults import DEFAULT_HEAD_BITS
from exltune.schema.mix import UNQUANTIZED_BITS, MixSize
from exltune.schema.recipe import Recipe
from exltune.schema.tokens import Split
from exltune.store.files import new_directory
from exltune.store.names import RECIPE
from exltune.store.records import write_recipe
from exltune.store.stages import REQUANTIZE
from exltune.store.tensors import TensorStore


def requantize(
    session: Session, recipe: Recipe, out: Path, *, codebook: Codebook = "mul1", force: bool = False
) -> MixSize:
    """Write the EXL3 model of a recipe to `out`; a run that was killed is taken up again.

    Raises: RecipeError, UsageError for bits that the codebook lacks or a recipe of another model, OutputExistsError,
    QuantMismatchError where the bytes are not those of the plan, and all that the engine raises.
    """
    reporter = session.reporter
    load_unquantized(session.model)
    opened = session.engine
    run = _Run(session, recipe, codebook, out)
    run.check()
    with reporter.stage("Checking weights") as progress:
        check_weights(TensorFiles(session.model), opened.inventory, progress)
    with (
        new_directory(out, force=force, replaces=QUANTIZATION_CONFIG) as partial,
        reporter.stage("Quantizing") as progress,
    ):
        if isinstance(opened, Converter):
            opened.convert(run.conversion(partial), ids(run.tokens), progress)
        else:
            run.quantize(partial, progress)
        write_recipe(partial / RECIPE, recipe)
        size = directory_size(opened.inventory, QuantDir(partial))
        check_planned(recipe, size, out)
    shutil.rmtree(run.work_dir, ignore_errors=True)
    return size


class _Run:
    """A recipe resolved for a model, its calibration rows, and the folder of finished tensors."""

    def __init__(self, session: Session, recipe: Recipe, codebook: Codebook, out: Path) -> None:
        self.session, self.recipe, self.codebook = session, recipe, codebook
        self.engine, self.tokens = session.engine, session.token_sets[Split.CALIBRATION]
        self.bits = resolve_recipe(recipe, self.engine.inventory)
        self.head_bits = recipe.head_bits or DEFAULT_HEAD_BITS
        job = REQUANTIZE.identity(
            engine=session.engine.name,
            model_sha256=session.fingerprint(),
            tokens_sha256=self.tokens.info.sha256,
            codebook=codebook,
            bits=self.bits,
            head_bits=self.head_bits,
        )
        self.work_dir = out.resolve().with_name(f".{out.name}.{job[:16]}")

    def check(self) -> None:
        """Raises: UsageError for bits that do not exist, or another model than the recipe's."""
        for width in {*self.bits.values(), self.head_bits} - {UNQUANTIZED_BITS}:
            check_bits(width, self.codebook)
        made_for = self.recipe.exltune.provenance.weights_sha256 if self.recipe.exltune is not None else None
        if made_for not in (None, self.session.fingerprint()):
            raise UsageError(
                f"the recipe was made for another model than {self.engine.model_dir}",
                fix="Give the model that was measured",
            )

    @property
    def mean_bits(self) -> float:
        """Bits per weight, noted beside the quant."""
        numel = {spec.key: spec.in_features * spec.out_features for spec in self.engine.inventory.linears}
        mean = sum(numel[key] * width for key, width in self.bits.items()) / sum(numel[key] for key in self.bits)
        return round(self.recipe.achieved_bpw or mean, 2)

    def conversion(self, partial: Path) -> ConvertJob:
        """The same as a job of the engine's own converter."""
        return ConvertJob(self.mean_bits, self.head_bits, self.codebook, partial, self.work_dir, self.bits)

    def quantize(self, partial: Path, progress: Progress) -> None:
        """Quantize the linears that the store does not hold yet, and write the directory."""
        files, store = TensorFiles(self.engine.model_dir), TensorStore(self.work_dir)
        bits = self.bits | dict.fromkeys(self.engine.inventory.head.tensors, self.head_bits)
        todo = [TensorJob(key, width) for key, width in bits.items() if width != UNQUANTIZED_BITS]
        todo = [job for job in todo if job not in store]
        if todo:
            with closing(quantize_tensors(self.engine, ids(self.tokens), todo, self.codebook, progress)) as tensors:
                for done in tensors:
                    store.put(done.job.key, done.job.bits, done.linear, done.stats)
        specs = {spec.key: spec for spec in self.engine.inventory.linears}

        def linear(key: str) -> list[PendingTensor]:
            if bits[key] == UNQUANTIZED_BITS:
                return half_weight(files, key, f"{key}.weight", specs[key].bias)
            return store.pending(key, bits[key])

        settings = {
            "bits": self.mean_bits,
            "head_bits": self.head_bits,
            "calibration": {"rows": self.tokens.info.rows, "cols": self.tokens.info.row_length},
            "out_scales": "always",
            "codebook": self.codebook,
        }
        assemble_quant(self.engine.model_dir, partial, self.engine.inventory, linear, settings)
