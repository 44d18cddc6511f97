"""What is the reference engine's own: memory limits, bad weights, configs, and the EXL3 directories it reads."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from exltune.engines import LayerCapture, open_engine
from exltune.engines.reference.engine import ReferenceEngine
from exltune.engines.reference.scoring import Limits
from exltune.engines.reference.shell import ModelShell
from exltune.engines.streaming.prefix_tree import build_tree
from exltune.engines.streaming.states import Batch, LayerStep, peak_states
from exltune.errors import DataError, MissingTensorError, NonFiniteError, QuantMismatchError, UsageError
from exltune.schema.mix import REFERENCE, Mix
from exltune.schema.score import Score
from exltune.testing.tiny_models import CONFIGS, VOCAB, TinyModel, make_tiny_model

#: Bytes of the hidden states of a row.
ROW = 4 * 12 * 128
TOKENS = torch.randint(0, VOCAB, (5, 12), generator=torch.Generator().manual_seed(2))


def mix_of(model: TinyModel, choice: str, **changes: str) -> Mix:
    ids = [group.id for group in (*model.inventory.groups, model.inventory.head)]
    return Mix(name=f"all {choice}", choices=dict.fromkeys(ids, choice) | changes)


def some_mixes(model: TinyModel) -> list[Mix]:
    return [
        mix_of(model, "2"),
        mix_of(model, "3"),
        mix_of(model, "3", **{"1.experts.down": "2"}),
        mix_of(model, REFERENCE, **{"0.attn.v": "2", "2.shared.down": "3"}),
    ]


def assert_same(found: list[Score], expected: list[Score]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(a.kl_ref_mix), torch.tensor(b.kl_ref_mix), rtol=1e-5, atol=1e-6)
        assert a.top_k == b.top_k


@pytest.fixture(scope="module")
def expected(tiny_moe: TinyModel) -> list[Score]:
    """Scores of some_mixes with ample memory."""
    return ReferenceEngine(tiny_moe.path, tiny_moe.quants).score(some_mixes(tiny_moe), TOKENS)


def edited(folder: Path, source: Path, **tensors: torch.Tensor | None) -> Path:
    """A copy of a model directory with tensors replaced, or dropped where None."""
    shutil.copytree(source, folder)
    values = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor is None:
            del values[name]
        else:
            values[name] = tensor
    save_file(values, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    "limits",
    [
        Limits(state_bytes=ROW * 3),
        Limits(batch_bytes=1, head_bytes=1),
        Limits(state_bytes=ROW * 20, batch_bytes=ROW * 3),
    ],
    ids=["mix by mix, row by row", "smallest batches", "odd slabs"],
)
def test_memory_limits_change_no_score(tiny_moe: TinyModel, expected: list[Score], limits: Limits) -> None:
    engine = ReferenceEngine(tiny_moe.path, tiny_moe.quants, limits=limits, cache_bytes=0)
    assert_same(engine.score(some_mixes(tiny_moe), TOKENS), expected)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_score(tiny_moe: TinyModel, expected: list[Score], threads: int) -> None:
    limits = Limits(batch_bytes=4 * 12 * 128 * 2, head_bytes=1)
    before = torch.get_num_threads()
    engine = ReferenceEngine(tiny_moe.path, tiny_moe.quants, threads=threads, limits=limits, cache_bytes=0)
    assert_same(engine.score(some_mixes(tiny_moe), TOKENS), expected)
    assert torch.get_num_threads() == before


def test_an_error_in_a_thread_is_raised(tiny_moe: TinyModel) -> None:
    engine = ReferenceEngine(tiny_moe.path, {"2": tiny_moe.path}, threads=2)
    with pytest.raises(QuantMismatchError, match="no EXL3 tensors"):
        engine.score([mix_of(tiny_moe, "2")], TOKENS)


def test_slabs_are_counted_in_progress_but_not_as_forwards(tiny_moe: TinyModel) -> None:
    mixes = some_mixes(tiny_moe)
    peak = peak_states(build_tree(mixes, tiny_moe.inventory).layers)
    engine = ReferenceEngine(tiny_moe.path, tiny_moe.quants, state_bytes=ROW * peak)
    calls: list[tuple[int, int]] = []
    engine.score(mixes, TOKENS, lambda done, total, _: calls.append((done, total)))
    assert engine.stats.slabs == len(TOKENS)
    assert calls[0] == (0, calls[-1][0])
    assert calls[-1] == (engine.stats.layer_forwards * len(TOKENS),) * 2


def test_a_score_does_not_depend_on_the_mixes_beside_it(tiny_moe: TinyModel, expected: list[Score]) -> None:
    """To the last bit: a measurement that goes on after a kill scores fewer mixes together."""
    mixes, limits = some_mixes(tiny_moe), Limits(batch_bytes=ROW * 2)
    engine = ReferenceEngine(tiny_moe.path, tiny_moe.quants, limits=limits)
    together = engine.score(mixes, TOKENS)
    assert [engine.score([mix], TOKENS)[0] for mix in mixes] == together
    assert engine.score(mixes[::-2], TOKENS) == together[::-2]


@pytest.mark.parametrize("rows", [3, 7, 20, 1000])
def test_states_stay_within_their_memory(tiny_moe: TinyModel, rows: int, held: list[int]) -> None:
    mixes = some_mixes(tiny_moe)
    engine = ReferenceEngine(tiny_moe.path, tiny_moe.quants, state_bytes=ROW * rows)
    engine.score(mixes, TOKENS)
    assert 0 < max(held) == engine.stats.state_bytes <= ROW * rows
    peak = peak_states(build_tree(mixes, tiny_moe.inventory).layers)
    assert engine.rows_at_once(mixes, TOKENS.shape[1]) == rows // peak


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Bytes of all states that the garbage collector knows of, as each layer begins."""
    held: list[int] = []
    batches = LayerStep.batches
    # What other tests have left is no state, and is not looked through at every layer.
    gc.collect()
    gc.freeze()

    def counted(step: LayerStep, batch_rows: int) -> list[Batch]:
        gc.collect()
        alive = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
        states = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive if is_state(t)}
        held.append(sum(states.values()))
        return batches(step, batch_rows)

    monkeypatch.setattr(LayerStep, "batches", counted)
    yield held
    gc.unfreeze()


