"""The pipeline of a search over known laws: what is handed over, what is dropped, what is taken up again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from command_line import exltune
from laws import LawEngine, cache_of, memory_for, tokens_of

import exltune.pipeline.optimization.optimize as pipeline
from exltune.budget import Limits, ModelProfile, fit_mix, mix_weights, model_profile
from exltune.errors import BudgetError, ExltuneError, NonFiniteError, StorageError, UsageError
from exltune.inventory import read_config
from exltune.pipeline.common.reporter import Silent
from exltune.pipeline.common.session import Session
from exltune.pipeline.optimization.optimize import Optimized, OptimizeOptions, optimize
from exltune.schema.hardware import CacheBits, Hardware, Use
from exltune.schema.heuristics import Heuristics, Match, Rule
from exltune.schema.measurement import Measurement
from exltune.schema.mix import CACHE_K, CACHE_V, REFERENCE
from exltune.schema.tokens import Split
from exltune.search import SearchOptions, open_storage
from exltune.search.space.space import AUTO, SpaceOptions
from exltune.store.records import read_recipe, read_record, write_record
from exltune.store.score_cache import ScoreCache
from exltune.testing.laws import CONFIG, INVENTORY, WIDTHS, Law, measured, random_law

#: A search each: together more than a minute.
pytestmark = pytest.mark.slow

_ROWS, _FRESH = 8, 12
_SHORT = OptimizeOptions(search=SearchOptions(passes=6, batch=5))
_TARGET = SpaceOptions(Limits(target_bpw=3.2))

Optimize = Callable[..., Optimized]


@dataclass
class LawSession:
    """What optimize takes of a session, over a law."""

    model: Path
    engine: LawEngine
    scores: ScoreCache
    reporter: Silent = field(default_factory=Silent)

    @property
    def config(self) -> dict[str, Any]:
        return read_config(self.model)

    def ids(self, split: Split) -> torch.Tensor:
        return tokens_of(_ROWS) if split is Split.SEARCH else tokens_of(_FRESH, 100)


class Bench:
    """A model under a law on the disk, and the engine that scores it."""

    def __init__(self, folder: Path, law: Law, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.law = folder, law
        self.file, self.out = folder / "measurement.json", folder / "recipe.yaml"
        (folder / "model").mkdir(exist_ok=True)
        (folder / "model" / "config.json").write_text(json.dumps(CONFIG | {"max_position_embeddings": 4096}))
        write_record(self.file, measured(law, rows=_ROWS, wider=True))
        self.engine = LawEngine(law)
        self.scores = cache_of(self.engine)
        monkeypatch.setattr(pipeline, "can_score", lambda *_: True)

    def run(self, asked: SpaceOptions = _TARGET, settings: OptimizeOptions = _SHORT, **more: Any) -> Optimized:
        """`optimize`, forced."""
        more = {"out": self.out, "force": True} | more
        session = cast(Session, LawSession(self.folder / "model", self.engine, self.scores))
        return optimize(session, read_record(self.file, Measurement), asked, settings=settings, **more)

    def fresh(self, choices: Mapping[str, str]) -> float:
        """Mean KL on the selection set."""
        return float(self.law.rows(choices, range(100, 100 + _FRESH)).mean())


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Head and cache included."""
    return Bench(tmp_path, random_law(wider=True, noise=0.02, seed=2), monkeypatch)


def _rules(name: str, *rules: tuple[Mapping[str, Any], Mapping[str, float]]) -> Heuristics:
    made = tuple(Rule(match=Match(**match), source="test", **wish) for match, wish in rules)
    return Heuristics(name=name, description="test", rules=made)


def test_the_best_on_fresh_rows_is_handed_over_with_all_that_stands_behind_it(bench: Bench) -> None:
    done = bench.run()
    recipe = read_recipe(bench.out)
    made = recipe.exltune
    assert made is not None
    assert made.search == done.detail
    assert made.budget is not None
    assert (made.budget.binding, made.budget.target_bpw, recipe.target_bpw) == ("target_bpw", 3.2, 3.2)
    standings = done.detail.standings
    names = [row.name for row in standings]
    assert len(names) == len(set(names))
    assert {"uniform", "exllamav3-strategy", "hq-like"} <= set(names)
    for row in standings:
        assert row.bpw <= 3.2 + 1e-9
        assert row.selection_kld == pytest.approx(bench.fresh(row.choices))
        assert row.predicted_kld is not None
        assert row.margin is not None
        assert row.margin == pytest.approx(bench.fresh(row.choices) - bench.fresh(made.choices), abs=1e-9)
    assert standings[0].name == done.detail.outcome == made.source
    assert standings[0].selection_kld == min(row.selection_kld for row in standings if row.selection_kld is not None)
    assert made.measured_kld_nats == standings[0].selection_kld
    assert made.predicted_kld_nats == standings[0].predicted_kld != made.measured_kld_nats
    assert {key: choice for key, choice in made.choices.items() if key != "head"} == {
        group.id: f"{recipe.tensors[group.tensors[0]]:g}" for group in INVENTORY.groups
    }
    assert 0 < done.detail.passes <= 6
    assert done.detail.passes == pytest.approx(done.detail.rounds[-1].passes)
    assert done.detail.searched


