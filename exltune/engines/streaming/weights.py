"""Where the weights of a linear come from: the model's own checkpoint or an EXL3 directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from exltune.errors import NonFiniteError, QuantMismatchError
from exltune.exl3.directory import QuantDir
from exltune.exl3.tensors import TensorFiles, read_json
from exltune.inventory import is_exl3
from exltune.schema.inventory import LinearSpec, Role

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDING = "model.embed_tokens.weight"

#: quant_method in the config.json of a checkpoint whose weights are rounded as another format would round them.
SIMULATED = "exltune-simulated"


class LinearWeights(NamedTuple):
    """weight (out, in) and bias (out,) of a linear, fp32, in the original basis and without padding."""

    weight: Tensor
    bias: Tensor | None


class WeightSource(Protocol):
    """Anything that yields the weights of a linear."""

    def linear(self, spec: LinearSpec) -> LinearWeights:
        """Weights in fp32. Raises: MissingTensorError, NonFiniteError, QuantMismatchError."""
        ...


class CheckpointWeights:
    """Unquantized tensors of a model directory, or those that an EXL3 directory stores unquantized."""

    def __init__(self, files: TensorFiles) -> None:
        self.files = files

    def tensor(self, name: str) -> Tensor:
        """A tensor in fp32. Raises: MissingTensorError, NonFiniteError."""
        return finite(self.files.get(name).float(), name, self.files.path)

    def linear(self, spec: LinearSpec) -> LinearWeights:
        """`key.weight` and `key.bias`; a tied head is the embedding."""
        name = f"{spec.key}.weight"
        if spec.role is Role.HEAD and name not in self.files:
            name = EMBEDDING
        weight = self.tensor(name)
        if weight.shape != (spec.out_features, spec.in_features):
            raise other_shape(spec, tuple(weight.shape), self.files.path)
        return LinearWeights(weight, self.tensor(f"{spec.key}.bias") if spec.bias else None)


class Exl3Weights:
    """Dequantized linears of an EXL3 directory."""

    def __init__(self, path: Path) -> None:
        self.quants = QuantDir(path)
        self.plain = CheckpointWeights(self.quants.files)

    def linear(self, spec: LinearSpec) -> LinearWeights:
        """Dequantized and cropped to the unpadded shape; a linear stored unquantized is taken as it is."""
        files = self.quants.files
        if f"{spec.key}.trellis" not in files:
            return self.plain.linear(spec)
        quantized = self.quants.load(spec.key)
        weight = quantized.dequantize()  # (in_padded, out_padded)
        if weight.shape != (spec.padded_in, spec.padded_out):
            raise other_shape(spec, tuple(weight.shape), files.path)
        weight = finite(weight[: spec.in_features, : spec.out_features].T.contiguous(), spec.key, files.path)
        if not spec.bias:
            return LinearWeights(weight, None)
        bias = self.plain.tensor(f"{spec.key}.bias") if quantized.bias is None else quantized.bias.float()
        return LinearWeights(weight, finite(bias[: spec.out_features], f"{spec.key}.bias", files.path))


def open_reference(files: TensorFiles) -> tuple[WeightSource, CheckpointWeights]:
    """The linears of the model that all is compared with, which may be an EXL3 quant, and its unquantized tensors."""
    if not is_exl3(files):
        plain = CheckpointWeights(files)
        return plain, plain
    quant = Exl3Weights(files.path)
    return quant, quant.plain


def open_weights(path: Path) -> WeightSource:
    """The weights of a quant directory: EXL3, or a checkpoint that says of itself that it simulates another format.

    Raises: QuantMismatchError for any other directory, and all that reading it raises.
    """
    files = TensorFiles(path)
    noted = read_json(path / "config.json").get("quantization_config") or {}
    return CheckpointWeights(files) if noted.get("quant_method") == SIMULATED else Exl3Weights(path)


def finite(tensor: Tensor, name: str, where: Path) -> Tensor:
    """The tensor itself, once it is known to hold no NaN or inf. Raises: NonFiniteError naming it."""
    import torch

    if not torch.isfinite(tensor).all():
        raise NonFiniteError(
            f"tensor {name!r} holds NaN or inf", where=str(where), fix="Download or convert the model again"
        )
    return tensor


def other_shape(spec: LinearSpec, found: tuple[int, ...], where: Path) -> QuantMismatchError:
    """The error for a linear of a shape `found` that is not the model's."""
    return QuantMismatchError(
        f"{spec.key} has shape {found}, the model's is (in {spec.in_features}, out {spec.out_features})",
        where=str(where),
        fix="Quantize this model again",
    )
