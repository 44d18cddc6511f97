"""Where an engine's weights come from: base quants, added ones, a quant as the reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from exltune.errors import ExltuneError, NotAModelError, UsageError
from exltune.schema.mix import REFERENCE, Mix
from exltune.testing.engines.mixes import random_mixes, uniform
from exltune.testing.engines.oracle import logits, row_sums, whole_model
from exltune.testing.engines.suite import DOWN, EngineOf, EngineSuite, per_token
from exltune.testing.tiny_models import TinyModel


class QuantContract(EngineSuite):
    """Quants are opened when they are needed, and rfn tells how far they are from the reference."""

    def test_a_quant_can_be_the_reference(
        self, model: TinyModel, engine_of: EngineOf, tokens: Tensor, tmp_path: Path
    ) -> None:
        """Its weights stand where a mix says nothing, and it is the reference of every KL."""
        engine = engine_of(replace(model, path=model.quants["3"]))
        head = model.inventory.head.id
        mixes = [uniform(model, "2"), uniform(model, REFERENCE, **{head: "2"}), *random_mixes(model, 1)]
        reference = logits(whole_model(model, uniform(model, "3"), tmp_path / "ref"), tokens)
        for number, (mix, score) in enumerate(zip(mixes, engine.score(mixes, tokens), strict=True)):
            choices = {id_: "3" if choice == REFERENCE else choice for id_, choice in mix.choices.items()}
            whole = logits(whole_model(model, Mix(name="", choices=choices), tmp_path / str(number)), tokens)
            expected = row_sums(reference, whole, tokens)
            self.assert_near(score, expected, "kl_ref_mix", "nll")
        assert engine.score([uniform(model, "3")], tokens)[0].kl_ref_mix == (0.0,) * len(tokens)
        assert set(engine.rfn("3").values()) == {0.0}
        with pytest.raises(NotAModelError, match="before they were quantized"):
            engine.quantize(model.inventory.head.tensors[0], None, 2.0, "mul1", "")

    def test_quants_can_be_added(self, tiny_moe: TinyModel, engine_of: EngineOf, tokens: Tensor) -> None:
        mixes = [uniform(tiny_moe, "3"), *random_mixes(tiny_moe, 2)]
        expected = engine_of(tiny_moe).score(mixes, tokens)
        engine = engine_of(replace(tiny_moe, quants={"2": tiny_moe.quants["2"]}))
        with pytest.raises(UsageError, match=r"choices without a quant: \['3'\]"):
            engine.score(mixes, tokens)
        engine.add_quants({"3": tiny_moe.quants["3"]})
        for found, other in zip(engine.score(mixes, tokens), expected, strict=True):
            self.assert_close(found, other)
        assert engine.rfn("3", [DOWN]) == pytest.approx(engine_of(tiny_moe).rfn("3", [DOWN]))

    def test_an_added_quant_replaces_another_of_its_name(
        self, tiny_moe: TinyModel, engine_of: EngineOf, tokens: Tensor
    ) -> None:
        engine = engine_of(tiny_moe)
        two, three = engine.score([uniform(tiny_moe, "2"), uniform(tiny_moe, "3")], tokens)
        assert abs(per_token(two, "kl_ref_mix") - per_token(three, "kl_ref_mix")).max() > 1e-3
        for path, expected in ((tiny_moe.quants["2"], two), (tiny_moe.quants["3"], three)):
            engine.add_quants({"2": path})
            (found,) = engine.score([uniform(tiny_moe, "2")], tokens)
            self.assert_close(found, expected)
        self.assert_close(engine.score([uniform(tiny_moe, "3")], tokens)[0], three)
        assert engine.rfn("2", [DOWN]) == pytest.approx(engine.rfn("3", [DOWN]))

    def test_an_added_quant_is_opened_when_a_mix_needs_it(
        self, tiny_moe: TinyModel, engine_of: EngineOf, tokens: Tensor, tmp_path: Path
    ) -> None:
        engine = engine_of(tiny_moe)
        engine.add_quants({"7": tmp_path / "7", REFERENCE: tmp_path / "no reference"})
        assert sum(engine.score([uniform(tiny_moe, REFERENCE)], tokens)[0].kl_ref_mix) == 0
        with pytest.raises(ExltuneError, match="7"):
            engine.score([uniform(tiny_moe, "7")], tokens)
        engine.add_quants({"7": tiny_moe.quants["2"]})
        seven, two = engine.score([uniform(tiny_moe, "7"), uniform(tiny_moe, "2")], tokens)
        self.assert_close(seven, two)

    def test_quantized_linears_are_near_the_weight(self, tiny_moe: TinyModel, engine_of: EngineOf) -> None:
        engine = engine_of(tiny_moe)
        weight = load_file(tiny_moe.path / "model.safetensors")[f"{DOWN}.weight"].float().T
        found = {}
        for bits in (2.0, 4.0):
            linear, stats = engine.quantize(DOWN, None, bits, "mul1", "seed")
            error = float((linear.dequantize() - weight).norm() / weight.norm())
            assert stats.rfn == pytest.approx(error, rel=1e-3)
            found[bits] = error
        assert found[4.0] < 0.12 < found[2.0] < 0.45

    def test_linears_that_the_model_has_not_are_named(self, tiny_moe: TinyModel, engine_of: EngineOf) -> None:
        engine = engine_of(tiny_moe)
        with pytest.raises(UsageError, match=r"no linear 'model\.layers\.9\.no_proj'"):
            engine.quantize("model.layers.9.no_proj", None, 2.0, "mul1", "seed")
        with pytest.raises(UsageError, match=r"no linear 'model\.layers\.9\.no_proj'"):
            engine.rfn("2", ["model.layers.9.no_proj"])

    def test_rfn_is_the_relative_error_of_a_weight(self, tiny_moe: TinyModel, engine_of: EngineOf) -> None:
        engine = engine_of(tiny_moe)
        errors = engine.rfn("2", [DOWN])
        assert list(errors) == [DOWN]
        assert errors[DOWN] == pytest.approx(0.1, rel=0.05)
        assert set(engine.rfn(REFERENCE).values()) == {0.0}
