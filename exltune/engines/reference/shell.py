"""A transformers model without weights: embedding, rotary tables and final norm are real, layers are on meta."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from exltune.engines.reference.attention import ATTENTION
from exltune.engines.reference.layer import LayerModule
from exltune.engines.streaming.weights import EMBEDDING, CheckpointWeights
from exltune.errors import MissingTensorError, NotAModelError
from exltune.inventory import model_shape, read_config, unquantized_tensor_names

FINAL_NORM = "model.norm.weight"


class ModelShell:
    """Decoder layers of a model, to be filled with weights one at a time; everything runs in fp32."""

    def __init__(self, model_dir: Path, weights: CheckpointWeights) -> None:
        self.model_dir = model_dir
        config = read_config(model_dir)
        self._fixed_names = unquantized_tensor_names(config)
        shape = model_shape(config)
        self.head_dim = shape.head_dim
        self.inner = _empty_model(model_dir, shape.experts).model
        self.layers = [LayerModule(layer, f"model.layers.{n}.") for n, layer in enumerate(self.inner.layers)]
        self._twins: dict[int, list[LayerModule]] = {}
        for name, module in ((EMBEDDING, self.inner.embed_tokens), (FINAL_NORM, self.inner.norm)):
            module.weight = nn.Parameter(weights.tensor(name), requires_grad=False)
        # Rotary tables follow from the config alone and are in no checkpoint.
        self.inner.rotary_emb = type(self.inner.rotary_emb)(config=self.inner.config)

    def fixed_names(self, layer: int) -> tuple[str, ...]:
        """Tensors of a layer that no mix changes: norms, router weights and their buffers."""
        prefix = self.layers[layer].prefix
        return tuple(name for name in self._fixed_names if name.startswith(prefix))

    def twins(self, layer: int, count: int) -> list[LayerModule]:
        """`count` empty modules of a layer, so that as many threads can run it with different weights."""
        twins = self._twins.setdefault(layer, [self.layers[layer]])
        while len(twins) < count:
            twins.append(self.layers[layer].twin())
        return twins[:count]

    def check_filled(self, layer: LayerModule) -> None:
        """Raises: MissingTensorError naming the first parameter of a layer that has no value."""
        missing = layer.missing()
        if missing is not None:
            raise MissingTensorError(
                f"the architecture needs {missing!r}, which is nowhere in the checkpoint",
                where=str(self.model_dir),
                fix="Download the model again",
            )

    def norm(self, hidden: Tensor) -> Tensor:
        """The final norm."""
        normed: Tensor = self.inner.norm(hidden)
        return normed

    def embed(self, ids: Tensor) -> Tensor:
        """(rows, T) ids -> (rows, T, hidden), the input of the first layer."""
        hidden: Tensor = self._record(ids)[0].hidden
        return hidden

    def layer_kwargs(self, length: int) -> list[Mapping[str, Any]]:
        """The model's arguments to each layer beside hidden states, for rows of `length` tokens.

        Position embeddings and masks have a batch dimension of 1 and broadcast over rows.
        """
        return [recorder.kwargs for recorder in self._record(torch.zeros(1, length, dtype=torch.int64))]

    def _record(self, ids: Tensor) -> list[_Recorder]:
        """Run the model's own forward with layers that only note their inputs."""
        recorders = [_Recorder(layer.module) for layer in self.layers]
        layers = self.inner.layers
        self.inner.layers = nn.ModuleList(recorders)
        try:
            self.inner(input_ids=ids, use_cache=False)
        finally:
            self.inner.layers = layers
        return recorders


class _Recorder(nn.Module):
    """Stands in for a decoder layer: returns its input and keeps its arguments."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # Some models look up the mask of a layer by this attribute.
        self.attention_type = getattr(layer, "attention_type", None)
        self.hidden: Tensor = torch.empty(0)
        self.kwargs: dict[str, Any] = {}

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        self.hidden, self.kwargs = hidden_states, kwargs
        return hidden_states


def _empty_model(model_dir: Path, experts: int) -> Any:
    settings: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": ATTENTION}
    try:
        config = AutoConfig.from_pretrained(model_dir)
        return _from_config(config, settings, experts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotAModelError(
            f"transformers cannot build a model from it ({type(error).__name__}: {error})",
            where=str(model_dir / "config.json"),
            fix="Compare it with the config.json of the original model",
        ) from error


def _from_config(config: Any, settings: dict[str, Any], experts: int) -> Any:
    if experts:
        # Each class reads its own one of n_routed_experts, num_experts and num_local_experts; this name reaches all.
        config.num_local_experts = experts
        settings["experts_implementation"] = "grouped_mm"
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, **settings)
    return model.eval()
