"""The score cache: what it asks of an engine, keeps, and takes from what is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from exltune.engines.base import Progress, ScoreStats
from exltune.engines.tasks import ScoredTask, ScoreTask, run_tasks
from exltune.errors import NonFiniteError
from exltune.measurement import Batch
from exltune.pipeline.measurement.plan_run import run_plan
from exltune.schema.mix import CACHE_K, CACHE_V, Mix
from exltune.schema.probe import ProbeContext, ProbedMix, Swap
from exltune.schema.score import Score
from exltune.store.database import Database
from exltune.store.probes import ProbeStore
from exltune.store.score_cache import ScoreCache

CONTEXT = ProbeContext(model_sha256="a" * 64, architecture="Glm4MoeForCausalLM", engine="reference", code="1")
TOKENS = torch.arange(60).view(10, 6)


def mix(name: str, content: str | None = None) -> Mix:
    return Mix(name=name, choices={"q": content or name})


def content(one: Mix) -> ProbedMix:
    return ProbedMix(name=one.name, swaps={"q": Swap(choice="2", sha256=one.choices["q"])})


class Recorder:
    """Scores a row by its first token and the mix's content; notes what was asked, and fails when told to."""

    def __init__(self, at_once: int = 100, most: int = 100, fails_at: int | None = None, nan: str = "") -> None:
        self.at_once, self.most, self.fails_at, self.nan = at_once, most, fails_at, nan
        self.asked: list[tuple[str, int, int]] = []
        self.stats = ScoreStats(state_bytes=7)

    def rows_at_once(self, mixes: Sequence[Mix], length: int) -> int:
        return self.at_once if len(mixes) <= self.most else 0

    def score(self, mixes: Sequence[Mix], tokens: torch.Tensor, progress: Progress | None = None) -> list[Score]:
        rows = [int(row[0]) // 6 for row in tokens]
        self.asked.append(("".join(one.choices["q"] for one in mixes), rows[0], rows[-1] + 1))
        if len(self.asked) == self.fails_at:
            raise KeyboardInterrupt
        bad = tuple(one.name for one in mixes if one.choices["q"] in self.nan)
        if bad:
            raise NonFiniteError("scores are NaN", mixes=bad)
        return [self._score(one, tokens) for one in mixes]

    @staticmethod
    def _score(one: Mix, rows: torch.Tensor) -> Score:
        values = tuple(float(row[0]) + len(one.choices["q"]) / 10 for row in rows)
        hits = tuple((1,) * len(values) for _ in range(5))
        return Score(mix=one.name, positions=5, kl_ref_mix=values, kl_mix_ref=values, nll=values, top_k=hits)


class Pool(Recorder):
    """An engine that runs three tasks at once, the last first."""

    def parallel(self) -> int:
        return 3

    def run_tasks(self, tasks: Sequence[ScoreTask], tokens: torch.Tensor, progress: Progress) -> Iterator[ScoredTask]:
        for task in reversed(tasks):
            yield task, self.score(task.mixes, tokens[list(task.rows)])


class Rounds:
    """A plan of rounds of batches; a round is over when its mixes have their rows."""

    def __init__(self, *rounds: list[Batch]) -> None:
        self.rounds = rounds

    def next(self, scores: Any) -> list[Batch]:
        for batches in self.rounds:
            if any(len(self._rows(scores, m)) < batch.rows.stop for batch in batches for m in batch.mixes):
                return batches
        return []

    @staticmethod
    def _rows(scores: Any, one: Mix) -> Sequence[float]:
        return scores[one.name].kl_ref_mix if one.name in scores else ()


Open = Callable[..., ScoreCache]


@pytest.fixture
def cache(tmp_path: Path) -> Open:
    """A cache over an engine, on the same file as the one before."""

    def opened(engine: Any, context: ProbeContext = CONTEXT) -> ScoreCache:
        return ScoreCache(engine, ProbeStore(Database(tmp_path / "scores.db"), context), content)

    return opened


def run(scores: ScoreCache, plan: Rounds, remarks: list[tuple[int, int]] | None = None) -> dict[str, Score]:
    told = [] if remarks is None else remarks
    return run_plan(
        plan, scores.on(TOKENS), lambda done, total, what: None, lambda done, total: told.append((done, total))
    )


def test_rounds_are_scored_once_and_joined(cache: Open) -> None:
    first = [Batch((mix("a"), mix("b")), range(3)), Batch((mix("c"),), range(3))]
    plan = Rounds(first, [Batch((mix("a"),), range(3, 10))])
    opened = cache(engine := Recorder())
    scores = run(opened, plan)
    assert engine.asked == [("ab", 0, 3), ("c", 0, 3), ("a", 3, 10)]
    assert scores["a"].kl_ref_mix == tuple(6 * row + 0.1 for row in range(10))
    assert [len(scores[name].nll) for name in "abc"] == [10, 3, 3]
    counts = opened.counts
    assert (counts.reused, counts.scored, counts.state_bytes) == (0, 4, 7)
    again = cache(engine := Recorder())
    remarks: list[tuple[int, int]] = []
    assert run(again, plan, remarks) == scores
    assert (engine.asked, again.counts.reused, again.counts.scored, remarks) == ([], 4, 0, [(3, 3)])


def test_a_run_taken_up_again_asks_for_the_rest_alone(cache: Open) -> None:
    plan = Rounds([Batch((mix("a"), mix("b"), mix("c")), range(10))])
    with pytest.raises(KeyboardInterrupt):
        run(cache(Recorder(at_once=4, fails_at=3)), plan)
    scores = run(cache(engine := Recorder(at_once=4)), plan)
    # Rows that fit into memory are a part: two of three were kept.
    assert engine.asked == [("abc", 8, 10)]
    assert scores["b"].kl_ref_mix == tuple(6 * row + 0.1 for row in range(10))


def test_more_rows_and_more_mixes_reuse_what_is_equal(cache: Open) -> None:
    run(cache(Recorder()), Rounds([Batch((mix("a"), mix("b")), range(4))]))
    run(cache(engine := Recorder()), Rounds([Batch((mix("a"), mix("b"), mix("c")), range(10))]))
    assert engine.asked == [("ab", 4, 10), ("c", 0, 10)]
    renamed = cache(engine := Recorder())
    (found,) = renamed.score([mix("another", "c")], TOKENS)
    assert (engine.asked, found.mix) == ([], "another")


def test_equal_mixes_are_scored_once(cache: Open) -> None:
    opened = cache(engine := Recorder())
    scores = run(opened, Rounds([Batch((mix("a", "x"), mix("b", "x")), range(3)), Batch((mix("c", "x"),), range(3))]))
    assert engine.asked == [("x", 0, 3)]
    assert scores["a"].nll == scores["b"].nll == scores["c"].nll


def test_rows_are_known_by_their_tokens_in_whatever_set_they_stand(cache: Open) -> None:
    opened = cache(engine := Recorder())
    (whole,) = opened.score([mix("a")], TOKENS)
    (some,) = opened.score([mix("a")], TOKENS[[7, 2]])
    assert some.kl_ref_mix == (whole.kl_ref_mix[7], whole.kl_ref_mix[2])
    assert engine.asked == [("a", 0, 10)]
    assert opened.on(TOKENS) is opened.on(TOKENS.clone())


def test_nothing_is_taken_from_another_reference_or_way_to_compute(cache: Open) -> None:
    cache(Recorder()).score([mix("a")], TOKENS)
    for change in ({"model_sha256": "b" * 64}, {"code": "2"}, {"engine": "exllamav3"}):
        other = cache(engine := Recorder(), CONTEXT.model_copy(update=change))
        other.score([mix("a")], TOKENS)
        assert engine.asked == [("a", 0, 10)]


def test_part_of_the_rows_is_a_score_of_those_rows(cache: Open) -> None:
    rows = cache(engine := Recorder()).on(TOKENS)
    (half,) = rows.score([mix("a")], range(5))
    (rest,) = rows.score([mix("a")], range(5, 10))
    assert half.kl_ref_mix + rest.kl_ref_mix == rows.score([mix("a")])[0].kl_ref_mix
    assert engine.asked == [("a", 0, 5), ("a", 5, 10)]


def test_mixes_that_do_not_fit_together_are_parts(cache: Open) -> None:
    opened = cache(engine := Recorder(most=2, at_once=6))
    opened.score([mix(name) for name in "abc"], TOKENS)
    assert engine.asked == [("ab", 0, 6), ("ab", 6, 10), ("c", 0, 6), ("c", 6, 10)]


def test_an_engine_that_runs_several_tasks_gets_as_many(cache: Open) -> None:
    opened = cache(engine := Pool())
    found = opened.score([mix(name) for name in "abcde"], TOKENS)
    assert sorted(engine.asked) == [("ab", 0, 10), ("c", 0, 10), ("de", 0, 10)]
    assert [score.mix for score in found] == list("abcde")
    plain = ScoreCache(Recorder(), opened.store, content)  # type: ignore[arg-type]
    assert plain.score([mix(name) for name in "abcde"], TOKENS) == found


def test_mixes_that_are_not_finite_are_dropped_and_asked_for_once(cache: Open) -> None:
    rows = cache(engine := Recorder(nan="bd")).on(TOKENS)
    found = rows.finite([mix(name) for name in "abcd"])
    assert [score is None for score in found] == [False, True, False, True]
    assert engine.asked == [("abcd", 0, 10), ("ac", 0, 10)]
    assert sorted(rows.dropped.values()) == ["b", "d"]
    assert rows.finite([mix("a"), mix("other name", "b")])[1] is None
    assert len(engine.asked) == 2
    with pytest.raises(NonFiniteError):
        rows.score([mix("b")])


def test_nan_of_an_engine_that_does_not_tell_is_not_kept(cache: Open) -> None:
    class Careless(Recorder):
        @staticmethod
        def _score(one: Mix, rows: torch.Tensor) -> Score:
            score = Recorder._score(one, rows)
            return score.model_copy(update={"nll": (float("nan"),) * len(rows)}) if one.choices["q"] == "b" else score

    rows = cache(Careless()).on(TOKENS)
    assert [score is None for score in rows.finite([mix("a"), mix("b")])] == [False, True]
    cache(engine := Recorder()).score([mix("a"), mix("b")], TOKENS)
    assert engine.asked == [("b", 0, 10)]


def test_an_unquantized_cache_is_no_cache() -> None:
    plain = mix("a")
    quantized = plain.model_copy(update={"choices": plain.choices | {CACHE_K: "16", CACHE_V: "8"}})
    assert plain.model_copy(update={"choices": plain.choices | {CACHE_K: "16", CACHE_V: "16"}}).key == plain.key
    assert quantized.key != plain.key


def test_progress_runs_from_nothing_to_all() -> None:
    class Engine(Recorder):
        def score(self, mixes: Sequence[Mix], tokens: torch.Tensor, progress: Progress | None = None) -> list[Score]:
            assert progress is not None
            progress(0, 4, "layer 0")
            progress(3, 4, "layer 1")
            return []

    told: list[tuple[int, int, str]] = []
    tasks = [ScoreTask((mix("a"), mix("b")), (0, 1)), ScoreTask((mix("a"),), (2, 3))]
    list(run_tasks(Engine(), tasks, TOKENS, lambda *what: told.append(what)))  # type: ignore[arg-type]
    assert [done for done, _, _ in told] == [0, 0, 3000, 4000, 4000, 5500, 6000]
    assert {total for _, total, _ in told} == {6000}
