"""What every engine must do; a test class of an engine inherits this and says how the engine is opened."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracle import logits, row_sums, whole_model
from tiny_models import VOCAB, TinyModel
from torch import Tensor

from exltune.engines import Engine
from exltune.errors import DataError, ExltuneError, NotAModelError, UsageError
from exltune.schema.mix import CACHE_K, CACHE_V, REFERENCE, Mix
from exltune.schema.score import Score

Open = Callable[[TinyModel], Engine]

#: What one token at another expert may do to a row's mean, in nats/token.
_STRAY = 0.2

#: A dense linear of the tiny Glm4Moe.
_DOWN = "model.layers.0.mlp.down_proj"


def uniform(model: TinyModel, choice: str, **changes: str) -> Mix:
    """All groups at one choice but for the changes (`**{"1.attn.q": "2"}`)."""
    ids = [group.id for group in (*model.inventory.groups, model.inventory.head)]
    return Mix(name=f"{choice}{changes}", choices=dict.fromkeys(ids, choice) | changes)


def random_mixes(model: TinyModel, count: int, seed: int = 0) -> list[Mix]:
    """Mixes with a random choice for each group."""
    draw = random.Random(seed)
    ids = [group.id for group in (*model.inventory.groups, model.inventory.head)]
    return [Mix(name=f"random {n}", choices={id_: draw.choice(["2", "3", "16"]) for id_ in ids}) for n in range(count)]


def cached(mix: Mix, k: str | None = None, v: str | None = None) -> Mix:
    """A mix with bits for the cache's keys and values; None names none."""
    bits = {key: choice for key, choice in ((CACHE_K, k), (CACHE_V, v)) if choice is not None}
    return Mix(name=f"{mix.name}, cache {k},{v}", choices=mix.choices | bits)


def per_token(score: Score, field: str) -> Tensor:
    """A field of a score per position, (rows,) or (5, rows)."""
    return torch.tensor(getattr(score, field), dtype=torch.float64) / score.positions