def test_a_seed_is_handed_over_where_the_search_does_not_beat_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On fresh rows, and there alone, exllamav3's strategy is far better than anything else."""
    plain = random_law(wider=True)
    before = Bench(tmp_path, plain, monkeypatch).run()
    (seed,) = (row for row in before.detail.standings if row.name == "exllamav3-strategy")
    assert before.detail.outcome != seed.name

    def luck(choices: Mapping[str, str], row: int) -> float:
        return 0.1 if row >= 100 and choices == seed.choices else 1.0

    done = Bench(tmp_path, replace(plain, luck=luck), monkeypatch).run()
    assert done.detail.outcome == seed.name
    assert done.recipe.exltune is not None
    assert done.recipe.exltune.choices == seed.choices
    from exltune.cli.tables import search_lines

    assert any("did not beat exllamav3-strategy" in line for line in search_lines(done.recipe, done.detail))


def test_the_same_call_again_scores_nothing_and_hands_over_the_same(bench: Bench) -> None:
    first = bench.run()
    loop = [mix for mix, rows in bench.engine.scored if rows[0] < 100]
    assert loop
    bench.engine.scored.clear()
    again = bench.run()
    assert [rows[0] for _, rows in bench.engine.scored if rows[0] < 100] == []
    assert again.recipe.tensors == first.recipe.tensors
    assert again.detail.outcome == first.detail.outcome
    assert again.detail.passes == first.detail.passes


