"""Scores of mixes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from exltune.engines import ScoreStats
from exltune.errors import DataError, UsageError
from exltune.schema.mix import REFERENCE, Mix
from exltune.testing.engines.mixes import random_mixes, uniform
from exltune.testing.engines.oracle import logits, row_sums, whole_model
from exltune.testing.engines.suite import EngineOf, EngineSuite
from exltune.testing.tiny_models import VOCAB, TinyModel


class ScoreContract(EngineSuite):
    """Scores are those of whole models, whatever else is in the call."""

    def test_it_says_what_it_is(self, model: TinyModel, engine_of: EngineOf) -> None:
        engine = engine_of(model)
        assert engine.name
        assert engine.model_dir == model.path
        assert engine.inventory == model.inventory
        assert isinstance(engine.stats, ScoreStats)

    def test_it_knows_how_many_rows_fit(self, tiny_moe: TinyModel, engine_of: EngineOf) -> None:
        engine, mixes = engine_of(tiny_moe), random_mixes(tiny_moe, 8)
        assert engine.rows_at_once(mixes[:1], 20) >= engine.rows_at_once(mixes, 20) > 0
        assert engine.rows_at_once(mixes, 20) > engine.rows_at_once(mixes, 2000)

    def test_scores_are_those_of_whole_models(
        self, model: TinyModel, engine_of: EngineOf, tokens: Tensor, tmp_path: Path
    ) -> None:
        head = model.inventory.head.id
        mixes = [uniform(model, "2"), uniform(model, REFERENCE, **{head: "3"}), *random_mixes(model, 2)]
        scores = engine_of(model).score(mixes, tokens)
        reference = logits(whole_model(model, uniform(model, REFERENCE), tmp_path / "ref"), tokens)
        for number, (mix, score) in enumerate(zip(mixes, scores, strict=True)):
            whole = logits(whole_model(model, mix, tmp_path / str(number)), tokens)
            expected = row_sums(reference, whole, tokens)
            assert (score.mix, score.positions) == (mix.name, tokens.shape[1] - 1)
            assert sum(score.kl_ref_mix) > 0.01
            self.assert_near(score, expected, "kl_ref_mix", "kl_mix_ref", "nll")
            moved = (torch.tensor(score.top_k) - expected["top_k"]).abs().sum(-1) / (tokens.numel() - len(tokens))
            assert moved.max() <= self.flips

    def test_the_reference_scores_zero_against_itself(
        self, model: TinyModel, engine_of: EngineOf, tokens: Tensor
    ) -> None:
        (score,) = engine_of(model).score([uniform(model, REFERENCE)], tokens)
        assert set(score.kl_ref_mix) | set(score.kl_mix_ref) == {0.0}
        assert set(sum(score.top_k, ())) == {score.positions}

    def test_together_alone_and_in_another_order(
        self, tiny_moe: TinyModel, engine_of: EngineOf, tokens: Tensor
    ) -> None:
        engine = engine_of(tiny_moe)
        mixes = [*random_mixes(tiny_moe, 4), uniform(tiny_moe, "3"), uniform(tiny_moe, "2", **{"1.attn.q": "3"})]
        together = engine.score(mixes, tokens)
        backwards = engine.score(mixes[::-1], tokens)[::-1]
        for mix, score, reversed_score in zip(mixes, together, backwards, strict=True):
            assert score.mix == mix.name
            self.assert_close(score, reversed_score)
            self.assert_close(score, engine.score([mix], tokens)[0])

    def test_duplicates_are_scored_once(self, tiny_moe: TinyModel, engine_of: EngineOf, tokens: Tensor) -> None:
        engine = engine_of(tiny_moe)
        first, second = engine.score([uniform(tiny_moe, "2"), uniform(tiny_moe, "2")], tokens)
        assert first == second
        assert (engine.stats.mixes, engine.stats.distinct_mixes) == (2, 1)

    def test_single_swaps_share_their_prefixes(self, tiny_moe: TinyModel, engine_of: EngineOf, tokens: Tensor) -> None:
        engine = engine_of(tiny_moe)
        swaps = [uniform(tiny_moe, REFERENCE, **{group.id: "2"}) for group in tiny_moe.inventory.groups]
        swaps.append(uniform(tiny_moe, REFERENCE, **{tiny_moe.inventory.head.id: "2"}))
        calls: list[tuple[int, int]] = []
        engine.score(swaps, tokens, lambda done, total, what: calls.append((done, total)))
        layers = [group.layer for group in tiny_moe.inventory.groups if group.layer is not None]
        # A swap in layer n is a state of its own in layers n and later; the reference is one more in each.
        expected = tiny_moe.inventory.layers + sum(tiny_moe.inventory.layers - layer for layer in layers)
        assert engine.stats.layer_forwards == expected
        assert calls[-1] == (expected, expected)
        assert sorted(calls) == calls

    def test_no_mixes_no_scores(self, tiny_moe: TinyModel, engine_of: EngineOf, tokens: Tensor) -> None:
        assert engine_of(tiny_moe).score([], tokens) == []

    def test_mixes_must_name_all_groups_and_known_choices(
        self, tiny_moe: TinyModel, engine_of: EngineOf, tokens: Tensor
    ) -> None:
        engine = engine_of(tiny_moe)
        incomplete = Mix(name="half", choices={"0.attn.q": "2"})
        with pytest.raises(UsageError, match="groups without a choice"):
            engine.score([incomplete], tokens)
        with pytest.raises(UsageError, match=r"choices without a quant: \['7'\]"):
            engine.score([uniform(tiny_moe, "7")], tokens)

    def test_ids_must_be_in_the_vocabulary(self, tiny_moe: TinyModel, engine_of: EngineOf) -> None:
        with pytest.raises(DataError, match="vocabulary has 256"):
            engine_of(tiny_moe).score([uniform(tiny_moe, "2")], torch.tensor([[1, VOCAB]]))
