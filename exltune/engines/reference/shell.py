"""A transformers model without weights: embedding, rotary tables and final norm are real, layers are on meta."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from exltune.engines.reference.store import Tensors
from exltune.engines.reference.weights import EMBEDDING, CheckpointWeights
from exltune.errors import MissingTensorError
from exltune.inventory import model_shape, read_config, unquantized_tensor_names

FINAL_NORM = "model.norm.weight"


class ModelShell:
    """Decoder layers of a model, to be filled with weights one at a time; everything runs in fp32."""

    def __init__(self, model_dir: Path, weights: CheckpointWeights) -> None:
        self.model_dir = model_dir
        config = read_config(model_dir)
        self._fixed_names = unquantized_tensor_names(config)
        self.inner = _empty_model(model_dir, model_shape(config).experts).model
        self.layers: list[nn.Module] = list(self.inner.layers)
        self._blank = [_tensors(layer) for layer in self.layers]
        self._place("model.embed_tokens.", self.inner.embed_tokens, weights.tensor(EMBEDDING))
        self._place("model.norm.", self.inner.norm, weights.tensor(FINAL_NORM))
        # Rotary tables follow from the config alone and are in no checkpoint.
        self.inner.rotary_emb = type(self.inner.rotary_emb)(config=self.inner.config)

    def fixed_names(self, layer: int) -> tuple[str, ...]:
        """Tensors of a layer that no mix changes: norms, router weights and their buffers."""
        return tuple(name for name in self._fixed_names if name.startswith(_prefix(layer)))

    def fill(self, layer: int, parts: Iterable[Tensors]) -> None:
        """Point parameters and buffers of a layer at the given tensors; nothing is copied."""
        module, prefix = self.layers[layer], _prefix(layer)
        for tensors in parts:
            for name, tensor in tensors.items():
                _assign(module, name.removeprefix(prefix), tensor)

    def check_filled(self, layer: int) -> None:
        """Raises: MissingTensorError naming the first parameter of a layer that has no value."""
        self._check(self.layers[layer], _prefix(layer))

    def empty(self, layer: int) -> None:
        """Drop a layer's weights; what a cache holds of them stays as it is."""
        for name, tensor in self._blank[layer].items():
            _assign(self.layers[layer], name, tensor)

    def norm(self, hidden: Tensor) -> Tensor:
        """The final norm."""
        normed: Tensor = self.inner.norm(hidden)
        return normed

    def embed(self, ids: Tensor) -> Tensor:
        """(rows, T) ids -> (rows, T, hidden), the input of the first layer."""
        hidden: Tensor = self._record(ids)[0].hidden
        return hidden

    def layer_kwargs(self, length: int) -> list[Mapping[str, Any]]:
        """What the model passes to each layer beside hidden states for rows of `length` tokens.

        Position embeddings and masks have a batch dimension of 1 and broadcast over rows.
        """
        return [recorder.kwargs for recorder in self._record(torch.zeros(1, length, dtype=torch.int64))]

    def _record(self, ids: Tensor) -> list[_Recorder]:
        """Run the model's own forward with layers that only note what they are given."""
        recorders = [_Recorder(layer) for layer in self.layers]
        layers = self.inner.layers
        self.inner.layers = nn.ModuleList(recorders)
        try:
            self.inner(input_ids=ids, use_cache=False)
        finally:
            self.inner.layers = layers
        return recorders

    def _place(self, prefix: str, module: nn.Module, tensor: Tensor) -> None:
        _assign(module, "weight", tensor)
        self._check(module, prefix)

    def _check(self, module: nn.Module, prefix: str) -> None:
        for name, tensor in _tensors(module).items():
            if tensor.is_meta:
                raise MissingTensorError(
                    f"the architecture needs {prefix + name!r}, which is nowhere in the checkpoint",
                    where=str(self.model_dir),
                    fix="Download the model again",
                )


class _Recorder(nn.Module):
    """Stands in for a decoder layer: returns its input and keeps what it was called with."""

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
    config = AutoConfig.from_pretrained(model_dir)
    settings: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "sdpa"}
    if experts:
        # Each class reads its own one of n_routed_experts, num_experts and num_local_experts; this name reaches all.
        config.num_local_experts = experts
        settings["experts_implementation"] = "grouped_mm"
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, **settings)
    return model.eval()


def _prefix(layer: int) -> str:
    return f"model.layers.{layer}."


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._buffers:
        owner._buffers[leaf] = tensor.detach()
    else:
        owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
