"""What deploy writes: keys that TabbyAPI knows, values that it accepts, secrets that nobody sees."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from standin_tabby.config_models import Config, LoadRequest, ModelFolderConfig

from exltune.errors import BudgetError, DataError, OutputExistsError, UsageError
from exltune.pipeline.deployment.deploy import DeployOptions, Split, plan_deployment, read_deployment, write_deployment
from exltune.pipeline.deployment.deploy_load import load_request
from exltune.pipeline.deployment.draft import DraftOptions
from exltune.publish.tabby_family import family_of
from exltune.publish.tabby_tokens import read_key_file, read_tokens
from exltune.schema.hardware import CacheBits

GIB = 1 << 30
CONFIGS = Path(__file__).resolve().parents[1] / "fixtures" / "configs"
GLM = CONFIGS / "glm-4.7.json"
CARDS = (24 * GIB,) * 6
SMALL_CARDS = (4 * GIB,) * 3
SECRET = "s3cret-of-the-server"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GLM-4.7 cut down to 5 layers of 8 experts: planned in no time."""
    config = json.loads(GLM.read_text()) | {"num_hidden_layers": 5, "n_routed_experts": 8}
    file = tmp_path_factory.mktemp("small") / "config.json"
    file.write_text(json.dumps(config))
    return file


def wish(**changes: Any) -> DeployOptions:
    settings: dict[str, Any] = {
        "gpus": CARDS,
        "context": 102400,
        "cache": CacheBits(k=5, v=4),
        "bits": 2.57,
        "models_dir": Path("/models"),
        "model_name": "GLM-4.7-2.57bpw",
    }
    return DeployOptions(**(settings | changes))


def brief(**changes: Any) -> DeployOptions:
    return wish(**({"gpus": SMALL_CARDS, "context": 10240} | changes))


def files(out: Path, source: Path, asked: DeployOptions, **options: Any) -> dict[str, Any]:
    write_deployment(plan_deployment(source, asked), out, **options)
    return {path.name: yaml.safe_load(path.read_text()) for path in out.glob("*.yml")}


def test_the_plan_in_tabbys_words(tmp_path: Path) -> None:
    written = files(tmp_path / "out", GLM, wish())
    model = written["config.yml"]["model"]
    assert model["max_seq_len"] == model["cache_size"] == 102400
    assert model["cache_mode"] == "5,4"
    assert 'cache_mode: "5,4"' in (tmp_path / "out" / "config.yml").read_text()
    assert model["autosplit_reserve"] == [512] * 6
    assert model["gpu_split_auto"]
    assert (model["model_dir"], model["model_name"]) == ("/models", "GLM-4.7-2.57bpw")
    assert (model["reasoning"], model["tool_format"]) == (True, "glm4_7")
    assert written["tabby_config.yml"]["model"]["max_batch_size"] == 16
    assert written["config.yml"]["draft_model"] == {"draft_mode": "disabled"}
    cards = written["docker-compose.yml"]["services"]["tabbyapi"]["deploy"]["resources"]["reservations"]["devices"]
    assert cards == [{"driver": "nvidia", "count": 6, "capabilities": ["gpu"]}]
    docker = (tmp_path / "out" / "Dockerfile").read_text()
    assert "exllamav3==1.6.5" in docker
    assert "half-integer" in docker
    assert "e632af41eba68abeadc3437c62674360f2f8cbf1" in docker


WISHES = {
    "autosplit": brief(),
    "odd context": brief(context=10001),
    "tensor parallel": brief(split=Split(tensor_parallel=True)),
    "manual split": brief(split=Split(manual=True)),
    "one card": brief(gpus=(12 * GIB,)),
    "n-grams": brief(draft=DraftOptions("ngram", None, 3)),
    "offloaded": brief(offload_layers=1),
    "fp16 cache": brief(cache=CacheBits(k=16, v=16), context=2000),
    "said by hand": brief(tool_format="hy3", reasoning=False),
}


