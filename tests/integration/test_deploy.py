"""`exltune deploy tabby OUT`: the files, beside the model and apart from it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from command_line import exltune, fail, succeed
from safetensors.torch import save_file
from standin_tabby.config_models import Config

PLANNED = ("--gpus", "4GiB,4GiB", "--context", "300", "--slots", "4")


@pytest.fixture
def quant(tmp_path: Path, exl3_dir: Callable[..., Path]) -> Path:
    folder = tmp_path / "models" / "glm $1: 3bpw"
    folder.mkdir(parents=True)
    for file in exl3_dir("glm4moe").iterdir():
        (folder / file.name).symlink_to(file)
    return folder


def test_files_for_a_quant(quant: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    out = tmp_path / "out"
    outcome = exltune("deploy", "tabby", quant, *PLANNED, "--cache", "5,4", "--out", out)
    assert outcome.code == 0, outcome.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        *("Dockerfile", "api_tokens.yml", "config.yml", "deployment.json", "docker-compose.yml")
    ]
    config = Config.model_validate(yaml.safe_load((out / "config.yml").read_text()))
    assert (config.model.max_seq_len, config.model.cache_size) == (300, 512)
    assert (config.model.model_dir, config.model.model_name) == (str(quant.parent), quant.name)
    assert (quant / "tabby_config.yml").is_file()
    keys = yaml.safe_load((out / "api_tokens.yml").read_text())
    said = outcome.stdout + outcome.stderr + caplog.text + (out / "deployment.json").read_text()
    assert not any(key in said for key in keys.values())
    volumes = yaml.safe_load((out / "docker-compose.yml").read_text())["services"]["tabbyapi"]["volumes"]
    # Compose reads $ as a variable; the path is the host's inside too, so that config.yml holds for both.
    assert volumes[2]["source"] == volumes[2]["target"] == str(quant).replace("$", "$$")


def test_the_recipe_says_the_cache(quant: Path, tmp_path: Path) -> None:
    detail = {
        "source": "knapsack",
        "choices": {},
        "size_bytes": 1,
        "head_choice": "6",
        "cache": "6,5",
        "provenance": {"exltune_version": "0", "engine": "e", "model_path": "m", "model_sha256": "0"},
    }
    (quant / "recipe.yaml").write_text(yaml.safe_dump({"tensors": {}, "exltune": detail}))
    found = succeed("deploy", "tabby", quant, *PLANNED, "--out", tmp_path / "out")
    assert found["deployment"]["settings"]["cache_mode"] == "6,5"
    found = succeed("deploy", "tabby", quant, *PLANNED, "--cache", "fp16", "--out", tmp_path / "out", "--force")
    assert found["deployment"]["settings"]["cache_mode"] == "FP16"


def test_an_mtp_layer_takes_its_place_on_the_first_card(quant: Path, tmp_path: Path) -> None:
    beyond = {"model.layers.2.eh_proj.weight": torch.zeros(128, 64, dtype=torch.float16)}
    save_file(beyond, quant / "mtp.safetensors")
    found = succeed("deploy", "tabby", quant, *PLANNED, "--mtp", "--out", tmp_path / "out")["deployment"]
    # The tensor, and one layer's fp16 cache of 512 tokens: keys and values of 2 heads of 64.
    assert found["draft"]["size_bytes"] == 128 * 64 * 2 + 512 * 2 * 2 * 64 * 2
    assert found["plan"]["per_gpu"][0]["capacity_bytes"] == (4 << 30) - found["draft"]["size_bytes"]
    written = yaml.safe_load((quant / "tabby_config.yml").read_text())
    assert written["draft_model"] == {"draft_mode": "mtp", "draft_cache_mode": "FP16"}


def test_nothing_is_overwritten(quant: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (quant / "tabby_config.yml").write_text("model: {}\n")
    asked = ("deploy", "tabby", quant, *PLANNED, "--out", out)
    fail(8, "tabby_config.yml", "Move it away", "--force", here=tmp_path, arguments=asked)
    (quant / "tabby_config.yml").unlink()
    succeed(*asked)
    fail(8, "out", "--force", here=tmp_path, arguments=asked)
    # The model's own file is as this plan has it, so only the folder is in the way.
    succeed(*("deploy", "tabby", quant, *PLANNED, "--out", tmp_path / "again"))


def test_bad_input(quant: Path, tmp_path: Path, model_dir: Callable[[str], Path]) -> None:
    here, out = tmp_path, ("--out", tmp_path / "out")
    for code, words, arguments in (
        (2, ("--gpus", "6x24GiB"), (quant, *out)),
        (2, ("--out",), (quant, "--gpus", "4GiB")),
        (2, ("--load",), ()),
        (2, ("--load", "plan"), ("--load", "http://127.0.0.1:9")),
        (2, ("deployment.json",), ("--load", "http://127.0.0.1:9", "--out", quant)),
        (2, ("--cache 'k5v4'", "Write 5,4"), (quant, *PLANNED, *out, "--cache", "k5v4")),
        (2, ("--draft, --mtp",), (quant, *PLANNED, *out, "--mtp", "--ngram")),
        (2, ("--draft-tokens",), (quant, *PLANNED, *out, "--draft-tokens", "2")),
        (2, ("holds no MTP layer",), (quant, *PLANNED, *out, "--mtp")),
        (2, ("--models",), (quant, *PLANNED, *out, "--models", tmp_path)),
        (2, ("--context 600", "limit of 512"), (quant, "--gpus", "4GiB", "--context", "600", *out)),
        (4, ("does not fit", "--gpus"), (quant, "--gpus", "1GiB", "--context", "512", *out)),
        (4, ("draft model alone",), (quant, "--gpus", "300KiB", "--context", "512", "--draft", quant, *out)),
        (6, ("no EXL3 tensors",), (model_dir("glm4moe"), *PLANNED, *out)),
        (7, ("cannot be read",), ("--load", "http://127.0.0.1:9", *out, "--admin-key-file", tmp_path / "none")),
    ):
        if code == 7:
            succeed("deploy", "tabby", quant, *PLANNED, *out)
        fail(code, *words, here=here, arguments=("deploy", "tabby", *arguments))
