"""`exltune deploy tabby --load` against a server with TabbyAPI's routes and traps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Outcome, exltune
from standin_tabby.server import ADMIN_KEY, API_KEY, Tabby, running

PLANNED = ("--gpus", "4GiB,4GiB", "--context", "512", "--cache", "5,4", "--slots", "4")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def quant(tmp_path: Path, exl3_dir: Callable[..., Path]) -> Path:
    """A quant in a model_dir of its own, beside another model."""
    models = tmp_path / "models"
    (models / "other").mkdir(parents=True)
    (models / "glm-3bpw").mkdir()
    for file in exl3_dir("glm4moe").iterdir():
        (models / "glm-3bpw" / file.name).symlink_to(file)
    return models / "glm-3bpw"


@pytest.fixture
def out(quant: Path, tmp_path: Path) -> Path:
    """What deploy wrote, with the server's keys in it."""
    folder = tmp_path / "deployed"
    outcome = exltune("deploy", "tabby", quant, *PLANNED, "--out", folder)
    assert outcome.code == 0, outcome.stderr
    (folder / "api_tokens.yml").write_text(yaml.safe_dump({"api_key": API_KEY, "admin_key": ADMIN_KEY}))
    return folder


@pytest.fixture
def tabby(quant: Path) -> Iterator[Tabby]:
    with running(Tabby(model_dir=quant.parent)) as server:
        yield server


def load(tabby: Tabby, out: Path, *more: object) -> Outcome:
    outcome = exltune("deploy", "tabby", "--load", tabby.url, "--out", out, "--timeout", "2", *more)
    for key in (ADMIN_KEY, API_KEY):
        assert key not in outcome.stdout + outcome.stderr
    return outcome


def refused(tabby: Tabby, out: Path, *words: str, more: tuple[object, ...] = (), code: int = 16) -> None:
    outcome = load(tabby, out, *more, "--json")
    assert outcome.code == code, outcome.stderr
    message = outcome.json["error"]["message"]
    assert all(word in message for word in words), message
    assert f"error: {message}" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_it_unloads_loads_checks_and_asks(tabby: Tabby, out: Path, quant: Path) -> None:
    assert (quant / "tabby_config.yml").is_file()
    outcome = load(tabby, out, "--json")
    assert outcome.code == 0, outcome.stderr
    served = outcome.json["served"]
    assert (served["model_name"], served["max_seq_len"], served["cache_mode"]) == ("glm-3bpw", 512, "5,4")
    assert (served["text"], served["completion_tokens"]) == ("Hello there.", 4)
    assert tabby.routes()[2:4] == [("POST", "/v1/model/unload"), ("POST", "/v1/model/load")]
    assert tabby.quantized_cache
    assert tabby.admin_headers == {ADMIN_KEY}
    # The request names nothing that TabbyAPI would drop; tabby_config.yml carries that.
    assert tabby.dropped == set()
    assert tabby.loaded is not None
    assert tabby.loaded["max_batch_size"] == 4
    assert tabby.loaded["autosplit_reserve"] == [512, 512]
    assert tabby.loaded["tool_format"] == "glm4_7"


def test_for_people(tabby: Tabby, out: Path) -> None:
    outcome = load(tabby, out)
    assert outcome.code == 0, outcome.stderr
    assert "glm-3bpw as planned and says: Hello there." in outcome.stdout


def test_a_loaded_path_is_loaded_anew(tabby: Tabby, out: Path, quant: Path) -> None:
    """TabbyAPI says finished and does nothing where the path is loaded: the old cache would stay."""
    tabby.loaded = {"path": quant.resolve(), "max_seq_len": 256, "cache_size": 256, "cache_mode": "FP16"}
    assert load(tabby, out).code == 0
    assert tabby.loaded is not None
    assert tabby.loaded["cache_mode"] == "5,4"


def test_a_plan_without_files(tabby: Tabby, quant: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{ADMIN_KEY}\n")
    (quant / "tabby_config.yml").write_text("model:\n  max_batch_size: 4\n")
    before = sorted(tmp_path.iterdir())
    arguments = ("deploy", "tabby", quant, *PLANNED, "--load", tabby.url, "--admin-key-file", tmp_path / "key")
    outcome = exltune(*arguments)
    assert outcome.code == 0, outcome.stderr
    assert sorted(tmp_path.iterdir()) == before
    # Written and loaded at once, with the keys of the server that runs.
    (quant / "tabby_config.yml").unlink()
    both = exltune(*arguments, "--out", tmp_path / "out")
    assert both.code == 0, both.stderr
    assert (tmp_path / "out" / "deployment.json").is_file()


def test_a_server_without_keys(quant: Path, out: Path) -> None:
    (out / "api_tokens.yml").unlink()
    with running(Tabby(model_dir=quant.parent, disable_auth=True)) as open_server:
        assert load(open_server, out).code == 0


def test_a_draft_model_comes_first_in_the_stream(tabby: Tabby, quant: Path, tmp_path: Path) -> None:
    folder = tmp_path / "drafted"
    planned = ("deploy", "tabby", quant, *PLANNED, "--draft", quant, "--draft-tokens", "3", "--out", folder, "--json")
    outcome = exltune(*planned)
    assert outcome.code == 0, outcome.stderr
    draft = outcome.json["deployment"]["draft"]
    # Weights and an fp16 cache: 2 layers, 512 tokens, 2 x 2 heads of 64, 2 bytes.
    plan = outcome.json["deployment"]["plan"]
    assert draft["size_bytes"] == plan["weights_bytes"] + 2 * 512 * 2 * 2 * 64 * 2
    assert plan["per_gpu"][0]["capacity_bytes"] == (4 << 30) - draft["size_bytes"]
    written = yaml.safe_load((quant / "tabby_config.yml").read_text())["draft_model"]
    assert written == {
        "draft_mode": "model",
        "draft_model_dir": str(quant.parent),
        "draft_model_name": "glm-3bpw",
        "draft_cache_mode": "FP16",
        "draft_num_tokens": 3,
    }
    (folder / "api_tokens.yml").write_text(yaml.safe_dump({"api_key": API_KEY, "admin_key": ADMIN_KEY}))
    assert load(tabby, folder).code == 0
    assert tabby.loaded is not None
    assert tabby.loaded["draft_model"]["draft_model_name"] == "glm-3bpw"


def test_a_thinking_model_has_answered(tabby: Tabby, out: Path) -> None:
    tabby.reply = {"role": "assistant", "content": None, "reasoning_content": "The user wants a greeting"}
    assert "The user wants a greeting" in load(tabby, out).stdout


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("memory", ("not enough memory to load glm-3bpw", "Insufficient VRAM", "less --context")),
        ("late", ("loading glm-3bpw failed: generator failed for key ***",)),
        ("cut", ("went away", "while loading glm-3bpw", "goes on at the server")),
        ("ends", ("ended before glm-3bpw was loaded",)),
        ("silent", ("nothing came for 2 s", "--timeout")),
        ("html", ("text/event-stream", "TabbyAPI server")),
        ("nonsense", ("answers something unknown: <busy>",)),
    ],
)
def test_loads_that_go_wrong(fault: str, words: tuple[str, ...], tabby: Tabby, out: Path) -> None:
    tabby.fault = fault
    refused(tabby, out, tabby.url, *words)


