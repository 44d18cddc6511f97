"""Running a plan: what is asked of the scorer, kept, and taken from the store."""

import pytest
import torch
from exltune.pipeline.measurement.probe_runs import EngineScorer, ProbeCounts, ProbeRun, ProbeTask

from exltune.measurement import Batch
from exltune.schema.mix import Mix
from exltune.schema.probe import ProbeContext, ProbedMix, Swap
from exltune.schema.score import Score
from exltune.store.database import Database
from exltune.store.probes import ProbeStore

CONTEXT = ProbeContext(model_sha256="a" * 64, architecture="Glm4MoeForCausalLM", engine="reference", code="1")
TOKENS = torch.arange(60).view(10, 6)


def mix(name, content=None):
    return Mix(name=name, choices={"q": content or name})


def content(one):
    return ProbedMix(name=one.name, swaps={"q": Swap(choice="2", sha256=one.choices["q"])})


class Recorder:
    """Scores a row by its first token and the mix's content; notes what was asked, and fails when told to."""

    def __init__(self, at_once=100, most=100, fails_at=None):
        self.at_once, self.most, self.fails_at = at_once, most, fails_at
        self.tasks = []

    def rows_at_once(self, mixes, length):
        return self.at_once if len(mixes) <= self.most else 0

    def run(self, tasks, tokens, progress):
        for task in tasks:
            self.tasks.append(task)
            if len(self.tasks) == self.fails_at:
                raise KeyboardInterrupt
            yield task, [self._score(one, tokens[list(task.rows)]) for one in task.mixes]

    @staticmethod
    def _score(one, rows):
        values = tuple(float(row[0]) + len(one.choices["q"]) / 10 for row in rows)
        hits = tuple((1,) * len(values) for _ in range(5))
        return Score(mix=one.name, positions=5, kl_ref_mix=values, kl_mix_ref=values, nll=values, top_k=hits)


class Rounds:
    """A plan of rounds of batches; a round is over when its mixes have their rows."""

    def __init__(self, *rounds):
        self.rounds = rounds

    def next(self, scores):
        for batches in self.rounds:
            if any(len(self._rows(scores, m)) < batch.rows.stop for batch in batches for m in batch.mixes):
                return batches
        return []

    @staticmethod
    def _rows(scores, one):
        return scores[one.name].kl_ref_mix if one.name in scores else ()


@pytest.fixture
def run(tmp_path):
    def start(scorer, plan, counts=None, remarks=None):
        store = ProbeStore(Database(tmp_path / "probes.db"), CONTEXT)
        probes = ProbeRun(store, scorer, TOKENS, content, counts or ProbeCounts())
        told = [] if remarks is None else remarks
        return probes.run(plan, lambda done, total, what: None, lambda done, total: told.append((done, total)))

    return start


def asked(scorer):
    return [("".join(one.name for one in task.mixes), task.rows[0], task.rows[-1] + 1) for task in scorer.tasks]


def test_rounds_are_scored_once_and_joined(run):
    first = [Batch((mix("a"), mix("b")), range(3)), Batch((mix("c"),), range(3))]
    plan = Rounds(first, [Batch((mix("a"),), range(3, 10))])
    scorer, counts = Recorder(), ProbeCounts()
    scores = run(scorer, plan, counts)
    assert asked(scorer) == [("ab", 0, 3), ("c", 0, 3), ("a", 3, 10)]
    assert scores["a"].kl_ref_mix == tuple(6 * row + 0.1 for row in range(10))
    assert [len(scores[name].nll) for name in "abc"] == [10, 3, 3]
    assert (counts.reused, counts.scored) == (0, 4)
    again, counts, remarks = Recorder(), ProbeCounts(), []
    assert run(again, plan, counts, remarks) == scores
    assert (again.tasks, counts.reused, counts.scored, remarks) == ([], 4, 0, [(3, 3)])


def test_a_run_taken_up_again_asks_for_the_rest_alone(run):
    plan = Rounds([Batch((mix("a"), mix("b"), mix("c")), range(10))])
    with pytest.raises(KeyboardInterrupt):
        run(Recorder(at_once=4, fails_at=3), plan)
    scorer = Recorder(at_once=4)
    scores = run(scorer, plan)
    # Rows that fit into memory are a part: two of three were kept.
    assert asked(scorer) == [("abc", 8, 10)]
    assert scores["b"].kl_ref_mix == tuple(6 * row + 0.1 for row in range(10))


def test_more_rows_and_more_mixes_reuse_what_is_equal(run):
    run(Recorder(), Rounds([Batch((mix("a"), mix("b")), range(4))]))
    scorer = Recorder()
    run(scorer, Rounds([Batch((mix("a"), mix("b"), mix("c")), range(10))]))
    assert asked(scorer) == [("ab", 4, 10), ("c", 0, 10)]
    renamed = Recorder()
    scores = run(renamed, Rounds([Batch((mix("another", "c"),), range(10))]))
    assert (renamed.tasks, scores["another"].mix) == ([], "another")


def test_equal_mixes_are_scored_once(run):
    scorer = Recorder()
    scores = run(scorer, Rounds([Batch((mix("a", "x"), mix("b", "x")), range(3)), Batch((mix("c", "x"),), range(3))]))
    assert asked(scorer) == [("a", 0, 3)]
    assert scores["a"].nll == scores["b"].nll == scores["c"].nll


def test_mixes_that_do_not_fit_together_are_parts(run):
    scorer = Recorder(most=2, at_once=6)
    run(scorer, Rounds([Batch(tuple(mix(name) for name in "abc"), range(10))]))
    assert asked(scorer) == [("ab", 0, 6), ("ab", 6, 10), ("c", 0, 6), ("c", 6, 10)]


def test_progress_runs_from_nothing_to_all():
    class Engine:
        rows_at_once = None
        stats = type("Stats", (), {"state_bytes": 7})

        def score(self, mixes, tokens, progress):
            progress(0, 4, "layer 0")
            progress(3, 4, "layer 1")
            return []

    told, counts = [], ProbeCounts()
    tasks = [ProbeTask((mix("a"), mix("b")), (0, 1)), ProbeTask((mix("a"),), (2, 3))]
    list(EngineScorer(Engine(), counts).run(tasks, TOKENS, lambda *what: told.append(what)))
    assert [done for done, _, _ in told] == [0, 0, 3000, 4000, 4000, 5500, 6000]
    assert {total for _, total, _ in told} == {6000}
    assert counts.state_bytes == 7
