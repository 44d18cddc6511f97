"""What the exllamav3 engine does beyond the contract: devices, memory, and what it refuses."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from exltune.engines.exllamav3.chunks import Chunks
from exltune.engines.exllamav3.engine import ExllamaEngine
from exltune.engines.exllamav3.head import even_parts
from exltune.engines.exllamav3.scoring import Limits
from exltune.engines.exllamav3.states import StatePool
from exltune.engines.exllamav3.worker import Worker
from exltune.errors import EngineError, MissingTensorError, NonFiniteError, QuantMismatchError, StorageError
from exltune.schema.mix import REFERENCE, Mix
from exltune.schema.score import Score
from exltune.testing.tiny_models import VOCAB, TinyModel
from tests.standin.devices import exllamav3_devices
from tests.standin.hook import native

pytestmark = pytest.mark.gpu

TOKENS = torch.randint(0, VOCAB, (5, 12), generator=torch.Generator().manual_seed(3))
#: Bytes of a row's hidden states.
ROW = 4 * 12 * 128
#: Holds a layer with the tensors of one choice, not with those of all.
LITTLE_VRAM = 1_500_000


def engine_on(
    model: TinyModel, devices: int = 1, quants: dict[str, Path] | None = None, **limits: Any
) -> ExllamaEngine:
    return ExllamaEngine(
        model.path, quants or model.quants, devices=exllamav3_devices()[:devices], limits=Limits(**limits)
    )


def mix_of(model: TinyModel, choice: str, **changes: str) -> Mix:
    ids = [group.id for group in (*model.inventory.groups, model.inventory.head)]
    return Mix(name=f"{choice}{changes}", choices=dict.fromkeys(ids, choice) | changes)


def some_mixes(model: TinyModel) -> list[Mix]:
    return [
        mix_of(model, "2"),
        mix_of(model, "3", **{"1.attn.q": "2", "head": "2"}),
        mix_of(model, REFERENCE, **{"2.experts.down": "3"}),
    ]


@pytest.fixture(scope="module")
def scores(tiny_moe: TinyModel) -> list[Score]:
    return engine_on(tiny_moe).score(some_mixes(tiny_moe), TOKENS)


def alike(found: list[Score], expected: list[Score]) -> None:
    """Equal but for the order of sums, of which kernels for other numbers of rows round other parts to fp16.

    As in the contract, such rounding moves a token by 4e-3, and sends some rows' tokens to other experts.
    """
    near, strays = (4e-3 * (TOKENS.shape[1] - 1), 3) if native() else (1e-3, 0)
    for one, other in zip(found, expected, strict=True):
        for field in ("kl_ref_mix", "kl_mix_ref", "nll"):
            ours, theirs = getattr(one, field), getattr(other, field)
            far = [a for a, b in zip(ours, theirs, strict=True) if a != pytest.approx(b, rel=1e-3, abs=near)]
            assert len(far) <= strays, field


def edited(path: Path, source: Path, **changes: torch.Tensor | None) -> Path:
    """A copy of a model directory with other tensors; None drops one."""
    tensors = {**load_file(source / "model.safetensors"), **changes}
    path.mkdir()
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path / "model.safetensors")
    (path / "config.json").write_bytes((source / "config.json").read_bytes())
    return path


def test_devices_share_the_rows(tiny_moe: TinyModel, scores: list[Score], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_on(tiny_moe, devices=2, batch_tokens=12)
    if len(engine.workers) < 2:
        pytest.skip("there is one CUDA device")
    seen: dict[int, set[int]] = {}
    forward = Worker.forward

    def noted(worker: Worker, layer: int, hidden: torch.Tensor, ids: torch.Tensor, cache: Any) -> torch.Tensor:
        seen.setdefault(id(worker), set()).update(row.sum().item() for row in ids)
        return forward(worker, layer, hidden, ids, cache)

    monkeypatch.setattr(Worker, "forward", noted)
    calls: list[int] = []
    alike(engine.score(some_mixes(tiny_moe), TOKENS, lambda done, total, what: calls.append(done)), scores)
    assert len(seen) == 2
    assert calls == sorted(calls)
    assert calls[-1] == engine.stats.layer_forwards


def test_stored_tensors_are_read_once_and_only_those_needed(
    tiny_moe: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_on(tiny_moe, devices=2)
    reads: list[tuple[str, str]] = []
    read = engine.shelf._read
    monkeypatch.setattr(engine.shelf, "_read", lambda pair: reads.append(pair) or read(pair))
    engine.score(some_mixes(tiny_moe), TOKENS)
    assert len(reads) == len(set(reads))
    assert ("2.experts.down", "3") in reads
    assert ("1.attn.q", "3") not in reads


def test_the_unquantized_layer_is_loaded_once(tiny_moe: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_on(tiny_moe)
    loads: list[str] = []
    collection = engine.workers[0]._config.stc
    get = collection.get_tensor

    def noted(key: str, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not (collection.new_tensors and key in collection.new_tensors):
            loads.append(key)
        return get(key, *args, **kwargs)

    monkeypatch.setattr(collection, "get_tensor", noted)
    swaps = [mix_of(tiny_moe, REFERENCE, **{group.id: "2"}) for group in tiny_moe.inventory.groups]
    engine.score(swaps, TOKENS)
    weights = [key for key in loads if key.endswith("_proj.weight") or key == "lm_head.weight"]
    assert weights
    assert len(weights) == len(set(weights))


def test_nothing_of_a_layer_stays_on_the_device(tiny_moe: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_on(tiny_moe)
    collection = engine.workers[0]._config.stc
    begin, arenas = collection.begin_deferred_load, list[bool]()
    monkeypatch.setattr(
        collection, "begin_deferred_load", lambda arena=True: (arenas.append(arena), begin(arena=arena))
    )
    engine.score([mix_of(tiny_moe, "2")], TOKENS)
    assert set(arenas) == {False}
    assert collection.arena == {}


def test_the_reference_is_computed_once_for_the_same_rows(tiny_moe: TinyModel, scores: list[Score]) -> None:
    engine, layers = engine_on(tiny_moe), tiny_moe.inventory.layers
    forwards = []
    for mixes in (some_mixes(tiny_moe), some_mixes(tiny_moe), some_mixes(tiny_moe)[:2]):
        assert engine.score(mixes, TOKENS) == scores[: len(mixes)]
        forwards.append(engine.stats.layer_forwards)
    # The third mix leaves the reference's path in the last layer alone.
    assert forwards == [3 * layers + 1, 3 * layers, 2 * layers]
    alike(engine.score(some_mixes(tiny_moe), TOKENS.flip(0)), [reversed_rows(score) for score in scores])
    assert engine.stats.layer_forwards == forwards[1]


def test_the_reference_is_kept_row_by_row(tiny_moe: TinyModel, scores: list[Score]) -> None:
    engine, layers = engine_on(tiny_moe), tiny_moe.inventory.layers
    forwards = []
    for rows in (slice(0, 3), slice(3, 5), slice(0, 5), slice(1, 4)):
        found = engine.score(some_mixes(tiny_moe)[:2], TOKENS[rows])
        alike(found, [rows_of(score, rows) for score in scores[:2]])
        forwards.append(engine.stats.layer_forwards)
    # A search scores on halves in turn: what one call has seen, no later one computes.
    assert forwards == [3 * layers, 3 * layers, 2 * layers, 2 * layers]


def test_kept_references_stay_within_their_share(tiny_moe: TinyModel) -> None:
    engine, layers = engine_on(tiny_moe, state_bytes=8 * 3 * ROW), tiny_moe.inventory.layers
    forwards = []
    for rows in ([0, 1], [2], [0], [3], [1], [0, 1, 2, 3]):
        engine.score(some_mixes(tiny_moe)[:2], TOKENS[rows])
        forwards.append(engine.stats.layer_forwards // layers)
        assert engine._references.nbytes <= 3 * ROW
    # Row 1 was not asked for the longest when row 3 came; four rows are more than are kept.
    assert forwards == [3, 3, 2, 3, 3, 3]


def rows_of(score: Score, rows: slice) -> Score:
    sums = {field: getattr(score, field)[rows] for field in ("kl_ref_mix", "kl_mix_ref", "nll")}
    return score.model_copy(update=sums)


def reversed_rows(score: Score) -> Score:
    sums = {field: getattr(score, field)[::-1] for field in ("kl_ref_mix", "kl_mix_ref", "nll")}
    return score.model_copy(update=sums)


@pytest.mark.parametrize("rows", [3, 0])
def test_states_beyond_the_ram_given_go_to_disk(
    tiny_moe: TinyModel, scores: list[Score], tmp_path: Path, rows: int
) -> None:
    engine = engine_on(tiny_moe, state_bytes=5 * ROW * rows, spill_dir=tmp_path)
    assert engine.score(some_mixes(tiny_moe), TOKENS) == scores
    assert engine.stats.spilled_bytes > 0
    held = engine._references.nbytes
    assert engine.stats.state_bytes + held - engine.stats.spilled_bytes <= 5 * ROW * rows
    assert list(tmp_path.iterdir()) == []


def test_buffers_are_used_again(tmp_path: Path) -> None:
    pool = StatePool(100, tmp_path)
    first = pool.empty((25,), torch.float32)
    second = pool.empty((25,), torch.float32)
    assert (pool.peak_ram_bytes, pool.spilled_bytes) == (100, 100)
    second.fill_(1.0)
    pool.give_back(first)
    third = pool.empty((5, 5), torch.float32)
    assert third.data_ptr() == first.data_ptr()
    assert (pool.peak_ram_bytes, pool.spilled_bytes) == (100, 100)


def test_page_locked_buffers_count_as_torch_makes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    empty = torch.empty

    def unlocked(nbytes: int, *, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        made.append(nbytes)
        assert pin_memory
        return empty(nbytes, dtype=dtype)

    monkeypatch.setattr(torch, "empty", unlocked)
    pool = StatePool(256, tmp_path, pinned=True)
    for _ in range(3):
        pool.empty((100,), torch.uint8)
    assert made == [100, 100]
    assert (pool.peak_ram_bytes, pool.spilled_bytes) == (256, 100)


def test_a_full_disk_is_told(tiny_moe: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    engine = engine_on(tiny_moe, state_bytes=ROW, spill_dir=tmp_path)
    with pytest.raises(StorageError, match=r"the disk is full\. Make room for .* bytes of hidden states"):
        engine.score(some_mixes(tiny_moe), TOKENS)


def test_out_of_memory_in_the_middle_takes_smaller_chunks(
    tiny_moe: TinyModel, scores: list[Score], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, most = Worker.forward, 2

    def small(worker: Worker, layer: int, hidden: torch.Tensor, ids: torch.Tensor, cache: Any) -> torch.Tensor:
        if len(hidden) > most and layer > 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(worker, layer, hidden, ids, cache)

    monkeypatch.setattr(Worker, "forward", small)
    engine = engine_on(tiny_moe)
    alike(engine.score(some_mixes(tiny_moe), TOKENS), scores)
    assert engine.stats.shrunk == 1


def test_a_device_that_is_full_while_a_layer_is_loaded_is_told(
    tiny_moe: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")

    engine = engine_on(tiny_moe)
    layer = engine.workers[0].layers[0]
    monkeypatch.setattr(layer.mlp, "load", full)
    with pytest.raises(
        EngineError, match=r"too little memory for a layer \(CUDA out of memory\. Tried .* GiB\)\. Free"
    ):
        engine.score(some_mixes(tiny_moe), TOKENS)


def test_a_thread_works_on_its_workers_own_device(tiny_moe: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[int] = []

    @contextmanager
    def current(worker: Worker) -> Iterator[None]:
        entered.append(id(worker))
        yield

    engine = engine_on(tiny_moe, devices=2)
    monkeypatch.setattr(Worker, "current", current)
    engine.score([mix_of(tiny_moe, "2")], TOKENS)
    assert sorted(entered) == sorted([id(worker) for worker in engine.workers] * (tiny_moe.inventory.layers + 1))


@pytest.mark.parametrize(("count", "most", "sizes"), [(9, 4, [3, 3, 3]), (19, 9, [7, 6, 6]), (5, 8, [5]), (1, 4, [1])])
def test_positions_of_a_row_are_split_evenly(count: int, most: int, sizes: list[int]) -> None:
    parts = even_parts(count, most)
    assert [len(part) for part in parts] == sizes
    assert torch.cat(parts).tolist() == list(range(count))


def test_a_row_that_does_not_fit_is_told() -> None:
    def full(rows: slice, hidden: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("cuBLAS: CUBLAS_STATUS_ALLOC_FAILED\nmore")

    with pytest.raises(EngineError, match=r"too little memory for a single row \(cuBLAS: CUBLAS_STATUS_ALLOC_FAILED\)"):
        Chunks(torch.device("cpu")).run(full, 0, torch.zeros(4, 2))


def test_other_failures_pass_through() -> None:
    def broken(rows: slice, hidden: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("a shape")

    with pytest.raises(RuntimeError, match="a shape"):
        Chunks(torch.device("cpu")).run(broken, 0, torch.zeros(4, 2))


def test_a_lost_device_is_told(tiny_moe: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_args: Any) -> torch.Tensor:
        raise RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be ...")

    monkeypatch.setattr(Worker, "forward", lost)
    with pytest.raises(EngineError, match=r"a CUDA device failed .*unspecified launch failure.*same command again"):
        engine_on(tiny_moe).score(some_mixes(tiny_moe), TOKENS)


def test_a_layer_that_does_not_fit_is_told_before_work_starts(
    tiny_moe: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker, "embed", lambda *_args: pytest.fail("work was started"))
    with pytest.raises(
        EngineError, match=r"layer 0 needs about [\d.]+ .?i?B of a device that has [\d.]+ .?i?B to give"
    ):
        engine_on(tiny_moe, vram_bytes=100_000).score(some_mixes(tiny_moe), TOKENS)


def test_little_memory_brings_tensors_to_the_device_choice_by_choice(
    tiny_moe: TinyModel, scores: list[Score], monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: list[bool] = []
    hold = Worker.hold

    def noted(worker: Worker, tensors: Any, *, placed_: list[bool] = placed, placed: bool = True) -> None:
        placed_.append(placed)
        hold(worker, tensors, placed=placed)

    monkeypatch.setattr(Worker, "hold", noted)
    assert engine_on(tiny_moe, vram_bytes=LITTLE_VRAM).score(some_mixes(tiny_moe), TOKENS) == scores
    assert False in placed


def test_nan_in_the_checkpoint_names_the_tensor(tiny_moe: TinyModel, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    weight = load_file(tiny_moe.path / "model.safetensors")[name]
    weight[3, 4] = float("nan")
    path = edited(tmp_path / "model", tiny_moe.path, **{name: weight})
    engine = ExllamaEngine(path, {}, devices=exllamav3_devices()[:1])
    with pytest.raises(NonFiniteError, match=name.replace(".", r"\.")):
        engine.score([mix_of(tiny_moe, REFERENCE)], TOKENS)


def test_inf_in_a_quant_names_the_tensor(tiny_moe: TinyModel, tmp_path: Path) -> None:
    name = "model.layers.2.self_attn.v_proj.suh"
    scale = load_file(tiny_moe.quants["2"] / "model.safetensors")[name]
    scale[0] = float("inf")
    quants = {"2": edited(tmp_path / "2", tiny_moe.quants["2"], **{name: scale})}
    with pytest.raises(NonFiniteError, match=r"layers\.2\.self_attn\.v_proj\.suh"):
        engine_on(tiny_moe, quants=quants).score([mix_of(tiny_moe, "2")], TOKENS)


def test_a_quant_of_other_shapes_is_refused(tiny_moe: TinyModel, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.gate_proj.trellis"
    trellis = load_file(tiny_moe.quants["2"] / "model.safetensors")[name]
    quants = {"2": edited(tmp_path / "2", tiny_moe.quants["2"], **{name: torch.cat([trellis, trellis])})}
    with pytest.raises(QuantMismatchError, match=r"model\.layers\.0\.mlp\.gate_proj has shape \(256, 256\)"):
        engine_on(tiny_moe, quants=quants).score([mix_of(tiny_moe, "2")], TOKENS)


def test_a_quant_without_a_linear_names_it(tiny_moe: TinyModel, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.q_proj.trellis"
    quants = {"2": edited(tmp_path / "2", tiny_moe.quants["2"], **{name: None})}
    with pytest.raises(MissingTensorError, match=r"model\.layers\.1\.self_attn\.q_proj"):
        engine_on(tiny_moe, quants=quants).score([mix_of(tiny_moe, "2")], TOKENS)


@pytest.mark.parametrize("changed", [("0.mlp.gate", "0.mlp.up"), ("1.shared.gate", "1.shared.up"), ("1.experts.down",)])
def test_a_layer_may_be_quantized_in_part(
    tiny_moe: TinyModel, capfd: pytest.CaptureFixture[str], changed: tuple[str, ...]
) -> None:
    mix = mix_of(tiny_moe, REFERENCE, **dict.fromkeys(changed, "2"))
    assert {*changed} < mix.choices.keys()
    (score,) = engine_on(tiny_moe).score([mix], TOKENS)
    assert 0 < sum(score.kl_ref_mix) < 5 * 12
    # exllamav3 would warn where `--json` writes.
    assert capfd.readouterr().out == ""


def test_a_linear_that_a_quant_stores_unquantized_is_read(tiny_moe: TinyModel, tmp_path: Path) -> None:
    key = "model.layers.0.self_attn.o_proj"
    weight = load_file(tiny_moe.path / "model.safetensors")[f"{key}.weight"]
    dropped = {f"{key}.{part}": None for part in ("trellis", "suh", "svh", "mul1")}
    quants = {"2": edited(tmp_path / "2", tiny_moe.quants["2"], **dropped, **{f"{key}.weight": weight})}
    (score,) = engine_on(tiny_moe, quants=quants).score([mix_of(tiny_moe, REFERENCE, **{"0.attn.o": "2"})], TOKENS)
    assert max(score.kl_ref_mix) < 1e-6