def test_keys_that_do_not_open(tabby: Tabby, out: Path, tmp_path: Path) -> None:
    tabby.echo_headers = True
    (tmp_path / "key").write_text("not-the-key-of-it")
    refused(tabby, out, "does not accept the key", more=("--admin-key-file", tmp_path / "key"))
    (tmp_path / "key").write_text(API_KEY)
    refused(tabby, out, "the key is an API key", "admin key", more=("--admin-key-file", tmp_path / "key"))
    (out / "api_tokens.yml").unlink()
    refused(tabby, out, "the server wants a key", "--api-tokens")
    assert ("POST", "/v1/model/unload") not in tabby.routes()


def test_what_a_server_echoes_is_hidden(tabby: Tabby, out: Path) -> None:
    tabby.echo_headers = True
    tabby.reply = {"status": 422, "detail": "Chat completions are disabled because a prompt template is not set."}
    refused(tabby, out, "prompt template is not set", "***", "chat template")


def test_a_missing_model_leaves_the_loaded_one(tabby: Tabby, out: Path, quant: Path) -> None:
    tabby.loaded = {"path": quant.parent / "other"}
    refused(tabby, out, "no model elsewhere", "glm-3bpw, other", "is still loaded", more=("--model-name", "elsewhere"))
    assert tabby.loaded is not None
    # Deeper folders are not listed, so the load itself tells.
    refused(tabby, out, "400", "Could not find the model path", more=("--model-name", "other/deep"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ({"cache_mode": "k5v4"}, ("cache_mode is FP16 instead of 5,4", "does not know the cache_mode 'k5v4'")),
        ({"cache_mode": "FP16"}, ("cache_mode is FP16 instead of 5,4",)),
        ({"cache_mode": "Q6"}, ("cache_mode is 6,6 instead of 5,4",)),
        ({"max_seq_len": 256}, ("max_seq_len is 256 instead of 512",)),
        ({"cache_size": 1024}, ("cache_size is 1024 instead of 512",)),
    ],
)
def test_a_server_that_runs_it_otherwise(
    override: dict[str, Any], words: tuple[str, ...], tabby: Tabby, out: Path, quant: Path
) -> None:
    """tabby_config.yml in the model's folder wins over the request, unchecked."""
    (quant / "tabby_config.yml").write_text(yaml.safe_dump({"model": {"max_batch_size": 4} | override}))
    refused(tabby, out, "not as planned", "tabby_config.yml", *words)
    if override == {"cache_mode": "k5v4"}:
        assert not tabby.quantized_cache


def test_a_server_that_misses_the_models_own_settings(tabby: Tabby, out: Path, quant: Path) -> None:
    (quant / "tabby_config.yml").unlink()
    refused(tabby, out, "max_batch_size is 128 instead of 4", "tabby_config.yml")


def test_an_odd_cache_size_is_an_error_of_the_load(tabby: Tabby, out: Path) -> None:
    record = json.loads((out / "deployment.json").read_text())
    record["settings"]["cache_size"] = 500
    (out / "deployment.json").write_text(json.dumps(record))
    (tabby.model_dir / "glm-3bpw" / "tabby_config.yml").unlink()
    refused(tabby, out, "loading glm-3bpw failed", "multiple of 256")


def test_an_empty_answer_is_none(tabby: Tabby, out: Path) -> None:
    tabby.reply = {"role": "assistant", "content": " "}
    refused(tabby, out, "completion is empty")


def test_no_server(tabby: Tabby, out: Path) -> None:
    for url, code, words in (
        ("http://127.0.0.1:9", 16, "no connection"),
        ("127.0.0.1:5000", 2, "no http address"),
        ("http://user:pass-word@127.0.0.1:5000", 2, "user or password"),
        (f"{tabby.url}/nowhere", 16, "answers 404"),
    ):
        outcome = exltune("deploy", "tabby", "--load", url, "--out", out)
        assert outcome.code == code, outcome.stderr
        assert words in outcome.stderr
        assert "pass-word" not in outcome.stderr
    assert load(tabby, out).code == 0
    assert exltune("deploy", "tabby", "--load", f"{tabby.url}/v1/", "--out", out).code == 0
