"""The exllamav3 engine on pretend cards: what it does there is what it does on a CPU, and obeys CUDA's rules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from exltune.engines.base import LayerCapture
from exltune.engines.exllamav3.engine import ExllamaEngine
from exltune.engines.exllamav3.scoring import Limits
from exltune.engines.exllamav3.states import StatePool
from exltune.schema.mix import CACHE_K, CACHE_V, REFERENCE, Mix
from exltune.schema.score import Score
from exltune.testing.tiny_models import CONFIGS, VOCAB, TinyModel, make_tiny_model
from tests.standin.hook import install, native
from tests.standin.pretend import can_pretend, cards
from tests.standin.pretend.cuda import Cards

pytestmark = pytest.mark.skipif(native() or not can_pretend(), reason="this torch knows CUDA, or is not 2.13")
install()

TOKENS = torch.randint(0, VOCAB, (5, 12), generator=torch.Generator().manual_seed(3))
CPU = torch.device("cpu")


@pytest.fixture
def two_cards() -> Iterator[Cards]:
    with cards(2) as made:
        yield made


@pytest.fixture(scope="module")
def on_cpu(tiny_moe: TinyModel) -> ExllamaEngine:
    return ExllamaEngine(tiny_moe.path, tiny_moe.quants, devices=[CPU])


@pytest.fixture(scope="module")
def scores(on_cpu: ExllamaEngine, tiny_moe: TinyModel) -> list[Score]:
    return on_cpu.score(some_mixes(tiny_moe), TOKENS)


@pytest.fixture(scope="module")
def captures(on_cpu: ExllamaEngine) -> list[LayerCapture]:
    return list(on_cpu.capture(TOKENS))


def some_mixes(model: TinyModel) -> list[Mix]:
    """Quantized alone, beside another width, beside unquantized experts, and with a quantized cache."""
    ids = [group.id for group in (*model.inventory.groups, model.inventory.head)]
    choices = [
        dict.fromkeys(ids, "2"),
        dict.fromkeys(ids, "3") | {"1.attn.q": "2", "head": "2"},
        dict.fromkeys(ids, REFERENCE) | {"2.experts.down": "3"},
        dict.fromkeys(ids, "3") | {CACHE_K: "5", CACHE_V: "4"},
    ]
    return [Mix(name=str(number), choices=choice) for number, choice in enumerate(choices)]


def alike(found: list[Score], expected: list[Score]) -> None:
    """Equal but for the order of sums."""
    for one, other in zip(found, expected, strict=True):
        for field in ("kl_ref_mix", "kl_mix_ref", "nll"):
            assert getattr(one, field) == pytest.approx(getattr(other, field), rel=1e-3, abs=2e-3)


def test_a_card_scores_as_a_cpu(
    tiny_moe: TinyModel, scores: list[Score], two_cards: Cards, capsys: pytest.CaptureFixture[str]
) -> None:
    # The second card alone: what is made on the first by mistake is noticed.
    engine = ExllamaEngine(tiny_moe.path, tiny_moe.quants, devices=[1], vram_bytes=8 << 30)
    assert engine.score(some_mixes(tiny_moe), TOKENS) == scores
    assert engine.score(some_mixes(tiny_moe)[:2], TOKENS) == scores[:2]
    assert two_cards.fractions == {1: 0.1}
    assert two_cards.pinned_bytes > 0
    assert engine.stats.vram_bytes > 0
    # exllamav3 tells of layers with mixed experts, and only on cards: in commands, stdout is for JSON.
    assert capsys.readouterr().out == ""
    # Blocks that exllamav3 carves weights from would stay on the card, 128 MiB each.
    assert not any(worker._config.stc.arena for worker in engine.workers)


def test_two_cards_share_the_rows(tiny_moe: TinyModel, scores: list[Score], two_cards: Cards) -> None:
    engine = ExllamaEngine(tiny_moe.path, tiny_moe.quants, limits=Limits(batch_tokens=36))
    assert engine.devices == (torch.device("cuda", 0), torch.device("cuda", 1))
    alike(engine.score(some_mixes(tiny_moe), TOKENS), scores)


def test_little_memory_brings_tensors_to_the_card_choice_by_choice(
    tiny_moe: TinyModel, scores: list[Score], two_cards: Cards
) -> None:
    engine = ExllamaEngine(tiny_moe.path, tiny_moe.quants, devices=[0], vram_bytes=1_450_000)
    assert engine.score(some_mixes(tiny_moe)[:3], TOKENS) == scores[:3]


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A model whose keys and values are 64 wide, for which exllamav3's own bundle of the two has no kernel."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return make_tiny_model(tmp_path_factory.mktemp("narrow"), {**CONFIGS["glm4moe"], **heads})


@pytest.mark.parametrize("tokens", [TOKENS[:1, :7], TOKENS[:2, :10]], ids=["7", "20"])
def test_few_tokens_take_the_bundled_kernels(narrow: TinyModel, tokens: torch.Tensor) -> None:
    expected = ExllamaEngine(narrow.path, narrow.quants, devices=[CPU]).score(some_mixes(narrow)[:3], tokens)
    with cards(2):
        engine = ExllamaEngine(narrow.path, narrow.quants, devices=[1])
        alike(engine.score(some_mixes(narrow)[:3], tokens), expected)


def test_hessians_are_those_of_a_cpu(tiny_moe: TinyModel, captures: list[LayerCapture], two_cards: Cards) -> None:
    found = list(ExllamaEngine(tiny_moe.path, {}, devices=[1]).capture(TOKENS))
    for one, other in zip(found, captures, strict=True):
        assert (one.layer, one.expert_tokens) == (other.layer, other.expert_tokens)
        assert one.hessians.keys() == other.hessians.keys()
        for key, hessian in one.hessians.items():
            assert hessian.matrix.device == CPU
            assert torch.equal(hessian.matrix, other.hessians[key].matrix)


def test_rfn_is_that_of_a_cpu(tiny_moe: TinyModel, on_cpu: ExllamaEngine) -> None:
    keys = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.experts.0.up_proj", "lm_head"]
    expected = on_cpu.rfn("2", keys)
    with cards(2):
        assert ExllamaEngine(tiny_moe.path, tiny_moe.quants, devices=[1]).rfn("2", keys) == expected


def test_page_locked_memory_counts_as_it_is_taken(tmp_path: Path, two_cards: Cards) -> None:
    """torch's allocator takes powers of two."""
    pool = StatePool(200, tmp_path, pinned=True)
    taken = []
    for nbytes in (65, 72, 1):
        pool.empty((nbytes,), torch.uint8)
        taken.append((two_cards.pinned_bytes, pool.peak_ram_bytes, pool.spilled_bytes))
    assert taken == [(65, 128, 0), (65, 200, 0), (65, 200, 1)]


