"""`exltune optimize`: seeds from every method, scored where the quants are at hand, the best as a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from exltune.engines.base import AUTO, open_engine
from exltune.errors import QuantMismatchError
from exltune.exl3.codebooks import Codebook
from exltune.inventory import inventory_from_config, model_fingerprint, read_config
from exltune.metrics import mean_and_se
from exltune.pipeline.base_quants import BaseQuant, find_base_quants, paths_of
from exltune.pipeline.data import check_tokens, ids, token_sets
from exltune.pipeline.reporter import Reporter, Silent
from exltune.schema.evaluation import MethodRow
from exltune.schema.inventory import Inventory
from exltune.schema.measurement import Measurement
from exltune.schema.recipe import Recipe, RecipeDetail
from exltune.schema.score import Score
from exltune.schema.seed import Seed
from exltune.schema.tokens import Split
from exltune.search import SearchProblem, load_all_rules, pick, propose, search_problem
from exltune.store.files import refuse_existing_file
from exltune.store.records import read_record, write_recipe


@dataclass(frozen=True)
class Optimized:
    """The winning recipe and all that was tried; unscored methods carry their predicted KL alone."""

    recipe: Recipe
    methods: tuple[MethodRow, ...]


def optimize(
    file: Path,
    target_bpw: float,
    out: Path,
    *,
    model: Path | None = None,
    quants_dir: Path | None = None,
    engine: str = AUTO,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Optimized:
    """Propose mixes at a target, score them on the measurement's search set, and write the best one's recipe.

    Without the base quants the best prediction wins. model and quants_dir override what the measurement names.
    Raises: BudgetError for an impossible target, DataError where the measurement or its texts cannot be read,
    OutputExistsError, QuantMismatchError.
    """
    reporter = reporter or Silent()
    refuse_existing_file(out, force=force)
    measurement = read_record(file, Measurement)
    model = model or Path(measurement.exltune.provenance.model_path)
    inventory = inventory_from_config(read_config(model), str(model))
    problem = _problem(inventory, measurement, target_bpw)
    seeds = propose(problem, load_all_rules())
    quants = _quants_at_hand(measurement, quants_dir, model)
    if quants:
        scores = _score(file, measurement, seeds, quants, model, engine, reporter)
        winner = pick(seeds, scores)
        measured = {seed.name: score for seed, score in zip(seeds, scores, strict=True)}
    else:
        reporter.remark("The base quants are not at hand: the best prediction wins, nothing was scored")
        winner = min(seeds, key=_prediction)
        measured = {}
    recipe = _recipe(problem, winner, measured.get(winner.name), measurement)
    write_recipe(out, recipe)
    return Optimized(recipe, tuple(_method_row(seed, measured.get(seed.name)) for seed in seeds))


def _problem(inventory: Inventory, measurement: Measurement, target_bpw: float) -> SearchProblem:
    detail = measurement.exltune
    widths = sorted({probe.bits for group in detail.groups for probe in group.probes})
    return search_problem(
        inventory,
        target_bpw=target_bpw,
        widths=widths,
        codebook=cast(Codebook, detail.codebook),
        head_choice=detail.head_choice,
        head_bits=detail.head_bits,
        measurement=measurement,
    )


def _quants_at_hand(measurement: Measurement, folder: Path | None, model: Path) -> list[BaseQuant]:
    """The measured base quants, or none where their directories are gone. Raises: QuantMismatchError."""
    recorded = {choice: Path(path) for choice, path in measurement.exltune.quants.items()}
    weights = any(model.glob("*.safetensors"))
    if weights and model_fingerprint(model) != measurement.exltune.provenance.model_sha256:
        raise QuantMismatchError("the measurement is of another model", where=str(model), fix="Measure this model")
    if folder is None:
        if not all(path.is_dir() for path in recorded.values()) or not weights:
            return []
        folder = next(iter(recorded.values())).parent
    quants = [quant for quant in find_base_quants(folder, model) if quant.choice in recorded]
    missing = recorded.keys() - {quant.choice for quant in quants}
    if missing:
        raise QuantMismatchError(
            f"the measurement knows base quants that are not here: {', '.join(sorted(missing))} bits",
            where=str(folder),
            fix="Give the folder that was measured with --quants",
        )
    for quant in quants:
        if model_fingerprint(quant.path) != measurement.exltune.quant_sha256[quant.choice]:
            raise QuantMismatchError(
                "it is another quant than the one that was measured", where=str(quant.path), fix="Measure again"
            )
    return quants


def _score(
    file: Path,
    measurement: Measurement,
    seeds: Sequence[Seed],
    quants: Sequence[BaseQuant],
    model: Path,
    engine: str,
    reporter: Reporter,
) -> list[Score]:
    tokens = token_sets(measurement.exltune.data, model)[Split.SEARCH]
    check_tokens(tokens, measurement.exltune.provenance.tokens_sha256, file)
    opened = open_engine(engine, model, paths_of(quants))
    with reporter.stage("Scoring seeds") as progress:
        return opened.score([seed.mix for seed in seeds], ids(tokens), progress)


def _recipe(problem: SearchProblem, seed: Seed, score: Score | None, measurement: Measurement) -> Recipe:
    kld = None if score is None else mean_and_se(score.kl_ref_mix, score.positions)
    choices = seed.mix.choices
    return Recipe(
        target_bpw=problem.target_bpw,
        achieved_bpw=seed.size.bpw,
        head_bits=problem.head_bits,
        tensors={key: float(choices[group.id]) for group in problem.inventory.groups for key in group.tensors},
        exltune=RecipeDetail(
            source=seed.name,
            choices=choices,
            size_bytes=seed.size.size_bytes,
            head_choice=problem.head_choice,
            predicted_kld_nats=seed.predicted_kld_nats,
            measured_kld_nats=kld.mean if kld else None,
            measured_kld_se_nats=kld.se if kld else None,
            provenance=measurement.exltune.provenance,
        ),
    )


def _method_row(seed: Seed, score: Score | None) -> MethodRow:
    kld = None if score is None else mean_and_se(score.kl_ref_mix, score.positions)
    return MethodRow(
        name=seed.name,
        size_bytes=seed.size.size_bytes,
        bpw=seed.size.bpw,
        kl_ref_quant=kld.mean if kld else None,
        kl_ref_quant_se=kld.se if kld else None,
        predicted_kld=seed.predicted_kld_nats,
    )


def _prediction(seed: Seed) -> float:
    return float("inf") if seed.predicted_kld_nats is None else seed.predicted_kld_nats
