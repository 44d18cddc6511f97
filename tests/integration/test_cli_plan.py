"""`exltune plan` on configs, recipes and finished quants: its bytes, exit codes and messages."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from command_line import EXECUTABLE, exltune, fail, succeed, write_recipe
from safetensors import safe_open

CONFIGS = Path(__file__).resolve().parents[1] / "fixtures" / "configs"
GLM_4_7 = CONFIGS / "glm-4.7.json"
GIB = 1 << 30


def stored(directory: Path) -> dict[str, int]:
    """Name -> bytes of every tensor of a directory."""
    sizes = {}
    for file in directory.glob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118
                sizes[name] = handle.get_tensor(name).nbytes
    return sizes


def linears(sizes: dict[str, int]) -> int:
    """Bytes of linears, router gates and head: everything but embedding, norms and the router's correction."""
    rest = ("norm.weight", "embed_tokens.weight", "e_score_correction_bias")
    return sum(size for name, size in sizes.items() if not name.endswith(rest))


def test_a_quant_without_its_tensors_is_no_base_model(exl3_dir: Callable[..., Path], tmp_path: Path) -> None:
    config = exl3_dir("qwen3") / "config.json"
    (tmp_path / "config.json").write_bytes(config.read_bytes())
    fail(10, "safetensors are missing", here=tmp_path, arguments=("plan", tmp_path, "--vram", "1GiB"))
    assert succeed("plan", tmp_path / "config.json", "--vram", "4GiB")["fits"]


@pytest.mark.parametrize(("bits", "head_bits", "codebook"), [(3, 6, "mul1"), (2.5, 4, "mul1"), (4, 8, "mcg")])
def test_a_uniform_quant_byte_for_byte(
    kind: str,
    bits: float,
    head_bits: float,
    codebook: str,
    model_dir: Callable[[str], Path],
    exl3_dir: Callable[..., Path],
) -> None:
    built = exl3_dir(kind, bits, codebook, head_bits)
    sizes = stored(built)
    planned = succeed("plan", model_dir(kind), "--bits", bits, "--head-bits", head_bits)
    found = succeed("plan", built)
    assert planned["disk_bytes"] == found["disk_bytes"] == sum(sizes.values())
    assert planned["weights_bytes"] == found["weights_bytes"] == linears(sizes)
    assert planned["bpw"] == found["bpw"]
    assert found["head_bits"] == head_bits


def test_a_mix_byte_for_byte(moe_model: Path, quants: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, moe_model, 2, tensors=mixed(moe_model))
    planned = succeed("plan", recipe, "--model", moe_model)
    succeed("build", recipe, "--quants", quants, "--out", tmp_path / "built")
    sizes = stored(tmp_path / "built")
    found = succeed("plan", tmp_path / "built")
    assert planned["weights_bytes"] == found["weights_bytes"] == linears(sizes)
    assert planned["disk_bytes"] == found["disk_bytes"] == sum(sizes.values())
    # The built model carries its recipe.
    beside = succeed("plan", tmp_path / "built" / "recipe.yaml")
    assert beside["weights_bytes"] == found["weights_bytes"]


def mixed(model: Path) -> dict[str, float]:
    groups = succeed("inspect", model)["groups"][:-1]
    return {key: 2 + number % 3 for number, group in enumerate(groups) for key in group["tensors"]}


def test_exit_codes_and_json() -> None:
    asked = ("plan", GLM_4_7, "--bits", "3.15", "--context", "102400", "--cache", "5,4", "--json")
    refused = exltune(*asked, "--gpus", "3x48GiB")
    assert refused.code == 4
    assert refused.stderr == ""
    assert not refused.json["fits"]
    assert refused.json["binding"] == "gpus"
    assert len(refused.json["per_gpu"]) == 3
    assert {remedy["change"] for remedy in refused.json["remedies"]} >= {"context", "cache", "bpw", "gpus"}
    fitting = exltune(*asked, "--gpus", "2x96GiB")
    assert fitting.code == 0
    assert fitting.json["fits"]
    assert fitting.json["max_bpw"] > 3.15
    names = {"fits", "max_bpw", "weights_bytes", "disk_bytes", "kv_bytes", "kv_bytes_per_token", "overhead_bytes"}
    assert names | {"slack_bytes", "max_context", "per_gpu"} <= set(fitting.json)