class ScoreContract:
    """Inherit and give `open_engine`; tolerances are absolute, per token, in nats."""

    #: From whole models in fp32.
    tolerance = 1e-6
    #: The same of the likelihood alone, which the reference model's own rounding moves too.
    nll_tolerance = 2e-6
    #: The same for rows where a rounding error moved a key or a value of the cache by a step, and for most rows.
    cache_tolerance, cache_median = 1e-3, 1e-6
    #: Share of positions where two nearly equal logits may change places.
    flips = 0.0
    #: Rows in which rounding may send a token to another expert.
    stray_rows = 0

    @pytest.fixture
    def open_engine(self) -> Open:
        """How the engine is opened on a tiny model and its quants."""
        raise NotImplementedError

    @pytest.fixture
    def model(self, tiny_model: TinyModel) -> TinyModel:
        """Each of the tiny models, as the engine's runtime knows it."""
        return tiny_model

    @pytest.fixture
    def tokens(self) -> Tensor:
        """(6, 20) random ids."""
        return torch.randint(0, VOCAB, (6, 20), generator=torch.Generator().manual_seed(1))

    def close(self, found: Score, expected: Score) -> None:
        """Two scores of one mix by one engine agree."""
        for field in ("kl_ref_mix", "kl_mix_ref", "nll"):
            torch.testing.assert_close(per_token(found, field), per_token(expected, field), rtol=0, atol=1e-6)
        assert found.top_k == expected.top_k

    def close_but_for_steps(self, found: Tensor, expected: Tensor) -> None:
        """Two fields per token (rows,) agree, in most rows as if nothing had been rounded."""
        error = (found - expected).abs()
        assert error.median() < self.cache_median
        assert error.max() < self.cache_tolerance

    def test_scores_are_those_of_whole_models(
        self, model: TinyModel, open_engine: Open, tokens: Tensor, tmp_path: Path
    ) -> None:
        head = model.inventory.head.id
        mixes = [uniform(model, "2"), uniform(model, REFERENCE, **{head: "3"}), *random_mixes(model, 2)]
        scores = open_engine(model).score(mixes, tokens)
        reference = logits(whole_model(model, uniform(model, REFERENCE), tmp_path / "ref"), tokens)
        for number, (mix, score) in enumerate(zip(mixes, scores, strict=True)):
            whole = logits(whole_model(model, mix, tmp_path / str(number)), tokens)
            expected = row_sums(reference, whole, tokens)
            assert (score.mix, score.positions) == (mix.name, tokens.shape[1] - 1)
            assert sum(score.kl_ref_mix) > 0.01
            for field, tolerance in (
                ("kl_ref_mix", self.tolerance),
                ("kl_mix_ref", self.tolerance),
                ("nll", self.nll_tolerance),
            ):
                errors = (per_token(score, field) - expected[field] / score.positions).abs()
                assert int((errors > tolerance).sum()) <= self.stray_rows
                assert errors.max() <= (_STRAY if self.stray_rows else tolerance)
            moved = (torch.tensor(score.top_k) - expected["top_k"]).abs().sum(-1) / (tokens.numel() - len(tokens))
            assert moved.max() <= self.flips

    def test_a_quant_can_be_the_reference(
        self, model: TinyModel, open_engine: Open, tokens: Tensor, tmp_path: Path
    ) -> None:
        """Its weights stand where a mix says nothing, and KL is against it."""
        engine = open_engine(replace(model, path=model.quants["3"]))
        head = model.inventory.head.id
        mixes = [uniform(model, "2"), uniform(model, REFERENCE, **{head: "2"}), *random_mixes(model, 1)]
        reference = logits(whole_model(model, uniform(model, "3"), tmp_path / "ref"), tokens)
        for number, (mix, score) in enumerate(zip(mixes, engine.score(mixes, tokens), strict=True)):
            choices = {id_: "3" if choice == REFERENCE else choice for id_, choice in mix.choices.items()}
            whole = logits(whole_model(model, Mix(name="", choices=choices), tmp_path / str(number)), tokens)
            expected = row_sums(reference, whole, tokens)
            for field, tolerance in (("kl_ref_mix", self.tolerance), ("nll", self.nll_tolerance)):
                errors = (per_token(score, field) - expected[field] / score.positions).abs()
                assert int((errors > tolerance).sum()) <= self.stray_rows
                assert errors.max() <= (_STRAY if self.stray_rows else tolerance)
        assert engine.score([uniform(model, "3")], tokens)[0].kl_ref_mix == (0.0,) * len(tokens)
        assert set(engine.rfn("3").values()) == {0.0}
        with pytest.raises(NotAModelError, match="before they were quantized"):
            engine.quantize(model.inventory.head.tensors[0], None, 2.0, "mul1", "")

    def test_the_reference_scores_zero_against_itself(
        self, model: TinyModel, open_engine: Open, tokens: Tensor
    ) -> None:
        (score,) = open_engine(model).score([uniform(model, REFERENCE)], tokens)
        assert set(score.kl_ref_mix) | set(score.kl_mix_ref) == {0.0}
        assert set(sum(score.top_k, ())) == {score.positions}

    def test_together_alone_and_in_another_order(self, tiny_moe: TinyModel, open_engine: Open, tokens: Tensor) -> None:
        engine = open_engine(tiny_moe)
        mixes = [*random_mixes(tiny_moe, 4), uniform(tiny_moe, "3"), uniform(tiny_moe, "2", **{"1.attn.q": "3"})]
        together = engine.score(mixes, tokens)
        backwards = engine.score(mixes[::-1], tokens)[::-1]
        for mix, score, reversed_score in zip(mixes, together, backwards, strict=True):
            assert score.mix == mix.name
            self.close(score, reversed_score)
            self.close(score, engine.score([mix], tokens)[0])

    def test_duplicates_are_scored_once(self, tiny_moe: TinyModel, open_engine: Open, tokens: Tensor) -> None:
        engine = open_engine(tiny_moe)
        first, second = engine.score([uniform(tiny_moe, "2"), uniform(tiny_moe, "2")], tokens)
        assert first == second
        assert (engine.stats.mixes, engine.stats.distinct_mixes) == (2, 1)

    def test_single_swaps_share_their_prefixes(self, tiny_moe: TinyModel, open_engine: Open, tokens: Tensor) -> None:
        engine = open_engine(tiny_moe)
        swaps = [uniform(tiny_moe, REFERENCE, **{group.id: "2"}) for group in tiny_moe.inventory.groups]
        swaps.append(uniform(tiny_moe, REFERENCE, **{tiny_moe.inventory.head.id: "2"}))
        calls: list[tuple[int, int]] = []
        engine.score(swaps, tokens, lambda done, total, what: calls.append((done, total)))
        layers = [group.layer for group in tiny_moe.inventory.groups]
        # A swap in layer n is a state of its own in layers n and later; the reference is one more in each.
        expected = tiny_moe.inventory.layers + sum(tiny_moe.inventory.layers - layer for layer in layers)
        assert engine.stats.layer_forwards == expected
        assert calls[-1] == (expected, expected)
        assert sorted(calls) == calls

    def test_no_mixes_no_scores(self, tiny_moe: TinyModel, open_engine: Open, tokens: Tensor) -> None:
        assert open_engine(tiny_moe).score([], tokens) == []

    def test_mixes_must_name_all_groups_and_known_choices(
        self, tiny_moe: TinyModel, open_engine: Open, tokens: Tensor
    ) -> None:
        engine = open_engine(tiny_moe)
        incomplete = Mix(name="half", choices={"0.attn.q": "2"})
        with pytest.raises(UsageError, match="groups without a choice"):
            engine.score([incomplete], tokens)
        with pytest.raises(UsageError, match=r"choices without a quant: \['7'\]"):
            engine.score([uniform(tiny_moe, "7")], tokens)

    def test_quants_can_be_added(self, tiny_moe: TinyModel, open_engine: Open, tokens: Tensor) -> None:
        mixes = [uniform(tiny_moe, "3"), *random_mixes(tiny_moe, 2)]
        expected = open_engine(tiny_moe).score(mixes, tokens)
        engine = open_engine(replace(tiny_moe, quants={"2": tiny_moe.quants["2"]}))
        with pytest.raises(UsageError, match=r"choices without a quant: \['3'\]"):
            engine.score(mixes, tokens)
        engine.add_quants({"3": tiny_moe.quants["3"]})
        assert engine.score(mixes, tokens) == expected
        assert engine.rfn("3", [_DOWN]) == open_engine(tiny_moe).rfn("3", [_DOWN])

    def test_an_added_quant_replaces_another_of_its_name(
        self, tiny_moe: TinyModel, open_engine: Open, tokens: Tensor
    ) -> None:
        engine = open_engine(tiny_moe)
        two, three = engine.score([uniform(tiny_moe, "2"), uniform(tiny_moe, "3")], tokens)
        assert two.kl_ref_mix != three.kl_ref_mix
        for path, expected in ((tiny_moe.quants["2"], two), (tiny_moe.quants["3"], three)):
            engine.add_quants({"2": path})
            (found,) = engine.score([uniform(tiny_moe, "2")], tokens)
            assert found.kl_ref_mix == expected.kl_ref_mix
        assert engine.score([uniform(tiny_moe, "3")], tokens)[0].kl_ref_mix == three.kl_ref_mix
        assert engine.rfn("2", [_DOWN]) == engine.rfn("3", [_DOWN])

    def test_an_added_quant_is_opened_when_a_mix_needs_it(
        self, tiny_moe: TinyModel, open_engine: Open, tokens: Tensor, tmp_path: Path
    ) -> None:
        engine = open_engine(tiny_moe)
        engine.add_quants({"7": tmp_path / "7", REFERENCE: tmp_path / "no reference"})
        assert sum(engine.score([uniform(tiny_moe, REFERENCE)], tokens)[0].kl_ref_mix) == 0
        with pytest.raises(ExltuneError, match="7"):
            engine.score([uniform(tiny_moe, "7")], tokens)
        engine.add_quants({"7": tiny_moe.quants["2"]})
        seven, two = engine.score([uniform(tiny_moe, "7"), uniform(tiny_moe, "2")], tokens)
        assert seven.kl_ref_mix == two.kl_ref_mix

    def test_ids_must_be_in_the_vocabulary(self, tiny_moe: TinyModel, open_engine: Open) -> None:
        with pytest.raises(DataError, match="vocabulary has 256"):
            open_engine(tiny_moe).score([uniform(tiny_moe, "2")], torch.tensor([[1, VOCAB]]))

    @pytest.mark.parametrize(("k", "v"), [("5", "4"), ("2", None), (None, "3")])
    def test_a_quantized_cache_scores_as_a_whole_model_with_one(
        self, model: TinyModel, open_engine: Open, tokens: Tensor, tmp_path: Path, k: str | None, v: str | None
    ) -> None:
        mix = uniform(model, "3")
        (score,) = open_engine(model).score([cached(mix, k, v)], tokens)
        reference = logits(whole_model(model, uniform(model, REFERENCE), tmp_path / "ref"), tokens)
        bits = [None if choice is None else int(choice) for choice in (k, v)]
        whole = logits(whole_model(model, mix, tmp_path / "mix"), tokens, *bits)
        expected = row_sums(reference, whole, tokens)
        for field in ("kl_ref_mix", "kl_mix_ref", "nll"):
            self.close_but_for_steps(per_token(score, field), expected[field] / score.positions)

    def test_an_unquantized_cache_is_the_same_as_none(
        self, tiny_moe: TinyModel, open_engine: Open, tokens: Tensor
    ) -> None:
        engine, mix = open_engine(tiny_moe), uniform(tiny_moe, "2")
        plain, *others = engine.score([mix, cached(mix, k="16"), cached(mix, "16", "16")], tokens)
        assert engine.stats.distinct_mixes == 1
        assert all(other.kl_ref_mix == plain.kl_ref_mix for other in others)

    def test_fewer_bits_in_the_cache_are_worse(self, model: TinyModel, open_engine: Open) -> None:
        tokens = torch.randint(0, VOCAB, (48, 20), generator=torch.Generator().manual_seed(1))
        mix = uniform(model, REFERENCE)
        mixes = [cached(mix, *pair) for bits in "8765432" for pair in ((bits, None), (None, bits), (bits, bits))]
        sums = [sum(score.kl_ref_mix) for score in open_engine(model).score(mixes, tokens)]
        for part in (sums[::3], sums[1::3], sums[2::3]):
            assert part[0] > 0
            assert part == sorted(part)
        assert max(sum(sums[::3]), sum(sums[1::3])) < sum(sums[2::3])
        assert set(sums[::3]).isdisjoint(sums[1::3])

    def test_mixes_with_caches_together_and_alone(self, tiny_moe: TinyModel, open_engine: Open, tokens: Tensor) -> None:
        engine = open_engine(tiny_moe)
        plain = random_mixes(tiny_moe, 2)
        mixes = [*plain, *(cached(mix, k, v) for mix in plain for k, v in (("4", "3"), ("3", "4"), ("16", "4")))]
        for mix, score in zip(mixes, engine.score(mixes, tokens), strict=True):
            (alone,) = engine.score([mix], tokens)
            for field in ("kl_ref_mix", "kl_mix_ref", "nll"):
                self.close_but_for_steps(per_token(score, field), per_token(alone, field))

    @pytest.mark.parametrize("key", [CACHE_K, CACHE_V])
    @pytest.mark.parametrize("bits", ["1", "9", "2.5", "fp16", ""])
    def test_bits_that_the_cache_has_not_are_named(
        self, tiny_moe: TinyModel, open_engine: Open, tokens: Tensor, key: str, bits: str
    ) -> None:
        mix = uniform(tiny_moe, "2", **{key: bits})
        with pytest.raises(UsageError, match=rf"{key} cannot have '{bits}' bits.*Choose one of 2, 3"):
            open_engine(tiny_moe).score([mix], tokens)

    def test_rfn_is_the_relative_error_of_a_weight(self, tiny_moe: TinyModel, open_engine: Open) -> None:
        engine = open_engine(tiny_moe)
        errors = engine.rfn("2", [_DOWN])
        assert list(errors) == [_DOWN]
        assert errors[_DOWN] == pytest.approx(0.1, rel=0.05)
        assert set(engine.rfn(REFERENCE).values()) == {0.0}


