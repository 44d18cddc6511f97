"""How much a small model feels its bits: KL(reference‖perturbed) by bit width, kind of text, role and layer.

    python benchmarks/sharpness.py models/glm4moe [--with noise|exl3] [--rows 128]

`noise` adds Gaussian noise of the codec's relative error to every matrix, a matter of seconds; `exl3` quantizes for
real, with Hessians from 96 other rows, at about 25 s per bit width and million weights on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from exltune.corpora import TokenSet, make_token_sets, small_model_documents
from exltune.corpora.sharp import ROW_LENGTH, SHARES
from exltune.exl3.hessian import Hessian
from exltune.exl3.quantizer import quantize_linear
from exltune.schema.tokens import Split

BITS = (2, 3, 4, 5, 6, 8)
#: NMSE * 4^bits of the mul1 codebook on Gaussian weights (DESIGN.md section 7).
DISTORTION = {2: 1.09, 3: 1.12, 4: 1.14, 5: 1.16, 6: 1.21, 8: 1.30}
_BATCH = 32
Perturb = Callable[["Matrix", int], torch.Tensor]


@dataclass(frozen=True)
class Matrix:
    """A linear's weight (out, in), a view into the model's parameter."""

    key: str
    layer: int
    role: str
    weight: torch.Tensor


def matrices(model: PreTrainedModel) -> Iterator[Matrix]:
    """All matrices that a quantizer touches but the head; fused experts one by one."""
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if "layers" not in parts or parameter.ndim < 2 or name.endswith("mlp.gate.weight"):
            continue
        layer, data = int(parts[2]), parameter.data
        if parameter.ndim == 2:
            yield Matrix(name.removesuffix(".weight"), layer, _role(name), data)
        elif parts[-1] == "down_proj":
            yield from (Matrix(f"{name}.{e}", layer, "experts.down", w) for e, w in enumerate(data))
        else:
            for expert, fused in enumerate(data):
                for part, weight in zip(("gate", "up"), fused.chunk(2), strict=True):
                    yield Matrix(f"{name}.{expert}.{part}", layer, "experts.gate_up", weight)


def _role(name: str) -> str:
    place = "attn" if "self_attn" in name else "shared" if "shared_experts" in name else "mlp"
    part = {"q": "q", "k": "kv", "v": "kv", "o": "o", "gate": "gate_up", "up": "gate_up", "down": "down"}
    return f"{place}.{part[name.split('.')[-2].removesuffix('_proj')]}"


def noisy(matrix: Matrix, bits: int) -> torch.Tensor:
    """The weight with Gaussian noise of the codec's relative Frobenius error."""
    generator = torch.Generator().manual_seed(hash_of(f"{matrix.key} {bits}"))
    noise = torch.randn(matrix.weight.shape, generator=generator)
    size = (DISTORTION[bits] / 4**bits) ** 0.5
    return matrix.weight + noise * (size * matrix.weight.norm() / noise.norm())


def hash_of(text: str) -> int:
    """A seed that does not change between runs."""
    return int.from_bytes(text.encode(), "little") % (2**61 - 1)


def quantizer(model: PreTrainedModel, rows: TokenSet) -> Perturb:
    """A function that quantizes a matrix for real, with the Hessian of its inputs on some rows."""
    hessians = capture(model, rows)

    def quantize(matrix: Matrix, bits: int) -> torch.Tensor:
        linear, _ = quantize_linear(matrix.weight.T.contiguous(), hessians[matrix.key], bits, "mul1", matrix.key)
        return linear.dequantize()[: matrix.weight.shape[1], : matrix.weight.shape[0]].T

    return quantize


def capture(model: PreTrainedModel, rows: TokenSet) -> dict[str, Hessian]:
    """Sums of x xᵀ of every matrix's input; every expert sees all tokens."""
    inputs: dict[str, torch.Tensor] = {}

    def add(key: str, x: torch.Tensor) -> None:
        x = x.reshape(-1, x.shape[-1])
        inputs[key] = inputs.get(key, torch.zeros(x.shape[1], x.shape[1])) + x.T @ x

    def experts_hook(name: str) -> Callable[..., None]:
        def collect(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            x = arguments[0]
            for expert, fused in enumerate(module.gate_up_proj):
                gate, up = nn.functional.linear(x, fused).chunk(2, -1)
                add(f"{name}.down_proj.{expert}", nn.functional.silu(gate) * up)
                for part in ("gate", "up"):
                    add(f"{name}.gate_up_proj.{expert}.{part}", x)

        return collect

    handles = []
    for name, module in model.named_modules():
        if name.endswith("mlp.experts"):
            handles.append(module.register_forward_pre_hook(experts_hook(name)))
        elif isinstance(module, nn.Linear):
            handles.append(module.register_forward_pre_hook(lambda m, a, key=name: add(key, a[0])))
    for _ in log_probabilities(model, rows.ids):
        pass
    for handle in handles:
        handle.remove()
    return {key: Hessian(matrix, rows.ids.size) for key, matrix in inputs.items()}


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, ids: np.ndarray) -> Iterator[torch.Tensor]:
    """Log probabilities (rows, row_length - 1, vocab) of the next tokens, in batches."""
    for batch in torch.from_numpy(ids).split(_BATCH):
        yield model(input_ids=batch, use_cache=False).logits[:, :-1].float().log_softmax(-1)