@pytest.mark.parametrize("asked", WISHES.values(), ids=WISHES)
def test_tabby_knows_every_key_and_takes_every_value(asked: DeployOptions, small: Path, tmp_path: Path) -> None:
    written = files(tmp_path / "out", small, asked)
    Config.model_validate(written["config.yml"])
    checked = ModelFolderConfig.model_validate(written["tabby_config.yml"]).model
    assert checked.cache_size is not None
    assert checked.max_seq_len is not None
    assert checked.cache_size % 256 == 0
    assert 0 <= checked.cache_size - checked.max_seq_len < 256
    # Exactly one way to split, with a value for every card: TabbyAPI's own default covers GPU 0 alone.
    assert len(checked.autosplit_reserve or checked.gpu_split) == len(asked.gpus)
    assert bool(checked.autosplit_reserve) != bool(checked.gpu_split)
    request = load_request(read_deployment(tmp_path / "out"), "name")
    LoadRequest.model_validate(request)
    assert request.keys() <= LoadRequest.model_fields.keys()


def test_a_card_is_never_promised_more_than_it_has(small: Path, tmp_path: Path) -> None:
    split = files(tmp_path / "out", small, brief(split=Split(tensor_parallel=True)))["config.yml"]["model"]
    assert split["tensor_parallel"]
    # 4 GiB less the reserve and the CUDA context of half a GiB each, as planned.
    assert split["gpu_split"] == [3.0] * 3
    assert not split["gpu_split_auto"]


def test_the_largest_context_where_none_is_asked(small: Path) -> None:
    found = plan_deployment(small, brief(context=None, gpus=SMALL_CARDS[:2]))
    assert found.settings.max_seq_len == found.plan.max_context
    assert found.settings.cache_size - found.settings.max_seq_len in range(256)
    limited = plan_deployment(small, brief(context=None, gpus=(24 * GIB,)))
    assert limited.settings.max_seq_len == 202752


