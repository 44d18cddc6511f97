"""exllamav3's own Python on the CPU, small models of every kind, and EXL3 directories made from them."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.standin.hook import install  # noqa: E402

install()

SMALL = {
    "vocab_size": 256,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 256,
    "max_position_embeddings": 512,
    "initializer_range": 0.05,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
SPARSE = {"moe_intermediate_size": 128, "num_experts_per_tok": 2, "norm_topk_prob": True}
#: Class name and what its config has beyond SMALL.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "glm4moe": (
        "Glm4Moe",
        {
            **SPARSE,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 1.5,
            "use_qk_norm": True,
            "attention_bias": True,
            "partial_rotary_factor": 0.5,
        },
    ),
    "qwen3moe": ("Qwen3Moe", {**SPARSE, "num_experts": 4}),
    "qwen3": ("Qwen3", {}),
    "llama": ("Llama", {}),
}


@pytest.fixture(scope="session")
def exllamav3() -> types.ModuleType:
    """The package, running on the stand-in."""
    import exllamav3

    return exllamav3


@pytest.fixture(scope="session", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    """Each small model in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def config_of() -> Callable[..., dict[str, Any]]:
    """config.json of a small model, as transformers writes it but with num_experts where exllamav3 wants it."""

    def make(kind: str, **changes: Any) -> dict[str, Any]:
        import transformers

        name, more = KINDS[kind]
        settings = {"num_hidden_layers": 2, **SMALL, **more, **changes}
        config = getattr(transformers, f"{name}Config")(**settings)
        written = json.loads(config.to_json_string(use_diff=False))
        written["architectures"] = [f"{name}ForCausalLM"]
        if "num_local_experts" in written:
            written["num_experts"] = written["num_local_experts"]
        return written

    return make


@pytest.fixture(scope="session")
def model_dir(
    tmp_path_factory: pytest.TempPathFactory, config_of: Callable[..., dict[str, Any]]
) -> Callable[[str], Path]:
    """Directory of a small random model in fp16, written once."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            _write_model(kind, config_of(kind), made[kind])
        return made[kind]

    return make


def _write_model(kind: str, config: dict[str, Any], out: Path) -> None:
    import transformers

    name, _ = KINDS[kind]
    torch.manual_seed(7)
    made = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**config))
    with torch.no_grad():
        for parameter_name, parameter in made.named_parameters():
            if "norm" in parameter_name or "bias" in parameter_name:  # Random too, or a swapped one would pass.
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for buffer_name, buffer in made.named_buffers():
            if buffer_name.endswith("e_score_correction_bias"):
                buffer.add_(torch.randn_like(buffer) * 0.1)
    made.half().save_pretrained(out)
    (out / "config.json").write_text(json.dumps(config))
    _write_tokenizer(out)


def _write_tokenizer(out: Path) -> None:
    """Bytes alone: 256 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text("{}")


@pytest.fixture(scope="session")
def random_linear() -> Callable[..., Any]:
    """A quantized linear with random bits: any bits are a valid trellis, so nothing has to be encoded."""
    from exltune.exl3.linear import QuantizedLinear

    def make(rows: int, columns: int, bits: float, codebook: str, seed: int = 0, bias: bool = False) -> QuantizedLinear:
        rng = np.random.default_rng(seed)
        words = rng.integers(-(1 << 15), 1 << 15, (rows // 16, columns // 16, int(16 * bits)), dtype=np.int16)
        scales = [
            torch.from_numpy((rng.choice([-1.0, 1.0], size) * rng.uniform(0.5, 1.5, size)).astype(np.float16))
            for size in (rows, columns)
        ]
        offset = torch.from_numpy(rng.normal(size=columns).astype(np.float16) * np.float16(0.1)) if bias else None
        return QuantizedLinear(torch.from_numpy(words), scales[0] * 0.05, scales[1], codebook, offset)

    return make


@pytest.fixture(scope="session")
def exl3_dir(
    tmp_path_factory: pytest.TempPathFactory, model_dir: Callable[[str], Path], random_linear: Callable[..., Any]
) -> Callable[..., Path]:
    """EXL3 directory with random trellises and the small model's other tensors, through exltune's writer."""
    made: dict[tuple[Any, ...], Path] = {}

    def make(kind: str, bits: float = 3, codebook: str = "mul1", head_bits: float = 6) -> Path:
        key = (kind, bits, codebook, head_bits)
        if key not in made:
            made[key] = tmp_path_factory.mktemp(f"{kind}-{bits:g}bpw")
            _write_exl3(model_dir(kind), made[key], random_linear, bits, codebook, head_bits)
        return made[key]

    return make


def _write_exl3(
    source: Path, out: Path, random_linear: Callable[..., Any], bits: float, codebook: str, head_bits: float
) -> None:
    from exltune.assembly.assemble import assemble_quant
    from exltune.exl3.writer import PendingTensor
    from exltune.inventory import load_inventory
    from exltune.schema.inventory import Role

    inventory = load_inventory(source)
    specs = {spec.key: (seed, spec) for seed, spec in enumerate(inventory.linears)}

    def linear(key: str) -> list[PendingTensor]:
        seed, spec = specs[key]
        width = head_bits if spec.role is Role.HEAD else bits
        made = random_linear(spec.padded_in, spec.padded_out, width, codebook, seed, spec.bias)
        return [PendingTensor(name, tensor.nbytes, lambda t=tensor: t) for name, tensor in made.tensors(key).items()]

    settings = {"bits": bits, "head_bits": head_bits, "codebook": codebook}
    assemble_quant(source, out, inventory, linear, settings)
