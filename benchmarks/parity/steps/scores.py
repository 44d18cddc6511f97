"""Scores of the card and of the reference engine on the same mixes, quants and rows."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from exltune.engines.exllamav3.engine import ExllamaEngine
from exltune.schema.mix import Mix
from exltune.schema.score import Score
from parity.kit import SCORES, ids_of
from parity.take import Task

#: KL that the card may differ by: fp16 was seen to move it by 0.002 nats/token on the stand-in, and by 1 % of itself.
_FIXED, _SHARE = 0.002, 0.01


def take(task: Task) -> dict[str, Any]:
    kit, known = task.made_of, json.loads(task.carried(SCORES).read_text())
    truths = [Score.model_validate(score) for score in known["scores"]]
    mixes = [Mix(name=one.mix, choices=choices) for one, choices in zip(truths, known["mixes"], strict=True)]
    ids, quants = ids_of(known), kit.quants(task.carried(SCORES).parent)
    engine = ExllamaEngine(kit.model_dir, quants, devices=[task.device])
    engine.score(mixes[:1], ids[:1])  # Kernels are compiled and tuned at their first call.
    start = time.perf_counter()
    scores = engine.score(mixes, ids)
    seconds = time.perf_counter() - start
    again = ExllamaEngine(kit.model_dir, quants, devices=[task.device]).score(mixes, ids)
    rows = [compared(truth, score) for truth, score in zip(truths, scores, strict=True)]
    repeats = [compared(score, other) for score, other in zip(scores, again, strict=True)]
    off = [row["mix"] for row in rows if not row["within"]]
    return {
        "ok": not off,
        **({"error": f"other scores than the reference engine's: {', '.join(off)}"} if off else {}),
        "tokens": ids.numel(),
        "mixes": rows,
        "largest_difference": max(abs(row["difference"]) for row in rows),
        "largest_difference_of_repeats": max(abs(row["difference"]) for row in repeats),
        "tokens_per_second_and_mix": ids.numel() * len(mixes) / seconds,
    }


def compared(truth: Score, found: Score) -> dict[str, Any]:
    """KL(ref‖mix) in nats/token of both, and their difference paired by row, with its standard error."""
    ours, theirs = (_per_token(score.kl_ref_mix, score.positions) for score in (truth, found))
    paired = [there - here for here, there in zip(ours, theirs, strict=True)]
    return {
        "mix": truth.mix,
        "kl_ref_mix": mean(ours),
        "kl_ref_mix_here": mean(theirs),
        "difference": mean(paired),
        "standard_error": stdev(paired) / len(paired) ** 0.5,
        "within": abs(mean(paired)) <= _FIXED + _SHARE * mean(ours),
        **{f"{name}_difference": _mean_difference(truth, found, name) for name in ("kl_mix_ref", "nll")},
    }


def _mean_difference(truth: Score, found: Score, name: str) -> float:
    ours, theirs = (mean(_per_token(getattr(score, name), score.positions)) for score in (truth, found))
    return theirs - ours


def _per_token(sums: Sequence[float], positions: int) -> list[float]:
    return [value / positions for value in sums]
