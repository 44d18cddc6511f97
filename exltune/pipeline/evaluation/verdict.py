"""Tuned against uniform at no fewer bytes, on held-out tokens that nothing was chosen by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from exltune.budget import SizeModel, directory_size
from exltune.evaluation import whole
from exltune.exl3.directory import QuantDir
from exltune.metrics import evaluation_row, paired_difference
from exltune.pipeline.common.session import Session
from exltune.schema.evaluation import Evaluation, EvaluationRow, Verdict
from exltune.schema.inventory import Inventory
from exltune.schema.mix import CACHE_K, CACHE_V, Mix, MixSize
from exltune.schema.recipe import Recipe
from exltune.schema.score import Score
from exltune.schema.tokens import Split
from exltune.search import smallest_strategy_at_least
from exltune.search.loop.ranking import SEARCHED
from exltune.store.quants.base_quants import BaseQuant, head_source


def judge(session: Session, model: Path, recipe: Recipe) -> tuple[Evaluation, Verdict]:
    """Score base quants, the tuned model as built, and exllamav3's strategy at no fewer bytes, all on held-out rows.

    All with an fp16 cache; the tuned model also with the cache that its recipe chose, if it chose one.
    model: the tuned directory, made by the recipe from the session's base quants.
    """
    quants = session.base_quants
    session.add_quants({model.name: model})
    inventory, tokens = session.engine.inventory, session.ids(Split.HELD_OUT)
    tuned_size = directory_size(inventory, QuantDir(model))
    uniform, uniform_size, uniform_path = _uniform(inventory, quants, tuned_size)
    made = recipe.exltune
    assert made is not None, "optimize writes it"
    assert made.search is not None, "optimize writes it"
    base = [whole(inventory, quant.choice) for quant in quants]
    tuned = whole(inventory, model.name)
    served = [] if made.cache is None else [_with_cache(tuned, made.cache)]
    with session.reporter.stage("Evaluating") as progress:
        scores = session.scores.score([*base, uniform, tuned, *served], tokens, progress)
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
        provenance=session.provenance(Split.HELD_OUT),
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
    widths = [quant.bits for quant in quants]
    found = smallest_strategy_at_least(sizes, tuned.size_bytes, widths, head.head_bits, head.choice)
    taken = {found.choices[group.id] for group in inventory.groups}
    plain = [q for q in quants if taken == {q.choice} and q.head_bits == head.head_bits]
    bits = {group.id: float(found.choices[group.id]) for group in inventory.groups}
    size = sizes.mix_size(bits | {inventory.head.id: head.head_bits})
    return found.mix, size, str(plain[0].path) if plain else None


def _base_row(inventory: Inventory, quant: BaseQuant, score: Score) -> EvaluationRow:
    return _row(quant.path.name, str(quant.path), directory_size(inventory, quant.directory), score)


def _row(name: str, path: str | None, size: MixSize, score: Score) -> EvaluationRow:
    return evaluation_row(score, name=name, path=path, size_bytes=size.size_bytes, bpw=size.bpw, head_bpw=size.head_bpw)
