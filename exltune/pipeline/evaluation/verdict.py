"""Tuned against uniform at no fewer bytes, on held-out tokens that nothing was chosen by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from exltune.budget import SizeModel, directory_size
from exltune.engines.base import Engine
from exltune.evaluate import whole
from exltune.exl3.directory import QuantDir
from exltune.metrics import evaluation_row, paired_difference
from exltune.pipeline.common.provenance import provenance
from exltune.pipeline.common.reporter import Reporter
from exltune.pipeline.quants.base_quants import BaseQuant, head_source
from exltune.pipeline.texts.token_sets import ids, token_sets
from exltune.schema.evaluation import Evaluation, EvaluationRow, Verdict
from exltune.schema.inventory import Inventory
from exltune.schema.mix import CACHE_K, CACHE_V, Mix, MixSize, choice_of_bits
from exltune.schema.score import Score
from exltune.schema.tokens import DataOptions, Split
from exltune.search import smallest_strategy_at_least
from exltune.search.loop.ranking import SEARCHED
from exltune.store.records import read_recipe


def judge(
    engine: Engine,
    quants: Sequence[BaseQuant],
    model: Path,
    recipe: Path,
    data: DataOptions,
    reporter: Reporter,
) -> tuple[Evaluation, Verdict]:
    """Score base quants, the tuned model as built, and exllamav3's strategy at no fewer bytes, all on held-out rows.

    All with an fp16 cache; the tuned model also with the cache that its recipe chose, if it chose one.
    engine: opened on the base quants by choice and on the tuned directory by its name.
    """
    inventory, tokens = engine.inventory, token_sets(data, engine.model_dir)[Split.HELD_OUT]
    tuned_size = directory_size(inventory, QuantDir(model))
    uniform, uniform_size, uniform_path = _uniform(inventory, quants, tuned_size)
    made = read_recipe(recipe).exltune
    assert made is not None, "optimize writes it"
    assert made.search is not None, "optimize writes it"
    base = [whole(inventory, quant.choice) for quant in quants]
    tuned = whole(inventory, model.name)
    served = [] if made.cache is None else [_with_cache(tuned, made.cache)]
    with reporter.stage("Evaluating") as progress:
        scores = engine.score([*base, uniform, tuned, *served], ids(tokens), progress)
    rows = [_base_row(inventory, quant, score) for quant, score in zip(quants, scores, strict=False)]
    uniform_score, tuned_score, *served_scores = scores[len(base) :]
    uniform_row = _row(uniform.name, uniform_path, uniform_size, uniform_score)
    tuned_row = _row("tuned", str(model), tuned_size, tuned_score)
    served_rows = [_row(f"tuned, cache {made.cache}", None, tuned_size, score) for score in served_scores]
    difference = paired_difference(uniform_score, tuned_score)
    verdict = Verdict(
        source=made.source,
        searched=made.source.startswith(SEARCHED),
        tuned=tuned_row,
        uniform=uniform_row,
        difference=difference.mean,
        difference_ci95=(difference.ci_low, difference.ci_high),
        standings=made.search.standings,
    )
    evaluation = Evaluation(
        rows=(*rows, uniform_row, tuned_row, *served_rows),
        provenance=provenance(engine.model_dir, engine.name, tokens, data),
    )
    return evaluation, verdict


def _with_cache(mix: Mix, cache: str) -> Mix:
    """The mix beside a quantized KV cache, `k,v`."""
    k, v = cache.split(",")
    return mix.model_copy(update={"choices": mix.choices | {CACHE_K: k, CACHE_V: v}})


def _uniform(inventory: Inventory, quants: Sequence[BaseQuant], tuned: MixSize) -> tuple[Mix, MixSize, str | None]:
    """The uniform strategy's smallest quant with at least the tuned one's bytes; its path where it is a base quant."""
    head = head_source(quants, None)
    sizes = SizeModel(inventory, head.codebook)
    found = smallest_strategy_at_least(sizes, tuned.size_bytes, [quant.bits for quant in quants], head.head_bits)
    groups = {group: choice_of_bits(bits) for group, bits in found.bits.items() if group != inventory.head.id}
    plain = [q for q in quants if set(groups.values()) == {q.choice} and q.head_bits == head.head_bits]
    name = f"uniform {found.size.bpw:.2f}"
    mix = Mix(name=name, choices=groups | {inventory.head.id: head.choice})
    return mix, found.size, str(plain[0].path) if plain else None


def _base_row(inventory: Inventory, quant: BaseQuant, score: Score) -> EvaluationRow:
    return _row(quant.path.name, str(quant.path), directory_size(inventory, quant.directory), score)


def _row(name: str, path: str | None, size: MixSize, score: Score) -> EvaluationRow:
    return evaluation_row(score, name=name, path=path, size_bytes=size.size_bytes, bpw=size.bpw, head_bpw=size.head_bpw)