def test_exllamav3s_quantizer_stores_the_same_on_a_card() -> None:
    """Its own code, which copies with `.cpu()` and stages weights on streams; on a CPU the stand-in changes it."""
    expected = quantized_on(CPU)
    with cards(2):
        found = quantized_on(torch.device("cuda", 1))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name].cpu(), tensor), name


def quantized_on(device: torch.device) -> dict[str, torch.Tensor]:
    from exllamav3.modules.quant.exl3_lib.quantize import quantize_exl3

    generator = torch.Generator().manual_seed(4)
    weight, inputs = (torch.randn(128, 128, generator=generator) for _ in range(2))
    hessian = (inputs.T @ inputs + 128 * torch.eye(128)).to(device)
    capture = {"H": hessian, "count": 256, "finalized": False, "num_total": 256, "first_key": "x"}
    settings = {"K": 2, "devices": [device], "apply_out_scales": None, "seed": 1, "mul1": True}
    stored: dict[str, torch.Tensor] = quantize_exl3(weight.to(device), capture, settings, False)[2]
    return stored


def test_nothing_is_left_of_pretend_cards() -> None:
    with cards(2):
        table = torch.ones(2, device="cuda:1")
    assert torch.cuda.device_count() == 0
    assert table.is_cuda
    with pytest.raises((AssertionError, RuntimeError), match="CUDA"):
        torch.ones(2, device="cuda:1")