class CaptureContract:
    """What an engine must do besides that hands out Hessians; inherit and give `open_engine` and `tokens`."""

    #: Of sums over tokens: relative, and absolute.
    hessian_rtol, hessian_atol = 1e-5, 1e-3
    #: Tokens of an expert that rounding may send elsewhere.
    strays = 0

    def test_hessians_are_sums_over_the_inputs(
        self, model: TinyModel, open_engine: Open, tokens: Tensor, tmp_path: Path
    ) -> None:
        inputs = _linear_inputs(whole_model(model, uniform(model, REFERENCE), tmp_path / "ref"), tokens)
        captures = list(open_engine(model).capture(tokens))
        assert [capture.layer for capture in captures] == [*range(model.inventory.layers), None]
        found = {key: hessian for capture in captures for key, hessian in capture.hessians.items()}
        quantizable = {key for group in model.inventory.groups for key in group.tensors} | {"lm_head"}
        assert found.keys() == quantizable
        assert inputs.keys() <= found.keys()
        for key, vectors in inputs.items():
            assert found[key].count == tokens.numel()
            torch.testing.assert_close(
                found[key].matrix.double(), vectors.T @ vectors, rtol=self.hessian_rtol, atol=self.hessian_atol
            )

    def test_every_expert_sees_every_token(
        self, tiny_moe: TinyModel, open_engine: Open, tokens: Tensor, tmp_path: Path
    ) -> None:
        model = whole_model(tiny_moe, uniform(tiny_moe, REFERENCE), tmp_path / "ref")
        experts = model.get_submodule("model.layers.2.mlp.experts")
        seen: list[tuple[Tensor, Tensor]] = []
        experts.register_forward_pre_hook(lambda _, args: seen.append((args[0].double(), args[1])))
        logits(model, tokens)
        hidden, routed = seen[0]
        capture = next(c for c in open_engine(tiny_moe).capture(tokens) if c.layer == 2)
        for expert in range(4):
            prefix = f"model.layers.2.mlp.experts.{expert}"
            gate, up = (hidden @ experts.gate_up_proj[expert].double().T).chunk(2, -1)
            inner = torch.nn.functional.silu(gate) * up
            hessians = [capture.hessians[f"{prefix}.{name}"] for name in ("gate_proj", "down_proj")]
            for hessian, vectors in zip(hessians, (hidden, inner), strict=True):
                torch.testing.assert_close(
                    hessian.matrix.double(), vectors.T @ vectors, rtol=self.hessian_rtol, atol=self.hessian_atol
                )
            assert abs(capture.expert_tokens[prefix] - int((routed == expert).sum())) <= self.strays

    def test_linears_with_one_input_share_one_hessian(
        self, tiny_moe: TinyModel, open_engine: Open, tokens: Tensor
    ) -> None:
        dense, sparse, *_ = open_engine(tiny_moe).capture(tokens)
        by_object: dict[int, set[str]] = {}
        for key, hessian in dense.hessians.items():
            by_object.setdefault(id(hessian), set()).add(key.removeprefix("model.layers.0."))
        assert sorted(map(sorted, by_object.values())) == [
            ["mlp.down_proj"],
            ["mlp.gate_proj", "mlp.up_proj"],
            ["self_attn.k_proj", "self_attn.q_proj", "self_attn.v_proj"],
            ["self_attn.o_proj"],
        ]
        gates = [key for key in sparse.hessians if key.endswith((".gate_proj", ".up_proj"))]
        assert len({id(sparse.hessians[key]) for key in gates}) == 1
        downs = [key for key in sparse.hessians if key.endswith(".down_proj")]
        assert len({id(sparse.hessians[key]) for key in downs}) == len(downs)

    def test_capture_of_some_keys_yields_their_layers_alone(
        self, tiny_moe: TinyModel, open_engine: Open, tokens: Tensor
    ) -> None:
        key = "model.layers.1.self_attn.o_proj"
        (capture,) = open_engine(tiny_moe).capture(tokens, keys={key})
        assert (capture.layer, list(capture.hessians)) == (1, [key])


class EngineContract(ScoreContract, CaptureContract):
    """All of it."""


def _linear_inputs(model: torch.nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """(tokens, in) fp64 inputs of every nn.Linear of a model."""
    inputs: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda module, args, name=name: inputs.update({name: args[0].flatten(0, -2).double()})
            )
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    return inputs