def is_state(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.float32 and tuple(tensor.shape[1:]) == (TOKENS.shape[1], 128)


def test_memory_that_holds_not_even_one_mix_is_refused(tiny_moe: TinyModel) -> None:
    engine = ReferenceEngine(tiny_moe.path, tiny_moe.quants, state_bytes=ROW * 3 - 1)
    with pytest.raises(UsageError, match=f"at least {ROW * 3} bytes"):
        engine.score(some_mixes(tiny_moe), TOKENS)


def test_weights_are_loaded_once_per_call_and_kept_between_calls(
    tiny_moe: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ReferenceEngine(tiny_moe.path, tiny_moe.quants)
    loads: list[tuple[str, str]] = []
    load = engine.store._load
    monkeypatch.setattr(engine.store, "_load", lambda group, c: loads.append((group, c)) or load(group, c))
    engine.score(some_mixes(tiny_moe), TOKENS)
    assert len(loads) == len(set(loads)) == 3 * len(engine.store.groups)
    engine.score(some_mixes(tiny_moe), TOKENS)
    assert len(loads) == 3 * len(engine.store.groups)


def test_weights_are_loaded_once_per_call_without_a_cache(tiny_moe: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ReferenceEngine(tiny_moe.path, tiny_moe.quants, cache_bytes=0)
    loads: list[tuple[str, str]] = []
    load = engine.store._load
    monkeypatch.setattr(engine.store, "_load", lambda group, c: loads.append((group, c)) or load(group, c))
    engine.score(some_mixes(tiny_moe), TOKENS)
    assert len(loads) == len(set(loads))


def test_layers_hold_no_weights_after_a_call(tiny_moe: TinyModel) -> None:
    engine = ReferenceEngine(tiny_moe.path, tiny_moe.quants)
    engine.score(some_mixes(tiny_moe), TOKENS)
    assert all(tensor.is_meta for layer in engine.shell.layers for tensor in layer.module.state_dict().values())


def test_nan_in_the_checkpoint_names_the_tensor(tiny_moe: TinyModel, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    weight = load_file(tiny_moe.path / "model.safetensors")[name]
    weight[3, 4] = float("nan")
    path = edited(tmp_path / "model", tiny_moe.path, **{name: weight})
    with pytest.raises(NonFiniteError, match=name.replace(".", r"\.")):
        ReferenceEngine(path, {}).score([mix_of(tiny_moe, REFERENCE)], TOKENS)


def test_inf_in_a_quant_names_the_linear(tiny_moe: TinyModel, tmp_path: Path) -> None:
    key = "model.layers.2.self_attn.v_proj"
    suh = load_file(tiny_moe.quants["2"] / "model.safetensors")[f"{key}.suh"]
    suh[0] = float("inf")
    path = edited(tmp_path / "2", tiny_moe.quants["2"], **{f"{key}.suh": suh})
    with pytest.raises(NonFiniteError, match=r"layers\.2\.self_attn\.v_proj"):
        ReferenceEngine(tiny_moe.path, {"2": path}).score([mix_of(tiny_moe, "2")], TOKENS)


def test_nan_scores_name_the_mix(tiny_moe: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ReferenceEngine(tiny_moe.path, tiny_moe.quants)
    load = engine.store._load
    broken = {("1.attn.o", "2")}

    def overflowing(group: str, choice: str) -> dict[str, torch.Tensor]:
        # Stands for activations that overflow although every weight is finite.
        factor = float("nan") if (group, choice) in broken else 1.0
        return {name: tensor * factor for name, tensor in load(group, choice).items()}

    monkeypatch.setattr(engine.store, "_load", overflowing)
    with pytest.raises(NonFiniteError, match="mix 'all 2'"):
        engine.score([mix_of(tiny_moe, "3"), mix_of(tiny_moe, "2")], TOKENS)


def test_a_missing_tensor_is_named(tiny_moe: TinyModel, tmp_path: Path) -> None:
    path = edited(tmp_path / "model", tiny_moe.path, **{"model.layers.1.self_attn.q_norm.weight": None})
    with pytest.raises(MissingTensorError, match=r"model\.layers\.1\.self_attn\.q_norm\.weight"):
        ReferenceEngine(path, {})


def test_a_quant_without_a_linear_names_it(tiny_moe: TinyModel, tmp_path: Path) -> None:
    path = edited(tmp_path / "2", tiny_moe.quants["2"], **{"model.layers.1.self_attn.q_proj.trellis": None})
    with pytest.raises(MissingTensorError, match=r"model\.layers\.1\.self_attn\.q_proj"):
        ReferenceEngine(tiny_moe.path, {"2": path}).score([mix_of(tiny_moe, "2")], TOKENS)


def test_a_quant_of_another_shape_is_refused(tiny_moe: TinyModel, tmp_path: Path) -> None:
    config = {**CONFIGS["glm4moe"], "intermediate_size": 384}
    other = make_tiny_model(tmp_path / "other", config)
    engine = ReferenceEngine(tiny_moe.path, other.quants)
    with pytest.raises(QuantMismatchError, match=r"model\.layers\.0\.mlp\.gate_proj has shape"):
        engine.score([mix_of(tiny_moe, "2")], TOKENS)


def test_a_linear_that_a_quant_stores_unquantized_is_read(tiny_moe: TinyModel, tmp_path: Path) -> None:
    key = "model.layers.0.self_attn.o_proj"
    weight = load_file(tiny_moe.path / "model.safetensors")[f"{key}.weight"]
    dropped = {f"{key}.{part}": None for part in ("trellis", "suh", "svh", "mul1")}
    path = edited(tmp_path / "2", tiny_moe.quants["2"], **dropped, **{f"{key}.weight": weight})
    engine = ReferenceEngine(tiny_moe.path, {"2": path})
    (score,) = engine.score([mix_of(tiny_moe, REFERENCE, **{"0.attn.o": "2"})], TOKENS)
    assert set(score.kl_ref_mix) == {0.0}


@pytest.mark.parametrize(
    ("name", "key"),
    [("qwen3moe", "num_local_experts"), ("glm4moe", "num_local_experts"), ("glm4moe", "num_experts")],
)
def test_the_number_of_experts_has_many_names(
    name: str, key: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = make_tiny_model(tmp_path, CONFIGS[name])
    plain = ReferenceEngine(model.path, model.quants).score([mix_of(model, "2")], TOKENS)
    file = model.path / "config.json"
    config: dict[str, Any] = json.loads(file.read_text())
    config[key] = config.pop("num_experts", None) or config.pop("n_routed_experts")
    file.write_text(json.dumps(config))
    assert ReferenceEngine(model.path, model.quants).score([mix_of(model, "2")], TOKENS) == plain


def test_rare_experts_are_named(tiny_moe: TinyModel) -> None:
    captures = list(ReferenceEngine(tiny_moe.path, {}, min_expert_tokens=31).capture(TOKENS))
    for capture in captures:
        assert set(capture.rare_experts) == {e for e, count in capture.expert_tokens.items() if count < 31}
    assert captures[0].expert_tokens == {}
    assert sum(captures[1].expert_tokens.values()) == TOKENS.numel() * 2
    assert any(capture.rare_experts for capture in captures)


def test_hessians_may_be_worked_on_in_place(tiny_moe: TinyModel) -> None:
    (capture,) = ReferenceEngine(tiny_moe.path, {}).capture(TOKENS, keys=["lm_head"])
    assert capture.layer is None
    capture.hessians["lm_head"].matrix.diagonal().add_(1.0)


@pytest.mark.parametrize("threads", [2, 7])
def test_threads_change_no_hessian(tiny_moe: TinyModel, threads: int) -> None:
    def captures(threads: int) -> list[LayerCapture]:
        limits = Limits(batch_bytes=4 * 12 * 128)
        return list(ReferenceEngine(tiny_moe.path, {}, threads=threads, limits=limits).capture(TOKENS))

    for found, expected in zip(captures(threads), captures(1), strict=True):
        assert (found.layer, found.expert_tokens) == (expected.layer, expected.expert_tokens)
        for key, hessian in expected.hessians.items():
            assert found.hessians[key].count == hessian.count
            torch.testing.assert_close(found.hessians[key].matrix, hessian.matrix, rtol=1e-5, atol=1e-4)


def test_hessians_are_the_same_bits_whatever_is_wanted(tiny_moe: TinyModel) -> None:
    def captured(keys: list[str] | None) -> dict[str, torch.Tensor]:
        engine = ReferenceEngine(tiny_moe.path, {}, threads=3, limits=Limits(batch_bytes=1))
        return {k: h.matrix for c in engine.capture(TOKENS, keys) for k, h in c.hessians.items()}

    everything = captured(None)
    some = captured(["model.layers.2.mlp.experts.1.down_proj", "model.layers.1.self_attn.v_proj", "lm_head"])
    assert len(some) == 3
    assert all(matrix.equal(everything[key]) for key, matrix in some.items())


def test_quantize_works_on_the_reference_weight(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path, CONFIGS["qwen2"])
    engine = ReferenceEngine(model.path, {})
    key = "model.layers.0.self_attn.k_proj"  # 128 x 64: padded to 128
    linear, stats = engine.quantize(key, None, 4, "mul1", key)
    weight = load_file(model.path / "model.safetensors")[f"{key}.weight"].float()
    error = (linear.dequantize()[:, :64].T - weight).norm() / weight.norm()
    assert error == pytest.approx(stats.rfn, rel=1e-3)
    assert error < 0.1
    with pytest.raises(UsageError, match="no linear"):
        engine.quantize("model.layers.0.nothing", None, 4, "mul1", key)


def test_engines_are_opened_by_name(tiny_moe: TinyModel) -> None:
    assert open_engine("auto", tiny_moe.path).name == "reference"
    with pytest.raises(UsageError, match="Choose one of: auto, reference"):
        open_engine("abacus", tiny_moe.path)


def test_tokens_must_be_rows(tiny_moe: TinyModel) -> None:
    with pytest.raises(DataError, match="cannot be scored"):
        ReferenceEngine(tiny_moe.path, {}).score([], torch.zeros(3, 1, dtype=torch.int64))


def test_failures_of_all_batches_end_the_call(tiny_moe: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch fails: the call raises instead of waiting for modules that never come back."""

    def fail(*_args: object) -> None:
        raise NonFiniteError("planted")

    engine = ReferenceEngine(tiny_moe.path, tiny_moe.quants, threads=2)
    monkeypatch.setattr(ModelShell, "check_filled", fail)
    ids = (*(group.id for group in engine.inventory.groups), engine.inventory.head.id)
    mixes = [Mix(name=choice, choices=dict.fromkeys(ids, choice)) for choice in ("2", "3")]
    with pytest.raises(NonFiniteError, match="planted"):
        engine.score(mixes, torch.zeros(64, 16, dtype=torch.long))
