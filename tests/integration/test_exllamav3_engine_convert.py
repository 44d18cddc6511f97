"""exllamav3's own conversion, started by the engine in a process of its own."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from command_line import fail, largest_file, succeed
from real_models import GLM4_MOE, LLAMA, write_model

from exltune.budget import SizeModel, directory_size
from exltune.engines.base import Converter, ConvertJob
from exltune.engines.exllamav3 import converter
from exltune.engines.exllamav3.engine import ExllamaEngine
from exltune.errors import EngineError
from exltune.exl3.directory import QuantDir
from exltune.inventory import load_inventory
from exltune.schema.mix import Mix
from exltune.store.quants.base_quants import find_base_quants
from tests.standin.devices import exllamav3_devices
from tests.standin.hook import child_pythonpath, native

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

TOKENS = torch.randint(0, 300, (6, 64), generator=torch.Generator().manual_seed(2))


@pytest.fixture(autouse=True)
def standin_in_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", child_pythonpath())


def job_in(folder: Path, bits: float = 2, **changes: object) -> ConvertJob:
    (folder / "out").mkdir(exist_ok=True)
    settings = {"bits": bits, "head_bits": 4.0, "codebook": "mul1", "out": folder / "out", "work_dir": folder / "work"}
    return ConvertJob(**(settings | changes))


@pytest.fixture(scope="module")
def small_moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one sparse layer; read only."""
    sparse = GLM4_MOE | {"num_hidden_layers": 1, "first_k_dense_replace": 0, "n_routed_experts": 2}
    return write_model(tmp_path_factory.mktemp("models") / "glm", "Glm4Moe", sparse)


