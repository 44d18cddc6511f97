"""What the exllamav3 engine refuses to run, and where it cannot run at all."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from exltune.engines import open_engine
from exltune.engines.exllamav3 import runtime
from exltune.engines.exllamav3.engine import ExllamaEngine, unheeded_window
from exltune.engines.exllamav3.fits import device_bytes, hold_to
from exltune.errors import EngineError, UnsupportedArchitectureError, UsageError
from exltune.pipeline.quants.inspect import inspect
from exltune.schema.mix import Mix
from exltune.testing.tiny_models import CONFIGS, TinyModel, make_tiny_model
from tests.standin.devices import exllamav3_devices

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 64}, None),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 64, "use_sliding_window": False}, None),
        ({"architectures": ["Qwen3ForCausalLM"], "sliding_window": 64, "use_sliding_window": True}, 64),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 4096}, 4096),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": None}, None),
        ({"architectures": ["LlamaForCausalLM"]}, None),
    ],
)
def test_windows_that_exllamav3_does_not_heed(config: dict[str, Any], window: int | None) -> None:
    assert unheeded_window(config) == window


def test_rows_beyond_a_window_are_refused(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path, CONFIGS["qwen2"])
    engine = ExllamaEngine(model.path, model.quants, devices=exllamav3_devices()[:1])
    groups = [group.id for group in (*model.inventory.groups, model.inventory.head)]
    mix, tokens = Mix(name="2", choices=dict.fromkeys(groups, "2")), torch.arange(9)[None]
    (score,) = engine.score([mix], tokens[:, :8])
    assert score.kl_ref_mix[0] > 0
    with pytest.raises(UsageError, match=r"rows of 9 tokens reach beyond the model's sliding window of 8.*reference"):
        engine.score([mix], tokens)


def test_architectures_that_are_only_planned_are_refused(tmp_path: Path) -> None:
    config = {**CONFIGS["qwen3moe"], "architectures": ["MixtralForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedArchitectureError, match=r"plans MixtralForCausalLM.*cannot quantize, score"):
        ExllamaEngine(tmp_path, {}, devices=exllamav3_devices()[:1])


def test_wrong_versions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.importlib.metadata, "version", lambda _name: "1.4.1")
    with pytest.raises(
        EngineError, match=r"exllamav3 1\.4\.1 is installed; wanted is (<1\.7,>=1\.6\.5|>=1\.6\.5,<1\.7)"
    ):
        runtime.import_exllamav3()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise runtime.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(runtime.importlib.metadata, "version", absent)
    with pytest.raises(EngineError, match=r"exllamav3 is not installed.*pip install 'exllamav3[<>]"):
        runtime.import_exllamav3()


@pytest.mark.parametrize(
    "error",
    [
        OSError("CUDA_HOME environment variable is not set. Please set it to your CUDA install root."),
        RuntimeError("Error building extension 'exllamav3_ext': ninja: build stopped: c++: not found"),
        ImportError("libcudart.so.13: cannot open shared object file"),
    ],
)
def test_no_extension_and_no_compiler_are_told(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, *others: Any) -> types.ModuleType:
        if name.startswith("exllamav3"):
            raise error
        return load(name, *others)

    load = runtime.importlib.import_module

    monkeypatch.setattr(runtime.importlib, "import_module", fail)
    with pytest.raises(EngineError, match=r"extension cannot be loaded .*toolkit with a C.. compiler") as caught:
        runtime.import_exllamav3()
    assert str(error)[-40:] in str(caught.value)


def test_auto_says_why_it_takes_no_gpu(tiny_moe: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(runtime, "import_exllamav3", lambda: pytest.fail("it was imported"))
    assert runtime.why_not() == "there is no CUDA device"
    found = inspect(tiny_moe.path)
    assert (found.engine, found.engine_remark) == ("reference", "not exllamav3: there is no CUDA device")


def test_a_card_that_is_not_used_is_logged(
    tiny_moe: TinyModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert open_engine("auto", tiny_moe.path).name == "reference"
    assert caplog.text == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(runtime.importlib.metadata, "version", lambda _name: "2.0.0")
    assert open_engine("auto", tiny_moe.path).name == "reference"
    assert "the engine is reference, not exllamav3: exllamav3 2.0.0 is installed" in caplog.text


def test_torch_is_held_to_the_vram_given(monkeypatch: pytest.MonkeyPatch) -> None:
    fractions: list[float] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (6 << 30, 8 << 30))
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda fraction, _device: fractions.append(fraction)
    )
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 3 << 28)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 1 << 28)
    card = torch.device("cuda", 0)
    for limit in (2 << 30, None, 9 << 30, 1):
        hold_to(card, limit)
    hold_to(torch.device("cpu"), 1)
    assert fractions == [0.25, 1.0, 1.0, 1 / 32]
    # Half a GiB that torch keeps from an earlier call is there to be used.
    free = 13 << 29
    assert [device_bytes(card, limit) for limit in (2 << 30, None, 9 << 30)] == [2 << 30, free, free]


def test_auto_takes_it_where_both_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from exltune.engines.base import auto_engine

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(runtime, "import_exllamav3", lambda: types.ModuleType("exllamav3"))
    assert auto_engine() == ("exllamav3", None)
    monkeypatch.setattr(runtime.importlib.metadata, "version", lambda _name: "2.0.0")
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(runtime.importlib.metadata, "version", lambda _name: "2.0.0")
    name, reason = auto_engine()
    assert name == "reference"
    assert "exllamav3 2.0.0 is installed" in str(reason)


def test_without_a_gpu_it_is_refused_by_name(tiny_moe: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match=r"there is no CUDA device\. Use `engine` reference"):
        open_engine("exllamav3", tiny_moe.path)


def test_devices_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert runtime.named_devices([1]) == (torch.device("cuda", 1),)
    assert len(runtime.named_devices([])) == 2
    with pytest.raises(EngineError, match=r"no CUDA device 2, 7\. Choose from 0 to 1"):
        runtime.named_devices([0, 7, 2])
