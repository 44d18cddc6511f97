"""Hessians of the inputs of linears."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from exltune.schema.mix import REFERENCE
from exltune.testing.engines.mixes import uniform
from exltune.testing.engines.oracle import logits, whole_model
from exltune.testing.engines.suite import EngineOf, EngineSuite
from exltune.testing.tiny_models import TinyModel


class CaptureContract(EngineSuite):
    """Sums over all tokens, shared where linears share an input."""

    def test_hessians_are_sums_over_the_inputs(
        self, model: TinyModel, engine_of: EngineOf, tokens: Tensor, tmp_path: Path
    ) -> None:
        inputs = _linear_inputs(whole_model(model, uniform(model, REFERENCE), tmp_path / "ref"), tokens)
        captures = list(engine_of(model).capture(tokens))
        assert [capture.layer for capture in captures] == [*range(model.inventory.layers), None]
        found = {key: hessian for capture in captures for key, hessian in capture.hessians.items()}
        quantizable = {key for group in model.inventory.groups for key in group.tensors} | {"lm_head"}
        assert found.keys() == quantizable
        assert inputs.keys() <= found.keys()
        for key, vectors in inputs.items():
            assert found[key].count == tokens.numel()
            self.assert_sums(found[key].matrix.double(), vectors.T @ vectors)

    def test_every_expert_sees_every_token(
        self, tiny_moe: TinyModel, engine_of: EngineOf, tokens: Tensor, tmp_path: Path
    ) -> None:
        model = whole_model(tiny_moe, uniform(tiny_moe, REFERENCE), tmp_path / "ref")
        experts = model.get_submodule("model.layers.2.mlp.experts")
        seen: list[tuple[Tensor, Tensor]] = []
        experts.register_forward_pre_hook(lambda _, args: seen.append((args[0].double(), args[1])))
        logits(model, tokens)
        hidden, routed = seen[0]
        capture = next(c for c in engine_of(tiny_moe).capture(tokens) if c.layer == 2)
        for expert in range(4):
            prefix = f"model.layers.2.mlp.experts.{expert}"
            gate, up = (hidden @ experts.gate_up_proj[expert].double().T).chunk(2, -1)
            inner = torch.nn.functional.silu(gate) * up
            hessians = [capture.hessians[f"{prefix}.{name}"] for name in ("gate_proj", "down_proj")]
            for hessian, vectors in zip(hessians, (hidden, inner), strict=True):
                self.assert_sums(hessian.matrix.double(), vectors.T @ vectors)
            assert abs(capture.expert_tokens[prefix] - int((routed == expert).sum())) <= self.strays

    def test_linears_with_one_input_share_one_hessian(
        self, tiny_moe: TinyModel, engine_of: EngineOf, tokens: Tensor
    ) -> None:
        dense, sparse, *_ = engine_of(tiny_moe).capture(tokens)
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
        self, tiny_moe: TinyModel, engine_of: EngineOf, tokens: Tensor
    ) -> None:
        key = "model.layers.1.self_attn.o_proj"
        (capture,) = engine_of(tiny_moe).capture(tokens, keys={key})
        assert (capture.layer, list(capture.hessians)) == (1, [key])


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