def test_tables_for_people() -> None:
    asked = ("plan", GLM_4_7, "--bits", "3.15", "--context", "102400", "--cache", "5,4")
    refused = exltune(*asked, "--gpus", "6x24GiB")
    assert refused.code == 4
    assert "holds 24.02 GiB of weights and cache: 22.32 MiB too much without any overhead" in refused.stdout
    assert "It does not fit: --gpus" in refused.stdout
    assert "another GPU of 24.00 GiB" in refused.stdout
    fitting = exltune(*asked, "--vram", "155GB")
    assert fitting.code == 0
    assert "138.88 GB" in fitting.stdout
    assert "GiB" not in fitting.stdout
    assert "It fits. --vram is the tightest limit." in fitting.stdout


def test_without_limits_it_tells_sizes() -> None:
    outcome = exltune("plan", GLM_4_7, "--bits", "3", "--head-bits", "6")
    assert outcome.code == 0
    assert "123.87 GiB" in outcome.stdout
    assert "No limit was given" in outcome.stdout


def test_the_command_alone_takes_no_time() -> None:
    start = time.perf_counter()
    done = subprocess.run([EXECUTABLE, "plan", "--help"], capture_output=True, text=True, check=True)
    assert "--offload-layers" in done.stdout
    # 0.2 s on an idle machine.
    assert time.perf_counter() - start < 2


def test_readings_move_the_constants(tmp_path: Path) -> None:
    readings = tmp_path / "readings.json"
    readings.write_text(json.dumps({"readings": [{"non_torch": "410MiB"}], "constants": {"reserve_bytes": "96MiB"}}))
    asked = ("plan", GLM_4_7, "--gpus", "6x24GiB", "--context", "102400", "--cache", "5,4")
    found = succeed(*asked, "--calibrate", readings)
    assert {change["name"] for change in found["recalibrated"]} == {"context_bytes", "reserve_bytes"}
    assert found["max_bpw"] > succeed(*asked)["max_bpw"]
    shown = exltune(*asked, "--calibrate", readings)
    assert "context_bytes: 512.00 MiB -> 410.00 MiB, from readings" in shown.stdout


def config(tmp_path: Path, **changes: object) -> Path:
    content = json.loads(GLM_4_7.read_text()) | changes
    path = tmp_path / "odd.json"
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


@pytest.mark.parametrize(
    ("code", "options", "words"),
    [
        (2, ("--vram", "144"), ("--vram '144' has no unit", "144GiB", "144GB")),
        (2, ("--gpus", "6x24"), ("--gpus", "no unit")),
        (2, ("--gpus", "0x24GiB"), ("--gpus", "'0' cards")),
        (2, ("--size", "-1GiB"), ("--size",)),
        (2, ("--ram", "64"), ("--ram",)),
        (2, ("--cache", "k5v4"), ("--cache 'k5v4'", "Write 5,4")),
        (2, ("--cache", "1,4"), ("--cache", "2 to 8")),
        (2, ("--context", "0"), ("--context 0",)),
        (2, ("--context", "300000"), ("--context 300000", "202752", "max_position_embeddings")),
        (2, ("--chunk", "-1"), ("--chunk -1",)),
        (2, ("--slots", "0"), ("--slots 0",)),
        (2, ("--bits", "9"), ("--bits 9",)),
        (2, ("--bits", "-2"), ("--bits -2",)),
        (2, ("--head-bits", "0"), ("--head-bits 0",)),
        (2, ("--target-bpw", "-1"), ("--target-bpw -1",)),
        (2, ("--model", "x"), ("--model belongs to recipes",)),
        (2, ("--tensor-parallel", "--vram", "48GiB"), ("--tensor-parallel",)),
    ],
)
def test_bad_options(code: int, options: tuple[str, ...], words: tuple[str, ...]) -> None:
    check(code, words, "plan", GLM_4_7, *options)