def test_what_does_not_fit_is_refused_in_the_planners_words(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"`gpus` is exceeded.*at most 2\.8\d\d bpw; another GPU of 24\.00 GiB"):
        files(tmp_path / "out", GLM, wish(bits=3.15))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chunk": 1000}, "`chunk` 1000 is not a multiple of 256.*Give 768"),
        ({"tool_format": "glm"}, "no tool format 'glm'.*glm4_7"),
        ({"port": 70000}, "`port` 70000"),
        ({"host": "localhost"}, "`host` 'localhost' is not an IP address"),
        ({"models_dir": None}, "`models` FOLDER and `model_name` NAME"),
        ({"model_name": "a/b"}, "is not a name of a folder"),
        ({"bits": None}, "Give `bits`"),
        ({"context": 300000}, "`context` 300000 is above"),
        ({"draft": DraftOptions("mtp")}, "`mtp` needs the quant itself"),
        ({"draft": DraftOptions("ngram", None, 0)}, "`draft_tokens` 0"),
    ],
)
def test_wishes_that_cannot_be(small: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan_deployment(small, brief(**changes))


def test_secrets_are_the_owners_alone_at_once(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    fdopen = os.fdopen

    def watched(handle: int, *args: Any, **options: Any) -> Any:
        modes.append((stat.S_IMODE(os.fstat(handle).st_mode), os.fstat(handle).st_size))
        return fdopen(handle, *args, **options)

    monkeypatch.setattr(os, "fdopen", watched)
    before = os.umask(0)
    try:
        files(tmp_path / "out", small, brief())
    finally:
        os.umask(before)
    assert modes == [(0o600, 0)]
    assert stat.S_IMODE((tmp_path / "out" / "api_tokens.yml").stat().st_mode) == 0o600
    found = read_tokens(tmp_path / "out" / "api_tokens.yml")
    key = found.admin_key.get_secret_value()
    assert len(key) == 32
    assert key not in repr(found)
    others = [path.read_text() for path in (tmp_path / "out").iterdir() if path.name != "api_tokens.yml"]
    assert not any(key in text for text in others)


def test_a_second_deployment_keeps_the_keys_and_needs_force(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    files(out, small, brief())
    keys = (out / "api_tokens.yml").read_text()
    with pytest.raises(OutputExistsError):
        files(out, small, brief(context=5120))
    assert read_deployment(out).settings.max_seq_len == 10240
    report = write_deployment(plan_deployment(small, brief(context=5120)), out, force=True)
    assert report.kept_tokens
    assert (out / "api_tokens.yml").read_text() == keys
    assert stat.S_IMODE((out / "api_tokens.yml").stat().st_mode) == 0o600
    assert read_deployment(out).settings.max_seq_len == 5120
    (out / "api_tokens.yml").unlink()
    files(out, small, brief(), force=True)
    assert (out / "api_tokens.yml").read_text() != keys


def test_force_never_replaces_a_checkout_of_tabbyapi(small: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("network:\n")
    with pytest.raises(OutputExistsError, match=r"deployment\.json"):
        files(tmp_path, small, brief(), force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yml"]


def test_nothing_half_written(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exltune.pipeline.deployment.deploy.dockerfile", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        files(tmp_path / "deep" / "out", small, brief())
    assert not any(tmp_path.iterdir())


def test_keys_that_cannot_be_read_are_never_quoted(tmp_path: Path) -> None:
    file = tmp_path / "api_tokens.yml"
    for content in (
        f"admin_key: {SECRET}\n",
        f"admin_key: [{SECRET}]\napi_key: x\n",
        f"{SECRET}: [\n",
        f"admin_key: '{SECRET} two'\napi_key: a\n",
        f'admin_key: "{SECRET}\\n"\napi_key: a\n',
        f"admin_key: a\napi_key: a\nother: {SECRET}\n",
    ):
        file.write_text(content)
        with pytest.raises(DataError, match="api_key and admin_key") as caught:
            read_tokens(file)
        assert SECRET not in str(caught.value)
        assert caught.value.__cause__ is None
    file.write_text(f"{SECRET} and more")
    with pytest.raises(DataError, match="no key") as caught:
        read_key_file(file)
    assert SECRET not in str(caught.value)
    file.write_text(f" {SECRET}\n")
    assert read_key_file(file).get_secret_value() == SECRET
    file.write_text(f"admin_key: {SECRET}\napi_key: [one, two]\n")
    assert read_tokens(file).admin_key.get_secret_value() == SECRET


GLM_CALL = "<|assistant|><think></think><tool_call>{name}<arg_key>k</arg_key><arg_value>v</arg_value></tool_call>"


@pytest.mark.parametrize(
    ("model_type", "template", "expected"),
    [
        ("glm4_moe", None, (True, "glm4_7")),
        ("glm4_moe", GLM_CALL, (True, "glm4_7")),
        # INTELLECT-3 has GLM-4.5-Air's architecture and calls tools as Qwen3-Coder does.
        ("glm4_moe", "<think><function=f><parameter=p>", (True, "qwen3_coder")),
        ("qwen3_5_moe", "<think><function=f>", (True, "qwen3_5")),
        ("qwen3_moe", "<function=f>", (False, "qwen3_coder")),
        # Qwen3's JSON calls have no parser in TabbyAPI.
        ("qwen3", '<think><tool_call>{"name": "f"}</tool_call>', (True, None)),
        ("gpt_oss", "<|channel|>analysis<|message|>", None),
        ("llama", "{{ bos_token }}", None),
        ("llama", None, None),
    ],
)
def test_families(model_type: str, template: str | None, expected: tuple[bool, str] | None, tmp_path: Path) -> None:
    if template is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    found = family_of({"model_type": model_type}, tmp_path)
    assert expected == (None if found is None else (found.reasoning, found.tool_format))
    if template is not None:
        named = [{"name": "default", "template": template}]
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
        assert family_of({"model_type": model_type}, tmp_path) == found
        (tmp_path / "tokenizer_config.json").write_text("{")
        (tmp_path / "chat_template.jinja").write_text(template)
        assert family_of({"model_type": model_type}, tmp_path) == found