def kl_rows(reference: list[torch.Tensor], model: PreTrainedModel, ids: np.ndarray) -> np.ndarray:
    """Mean KL(reference‖model) of each row (rows,), nats/token."""
    found = zip(reference, log_probabilities(model, ids), strict=True)
    return torch.cat([(r.exp() * (r - m)).sum(-1).mean(-1) for r, m in found]).numpy()


class Report:
    """Scores perturbed copies of a model against itself."""

    def __init__(self, model: PreTrainedModel, rows: TokenSet, perturb: Perturb) -> None:
        self.model, self.rows, self.perturb = model, rows, perturb
        self.reference = list(log_probabilities(model, rows.ids))
        self.matrices = list(matrices(model))
        self.cache: dict[tuple[str, int], torch.Tensor] = {}

    def kl(self, chosen: Iterable[Matrix], bits: int) -> np.ndarray:
        """KL of each row with the chosen matrices at a bit width and the others untouched."""
        originals = []
        for matrix in chosen:
            if (matrix.key, bits) not in self.cache:
                self.cache[matrix.key, bits] = self.perturb(matrix, bits)
            originals.append((matrix, matrix.weight.clone()))
            matrix.weight.copy_(self.cache[matrix.key, bits])
        try:
            return kl_rows(self.reference, self.model, self.rows.ids)
        finally:
            for matrix, original in originals:
                matrix.weight.copy_(original)

    def print_losses(self) -> None:
        """Next-token loss of the untouched model by kind of text."""
        ids = torch.from_numpy(self.rows.ids)
        losses = -torch.cat(self.reference).gather(-1, ids[:, 1:, None]).squeeze(-1)
        recall = losses[[d == "recall" for d in self.rows.domains], ROW_LENGTH // 2 :].mean()
        by_kind = {d: losses[[d == own for own in self.rows.domains]].mean() for d in SHARES}
        print("loss: " + ", ".join(f"{d} {v:.3f}" for d, v in by_kind.items()) + f" (repeated half {recall:.3f})")

    def print_bits(self, head: str) -> None:
        """KL by bit width and kind of text."""
        print(f"{head}: KL(ref‖quant), nats/token\nbits " + " ".join(f"{d:>10}" for d in (*SHARES, "mix")))
        for bits in BITS:
            rows = self.kl(self.matrices, bits)
            kinds = [rows[[d == own for own in self.rows.domains]].mean() for d in SHARES]
            print(f"{bits:>4} " + " ".join(f"{v:10.4f}" for v in (*kinds, rows.mean())), flush=True)

    def print_groups(self, bits: int = 2) -> None:
        """KL of the mix with one role of one layer at a bit width and all else untouched."""
        roles = sorted({m.role for m in self.matrices})
        layers = sorted({m.layer for m in self.matrices})
        print(f"one role of one layer at {bits} bits, KL of the mix\n{'':16}" + " ".join(f"{i:>8}" for i in layers))
        for role in roles:
            cells = []
            for layer in layers:
                chosen = [m for m in self.matrices if (m.role, m.layer) == (role, layer)]
                cells.append(f"{self.kl(chosen, bits).mean():8.4f}" if chosen else " " * 8)
            print(f"{role:16}" + " ".join(cells), flush=True)


def report(model_dir: Path, rows: int = 128, how: str = "noise") -> None:
    """Print the tables of one model."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    documents = small_model_documents(model_dir)
    wanted = {Split.CALIBRATION: 96, Split.HELD_OUT: rows}
    sets = make_token_sets(documents, model_dir, ROW_LENGTH, wanted, 0, SHARES)
    perturb = noisy if how == "noise" else quantizer(model, sets[Split.CALIBRATION])
    found = Report(model, sets[Split.HELD_OUT], perturb)
    found.print_losses()
    found.print_bits(f"{model_dir.name} with {how}, {rows} rows of {ROW_LENGTH} tokens")
    found.print_groups()


def main() -> None:
    """Parse the command line and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--with", dest="how", choices=("noise", "exl3"), default="noise")
    parser.add_argument("--rows", type=int, default=128)
    arguments = parser.parse_args()
    for model_dir in arguments.models:
        report(model_dir, arguments.rows, arguments.how)


if __name__ == "__main__":
    main()