@pytest.mark.parametrize(
    ("code", "changes", "words"),
    [
        (11, {"architectures": ["NoSuchForCausalLM"]}, ("NoSuchForCausalLM", "Supported are")),
        (10, {"hidden_size": None}, ("hidden_size is missing",)),
        (10, {"num_key_value_heads": -8}, ("num_key_value_heads is -8",)),
        (10, {"n_routed_experts": "many"}, ("n_routed_experts", "many")),
        (10, {"num_key_value_heads": 200}, ("num_key_value_heads is 200", "num_attention_heads")),
        (10, {"num_hidden_layers": 10**9}, ("num_hidden_layers is 1000000000",)),
        (10, {"n_routed_experts": 10**9}, ("n_routed_experts", "is 1000000000")),
    ],
)
def test_bad_configs(tmp_path: Path, code: int, changes: dict[str, object], words: tuple[str, ...]) -> None:
    check(code, ("odd.json", *words), "plan", config(tmp_path, **changes))


def test_bad_sources(tmp_path: Path, exl3_dir: Callable[..., Path]) -> None:
    check(10, ("nothing: there is no such path", "config.json"), "plan", tmp_path / "nothing")
    check(10, ("nothing.json: there is no such path",), "plan", tmp_path / "nothing.json")
    (tmp_path / "notes.txt").write_text("")
    check(10, ("notes.txt: it is not a directory, recipe (.yaml) or config (.json)",), "plan", tmp_path / "notes.txt")
    check(10, ("no config.json",), "plan", tmp_path)
    check(5, ("cannot be read",), "plan", tmp_path / "nothing.yaml")
    (tmp_path / "torn.json").write_text('{"architectures": [')
    check(13, ("torn.json",), "plan", tmp_path / "torn.json")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"tensors": {"model.layers.*": 2.25}}))
    check(10, ("no model is known", "--model"), "plan", recipe)
    check(5, ("2.25 bits",), "plan", recipe, "--model", GLM_4_7)
    check(2, ("--bits", "recipe"), "plan", recipe, "--model", GLM_4_7, "--bits", "3")
    check(2, ("--head-bits", "finished quant"), "plan", exl3_dir("qwen3"), "--head-bits", "6")
    (tmp_path / "readings.json").write_text('{"readings": [{"gpu_memory": 3}]}')
    check(7, ("gpu_memory",), "plan", GLM_4_7, "--calibrate", tmp_path / "readings.json")
    (tmp_path / "readings.json").write_text('{"readings": [{"largest_transient": "1GiB", "chunk": 0}]}')
    check(7, ("readings.0.chunk",), "plan", GLM_4_7, "--calibrate", tmp_path / "readings.json")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--contexts", "nan"), ("--contexts 'nan' holds",)),
        (("--contexts", "1024,inf"), ("--contexts '1024,inf' holds",)),
        (("--contexts", "1.5"), ("--contexts '1.5' has 1.5 tokens",)),
        (("--contexts", "1024", "--caches", "k5v4"), ("--caches 'k5v4'",)),
        (("--contexts", "1024", "--caches", ";"), ("--caches names no cache",)),
    ],
)
def test_bad_options_of_a_trade(tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]) -> None:
    check(2, words, "tradeoff", tmp_path / "measurement.json", "--vram", "1GiB", *options)


def check(code: int, words: tuple[str, ...], *arguments: object) -> None:
    """One line on standard error with these words, the same in JSON."""
    outcome = exltune(*arguments, "--json")
    assert outcome.code == code, outcome.stderr
    message = outcome.json["error"]["message"]
    assert outcome.stderr == f"error: {message}\n"
    assert all(word in message for word in words), message