def test_base_quants_are_made_by_the_converter(
    small_moe: Path, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exltune.engines.exllamav3.engine.named_devices", lambda _numbers: exllamav3_devices()[:1])
    words = [
        "quantize",
        small_moe,
        "--out",
        tmp_path,
        "--bits",
        "2",
        "--head-bits",
        "4",
        "--engine",
        "exllamav3",
        *data,
    ]
    succeed(*words)
    (found,) = find_base_quants(tmp_path, small_moe)
    assert (found.bits, found.head_bits, found.codebook) == (2.0, 4.0, "mul1")
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["2bpw_H4"]
    assert list(tmp_path.glob(".exltune/*")) == []
    succeed(*words)  # Nothing is left to do.
    assert isinstance(ExllamaEngine(small_moe, {}, devices=exllamav3_devices()[:1]), Converter)
    engine = ExllamaEngine(small_moe, {"2": found.path}, devices=exllamav3_devices()[:1])
    ids = [group.id for group in (*engine.inventory.groups, engine.inventory.head)]
    (score,) = engine.score([Mix(name="2", choices=dict.fromkeys(ids, "2"))], TOKENS)
    assert 0.001 < sum(score.kl_ref_mix) / TOKENS.numel() < 5


def test_hq_is_exllamav3s_own(
    moe_model: Path, quants: Path, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[ConvertJob] = []

    def taken(_model: Path, _inventory: object, job: ConvertJob, tokens: torch.Tensor, *_more: object) -> None:
        jobs.append(job)
        shutil.copytree(quants / "2bpw_H6", job.out, dirs_exist_ok=True)
        job.work_dir.mkdir(parents=True)
        words = converter._arguments(moe_model, job, tmp_path / "cal", tokens, [0])
        assert words[words.index("--hq") + 1] == "2"

    monkeypatch.setattr("exltune.engines.exllamav3.engine.named_devices", lambda _numbers: exllamav3_devices()[:1])
    monkeypatch.setattr("exltune.engines.exllamav3.engine.convert", taken)
    words = ("quantize", moe_model, "--out", tmp_path, "--bits", "2", "--hq", "2", *data, "--engine")
    assert succeed(*words, "exllamav3")["quants"] == [str(tmp_path / "2bpw_H6_hq2")]
    assert [job.hq for job in jobs] == [2]
    fail(2, "engine reference has no --hq", here=tmp_path, arguments=(*words, "reference"))


def test_a_failed_conversion_shows_its_last_lines(moe_model: Path, tmp_path: Path) -> None:
    engine = ExllamaEngine(moe_model, {}, devices=exllamav3_devices()[:1])
    with pytest.raises(EngineError, match=r"conversion failed: .*--bits must be between 1 and 8.*same command again"):
        engine.convert(job_in(tmp_path, bits=9), TOKENS)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama of one layer; read only."""
    return write_model(tmp_path_factory.mktemp("models") / "llama", "Llama", LLAMA)


@pytest.mark.parametrize("engine", ["exllamav3", "reference"])
def test_a_recipe_is_quantized_anew(
    llama: Path, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setattr("exltune.engines.exllamav3.engine.named_devices", lambda _numbers: exllamav3_devices()[:1])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text('head_bits: 4\ntarget_bpw: 2.3\ntensors: {"*": 2, "*.down_proj": 3, "*.o_proj": 16}')
    out = tmp_path / "mix"
    succeed("build", recipe, "--requantize", "--model", llama, "--out", out, "--engine", engine, *data)
    inventory, quant = load_inventory(llama), QuantDir(out)
    bits = {group.id: {quant.bits(key) for key in group.tensors} for group in (*inventory.groups, inventory.head)}
    expected = {"0.attn.o": 16.0, "0.mlp.down": 3.0, "head": 4.0}
    assert bits == {id_: {expected.get(id_, 2.0)} for id_ in bits}
    mix = {id_: found.pop() for id_, found in bits.items()}
    assert directory_size(inventory, quant) == SizeModel(inventory, "mul1").mix_size(mix)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".mix")] == []


def test_a_conversion_goes_on_from_its_checkpoint(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converter, "CHECKPOINT_SECONDS", 0)
    engine = ExllamaEngine(llama, {}, devices=exllamav3_devices()[:1])
    job = job_in(tmp_path)
    tokens = TOKENS[:, :8]
    if native():
        # Triton compiles for these shapes at first use, into files that may be larger.
        (tmp_path / "before").mkdir()
        engine.convert(job_in(tmp_path / "before"), tokens)
    # What is kept on the way is smaller than the whole model.
    with (
        largest_file(110 << 10),
        pytest.raises(EngineError, match=r"conversion failed: .*too large.*ulimit -f.* from its last checkpoint"),
    ):
        engine.convert(job, tokens)
    engine.convert(job, tokens)
    log = (job.work_dir / converter.LOG).read_text()
    assert "Resuming" in log
    assert "Quantized: " not in log.partition("Resuming")[2]
    assert QuantDir(job.out).bits("model.layers.0.self_attn.q_proj") == 2.0


@pytest.mark.parametrize(
    ("last_lines", "code", "told"),
    [
        ("OSError: [Errno 28] No space left on device", 1, r"No space left on device\. Make room on the disk and run"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried", 1, r"Tried\. Free memory of the GPU, .* and run"),
        ("torch.AcceleratorError: CUDA error: an illegal", 1, r"an illegal\. See nvidia-smi .* and run the same"),
        ("", -9, r"failed: it was killed by signal 9\. Make room in RAM"),
        (" -- Quantized: x", -9, r"-- Quantized: x; it was killed by signal 9\. Make room in RAM"),
        ("", 3, r"failed: it ended with 3\. Mend that and run"),
    ],
)
def test_a_failed_conversion_says_what_helps(last_lines: str, code: int, told: str, tmp_path: Path) -> None:
    error = converter.failure(last_lines, code, tmp_path / "log")
    assert re.search(told, str(error))
    assert str(error).endswith("it goes on from its last checkpoint.")


def test_requantize_needs_a_model_and_its_recipe(llama: Path, tmp_path: Path, data: list[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text('{"target_bpw": 2, "tensors": {"*.nothing": 2}}')
    words = ("build", recipe, "--out", tmp_path / "mix", *data)
    anew = (*words, "--requantize", "--model", llama, "--engine", "reference")
    fail(2, "--requantize needs the unquantized model", here=tmp_path, arguments=(*words, "--requantize"))
    fail(2, "no base quants to take from", here=tmp_path, arguments=words)
    fail(5, "matches no quantizable linear", here=tmp_path, arguments=anew)
    fail(2, "engine reference runs on the CPU", here=tmp_path, arguments=(*anew, "--devices", "0"))