def test_a_search_that_was_stopped_goes_on_with_what_it_has(bench: Bench) -> None:
    class Stopped(Exception):
        pass

    score, calls = bench.engine.score, 0

    def dying(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise Stopped
        return score(*arguments)

    bench.engine.score = dying
    with pytest.raises(Stopped):
        bench.run()
    assert not bench.out.exists()
    scored = [(mix.choices, rows) for mix, rows in bench.engine.scored]
    bench.engine.score = score
    bench.engine.scored.clear()
    done = bench.run()
    assert not [mix for mix, rows in bench.engine.scored if rows[0] < 100 and (mix.choices, rows) in scored]
    assert done.detail.passes <= 6


def test_mixes_that_are_not_finite_are_dropped_and_told(bench: Bench) -> None:
    """A seed and what the loop proposes: everything else is scored as ever."""
    bench.engine.nan = lambda choices: choices["0.attn.q"] == "2"
    done = bench.run()
    assert done.detail.dropped
    assert len(done.detail.dropped) == len(set(done.detail.dropped))
    assert "uniform" in done.detail.dropped
    assert done.detail.standings
    assert all(row.choices["0.attn.q"] != "2" for row in done.detail.standings)
    from exltune.cli.tables import search_lines

    assert any("not finite: uniform" in line for line in search_lines(done.recipe, done.detail))


def test_nothing_finite_is_an_error_and_leaves_no_recipe(bench: Bench) -> None:
    bench.engine.nan = lambda choices: True
    with pytest.raises(NonFiniteError, match="no mix"):
        bench.run()
    assert not bench.out.exists()


def test_time_ends_the_loop(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by a minute whenever it is asked."""
    now = iter(range(0, 10**6, 60))
    monkeypatch.setattr("exltune.search.loop.rounds.time.monotonic", lambda: float(next(now)))
    long = replace(_SHORT, search=SearchOptions(passes=1000, batch=4), seconds=1000.0)
    done = bench.run(settings=long)
    assert 1 <= len(done.detail.rounds) < 12
    assert done.detail.passes < 100
    none = bench.run(settings=replace(long, seconds=0.0))
    assert none.detail.rounds == ()
    assert none.detail.outcome


def test_what_is_below_a_floor_is_compared_and_never_handed_over(bench: Bench) -> None:
    floor = _rules("floor", ({"roles": ("attn.q",)}, {"min_bits": 5}))
    done = bench.run(replace(_TARGET, floors=(floor,)))
    below = [row for row in done.detail.standings if not row.eligible]
    assert "uniform" in {row.name for row in below}
    assert all(row.selection_kld is not None for row in below)
    assert done.detail.standings[0].eligible
    assert done.recipe.exltune is not None
    assert all(float(done.recipe.exltune.choices[f"{layer}.attn.q"]) >= 5 for layer in range(3))
    names = [row.eligible for row in done.detail.standings]
    assert names == sorted(names, reverse=True)


def test_floors_that_do_not_fit_name_the_smallest_bpw(bench: Bench) -> None:
    floor = _rules("floor", ({"roles": ("experts.*",)}, {"min_bits": 6}))
    with pytest.raises(BudgetError, match=r"smallest mix that keeps them has \d\.\d+ bpw"):
        bench.run(replace(_TARGET, floors=(floor,)))
    assert bench.engine.scored == []


def test_contradictory_rules_are_named(bench: Bench) -> None:
    low = _rules("low", ({"roles": ("attn.*",)}, {"max_bits": 3}))
    high = _rules("high", ({"roles": ("attn.q",)}, {"min_bits": 5}))
    with pytest.raises(UsageError, match=r"contradict each other on 0\.attn\.q: rule 1 of high .* rule 1 of low"):
        bench.run(replace(_TARGET, floors=(low, high)))


def test_rules_without_effect_are_warned_of(bench: Bench) -> None:
    lost = _rules("mine", ({"roles": ("attn.q",)}, {"bits": 4}), ({"roles": ("vision.*",)}, {"bits": 8}))
    floor = _rules("floor", ({"keys": ("*.conv*",)}, {"min_bits": 3}))
    done = bench.run(replace(_TARGET, floors=(floor,)), replace(_SHORT, rules=(lost,)))
    assert [warning.split(" (")[0] for warning in done.detail.warnings] == ["rule 2 of mine", "rule 1 of floor"]
    assert all("matches nothing" in warning for warning in done.detail.warnings)
    assert "mine" in {row.name for row in done.detail.standings}
    from exltune.cli.tables import search_lines

    assert sum("Warning: rule" in line for line in search_lines(done.recipe, done.detail)) == 2
    assert bench.run().detail.warnings == ()


@pytest.mark.parametrize("name", ["uniform", "hq-like", "search-mine"])
def test_rules_may_not_bear_the_name_of_a_method(bench: Bench, name: str) -> None:
    with pytest.raises(UsageError, match=f"named '{name}' already"):
        bench.run(settings=replace(_SHORT, rules=(_rules(name, ({}, {"priority": 1})),)))


def test_other_rules_go_on_in_the_same_storage(bench: Bench) -> None:
    """Rules are one of the study's knobs, and a study's knobs never change."""
    bench.run()
    more = SearchOptions(passes=10, batch=5)
    mine = _rules("mine", ({"roles": ("attn.q",)}, {"bits": 4}))
    done = bench.run(settings=replace(_SHORT, search=more, rules=(mine,)))
    assert 6 < done.detail.passes <= 10


def test_what_another_budget_or_measurement_scored_is_not_taken_up(bench: Bench) -> None:
    bench.run()
    studies = len(_studies(bench))
    bench.run()
    assert len(_studies(bench)) == studies == 1
    bench.run(SpaceOptions(Limits(target_bpw=3.4)))
    assert len(_studies(bench)) == 2
    write_record(bench.file, measured(bench.law, rows=_ROWS, wider=True, widths=WIDTHS[:-1]))
    bench.run()
    assert len(_studies(bench)) == 3


def _studies(bench: Bench) -> list[str]:
    storage = open_storage(f"sqlite:///{bench.out.with_suffix('.search.db')}")
    return [study.study_name for study in storage.get_all_studies()]


def test_two_searches_share_a_storage(bench: Bench, tmp_path: Path) -> None:
    settings = replace(_SHORT, storage=f"sqlite:///{tmp_path / 'shared.db'}")
    first = bench.run(settings=settings)
    bench.engine.scored.clear()
    other = bench.run(settings=settings, out=tmp_path / "other.yaml")
    assert not [mix for mix, rows in bench.engine.scored if rows[0] < 100]
    assert other.recipe.tensors == first.recipe.tensors


@pytest.mark.parametrize(
    ("storage", "error"),
    [("search.db", UsageError), ("mongo://x/y", UsageError), ("sqlite:////nowhere/at/all.db", StorageError)],
)
def test_storages_that_are_none(bench: Bench, storage: str, error: type[ExltuneError]) -> None:
    with pytest.raises(error):
        bench.run(settings=replace(_SHORT, storage=storage))
    assert bench.engine.scored == []


def test_an_unknown_sampler_is_refused_before_anything_is_scored(bench: Bench) -> None:
    with pytest.raises(UsageError, match="no sampler"):
        bench.run(settings=replace(_SHORT, sampler="annealing"))
    with pytest.raises(UsageError, match="one objective only"):
        bench.run(settings=replace(_SHORT, sampler="cmaes", front=(4.0,)))
    assert bench.engine.scored == []


def test_a_front_has_a_recipe_at_every_size(bench: Bench) -> None:
    done = bench.run(settings=replace(_SHORT, search=SearchOptions(passes=12, batch=6), front=(2.8, 4.0)))
    front = done.detail.front
    assert [point.target_bpw for point in front] == [2.8, 3.2, 4.0]
    klds = [point.selection_kld for point in front]
    assert klds == sorted(klds, reverse=True)
    for point in front:
        assert point.recipe is not None
        recipe = read_recipe(Path(point.recipe))
        assert recipe.exltune is not None
        assert recipe.target_bpw == point.target_bpw
        assert recipe.achieved_bpw == point.bpw <= point.target_bpw
        assert recipe.exltune.source == point.winner
        assert recipe.exltune.measured_kld_nats == pytest.approx(bench.fresh(recipe.exltune.choices))
        # Seeds of one name at several sizes are different mixes: each has its own scores.
        assert recipe.exltune.search is not None
        for row in recipe.exltune.search.standings:
            assert row.selection_kld == pytest.approx(bench.fresh(row.choices))
            if row.search_kld is not None and row.name == "knapsack":
                assert row.search_kld == pytest.approx(float(bench.law.rows(row.choices, range(_ROWS)).mean()))
    with pytest.raises(BudgetError, match="largest possible"):
        bench.run(settings=replace(_SHORT, front=(9.5,)))


def test_a_front_keeps_the_memory_too(bench: Bench) -> None:
    """A size that memory does not hold comes down to what it does."""
    roomy = bench.run(SpaceOptions(Limits(target_bpw=4.0))).recipe
    assert roomy.exltune is not None
    limit = Limits(size_bytes=roomy.exltune.size_bytes)
    done = bench.run(SpaceOptions(limit), replace(_SHORT, front=(3.0, 6.0)))
    assert [point.bpw <= (roomy.achieved_bpw or 0) + 1e-6 for point in done.detail.front] == [True] * 3


def test_without_the_quants_the_best_prediction_is_handed_over(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "can_score", lambda *_: False)
    done = bench.run(settings=replace(_SHORT, front=(4.0,)))
    assert bench.engine.scored == []
    assert (done.detail.searched, done.detail.rounds, done.detail.passes) == (False, (), 0.0)
    predictions = [row.predicted_kld for row in done.detail.standings]
    assert predictions == sorted(predictions)
    assert done.recipe.exltune is not None
    assert done.recipe.exltune.measured_kld_nats is None
    assert done.recipe.exltune.predicted_kld_nats == predictions[0]
    assert len(done.detail.front) == 2
    from exltune.cli.tables import search_lines

    assert any("Nothing was scored" in line for line in search_lines(done.recipe, done.detail))


def test_an_old_measurement_without_wider_probes_does(bench: Bench) -> None:
    write_record(bench.file, measured(bench.law, rows=_ROWS))
    assert bench.run().detail.outcome
    for asked in (replace(_TARGET, head=AUTO), _memory(cache=AUTO)):
        with pytest.raises(UsageError, match=r"no probes of head and cache.*Measure again"):
            bench.run(asked)


def _memory(vram: int = 10**9, context: int | None = 512, **more: Any) -> SpaceOptions:
    return SpaceOptions(Limits(Hardware(vram_bytes=vram)), use=Use(context=context), **more)


def _profile(bench: Bench) -> ModelProfile:
    return model_profile(json.loads((bench.folder / "model" / "config.json").read_text()), "mul1", "m")


@pytest.mark.parametrize("front", [(), (2.4, 2.8)])
def test_an_open_cache_is_traded_against_the_weights(bench: Bench, front: tuple[float, ...]) -> None:
    """At a long context every bit of the cache is paid with bits of the weights: all of it stays in the memory."""
    profile, use = _profile(bench), Use(context=512, cache=CacheBits(k=4, v=4))
    asked = _memory(vram=memory_for(profile, 3.2, use), cache=AUTO)
    done = bench.run(asked, replace(_SHORT, front=front))
    made = done.recipe.exltune
    assert made is not None
    assert made.budget is not None
    assert made.budget.binding == "vram"
    assert made.cache is not None
    assert len({(row.choices[CACHE_K], row.choices[CACHE_V]) for row in done.detail.standings}) >= 1
    for row in done.detail.standings:
        k, v = (int(row.choices[key]) for key in (CACHE_K, CACHE_V))
        bits = {group.id: float(row.choices[group.id]) for group in INVENTORY.groups}
        use = Use(context=512, cache=CacheBits(k=k, v=v))
        if row.eligible:
            fit_mix(profile, mix_weights(profile, bits, 6.0), Limits(asked.limits.hardware), use)
    assert done.detail.standings[0].eligible
    assert len(done.detail.front) == (3 if front else 0)
    assert bench.engine.scored


def test_layers_that_do_not_split_evenly_make_the_budget_smaller(bench: Bench) -> None:
    """Two layers of three on one of two cards: less fits than their bytes together would hold."""
    profile, use = _profile(bench), Use(context=512)
    each = memory_for(profile, 3.5, use, gpus=2)
    asked = SpaceOptions(Limits(Hardware(gpus=(each, each))), use=use)
    done = bench.run(asked)
    assert done.recipe.exltune is not None
    assert done.recipe.exltune.budget is not None
    assert done.recipe.exltune.budget.binding == "gpus"
    assert done.detail.standings[0].eligible
    assert done.recipe.achieved_bpw is not None
    assert done.recipe.achieved_bpw < 3.51
    bits = {group.id: float(done.recipe.exltune.choices[group.id]) for group in INVENTORY.groups}
    (placed,) = fit_mix(profile, mix_weights(profile, bits, 6.0), Limits(asked.limits.hardware), use)
    full, free = sorted(card.slack_bytes for card in placed.cards)
    assert full < 0.1 * free
    assert free > 0.15 * profile.sizes.budget_bytes(3.5)


def test_an_open_head_takes_its_bytes_from_the_groups(bench: Bench) -> None:
    fixed, wide = bench.run(), bench.run(replace(_TARGET, head=AUTO))
    assert fixed.recipe.exltune is not None
    assert wide.recipe.exltune is not None
    made = wide.recipe.exltune
    assert wide.recipe.head_bits == {"4": 4.0, "6": 6.0, "8": 8.0}[made.head_choice]
    allowed = max(row.size_bytes for row in fixed.detail.standings)
    assert made.size_bytes <= allowed + 2048
    heads = {row.choices["head"] for row in wide.detail.standings}
    assert "6" in heads
    with pytest.raises(UsageError, match="no measured head has 5 bits"):
        bench.run(replace(_TARGET, head=5.0))
    assert bench.run(replace(_TARGET, head=4.0)).recipe.head_bits == 4.0


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (_memory(context=None, cache=AUTO), "at a context"),
        (replace(_TARGET, use=Use(context=512), cache=AUTO), "`vram` or `gpus`"),
        (SpaceOptions(Limits()), "no budget"),
    ],
)
def test_options_that_do_not_go_together(bench: Bench, asked: SpaceOptions, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        bench.run(asked)


def test_memory_that_is_too_small_says_which_limit_and_what_would_do(bench: Bench) -> None:
    with pytest.raises(BudgetError, match="`vram` leaves"):
        bench.run(_memory(vram=1000))


def test_a_fixed_cache_is_part_of_every_mix(bench: Bench) -> None:
    done = bench.run(replace(_TARGET, cache=CacheBits(k=5, v=4)))
    assert done.recipe.exltune is not None
    assert done.recipe.exltune.cache == "5,4"
    assert all((row.choices[CACHE_K], row.choices[CACHE_V]) == ("5", "4") for row in done.detail.standings)
    plain = bench.run()
    assert plain.recipe.exltune is not None
    assert plain.recipe.exltune.cache is None
    assert all(row.choices.get(CACHE_K, REFERENCE) == REFERENCE for row in plain.detail.standings)


def test_a_measurement_of_another_model(bench: Bench) -> None:
    config = CONFIG | {"num_hidden_layers": 4, "max_position_embeddings": 4096}
    (bench.folder / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="does not fit the model"):
        bench.run()


def test_bad_times_and_samplers_on_the_command_line(tmp_path: Path) -> None:
    for option, value, word in (
        ("--time", "soon", "not a time"),
        ("--time", "45", "no unit"),
        ("--front", "x", "is not a list"),
        ("--head-bits", "all", "is not a list"),
        ("--rules", str(tmp_path / "absent.yaml"), "cannot be read"),
        ("--floor", "absent", "cannot be read"),
        ("--cache", "9,9", "--cache"),
    ):
        outcome = exltune("optimize", tmp_path / "m.json", "--target-bpw", 3, "--out", tmp_path / "r", option, value)
        assert (outcome.code, word in outcome.stderr) == (2, True), outcome.stderr
