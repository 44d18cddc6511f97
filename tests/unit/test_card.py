"""Parts of a card: what counts as the front, how sizes are written, which paths and files are published."""

import json
from pathlib import Path

import pytest
from card_numbers import unsourced

from exltune.errors import UsageError
from exltune.pipeline.publication.card_plan import memories, served
from exltune.pipeline.publication.public_files import without_folders
from exltune.publish.card_metadata import check_repo_id, license_of, pipeline_tag, source_repo, tags
from exltune.publish.card_render import size
from exltune.publish.card_rows import STANDARD_ERRORS, front
from exltune.publish.hub_files import branch_files
from exltune.schema.card import CardMemory, CardRow


def row(name: str, size_bytes: int, kl: float, kind: str = "base", contexts: tuple[int | None, ...] = ()) -> CardRow:
    return CardRow(
        name=name,
        branch=name,
        kind=kind,
        size_bytes=size_bytes,
        size_gib=size_bytes / 2**30,
        size_gb=size_bytes / 1e9,
        download_bytes=size_bytes,
        download_gb=size_bytes / 1e9,
        bpw=3,
        head_bpw=6,
        kl_quant_ref=kl,
        kl_quant_ref_half=0.01,
        kl_ref_quant=kl,
        kl_ref_quant_half=0.01,
        perplexity=7,
        top=(1, 2, 3, 4, 5),
        contexts=contexts,
    )


def test_the_front_leaves_out_what_a_smaller_quant_beats():
    rows = [row("c", 30, 0.2), row("a", 10, 0.5), row("b", 20, 0.1), row("d", 40, 0.05), row("e", 20, 0.3)]
    assert [one.name for one in front(rows)] == ["a", "b", "d"]


def test_half_an_interval():
    assert pytest.approx(1.959963984540054) == STANDARD_ERRORS


@pytest.mark.parametrize(
    ("value", "shown"),
    [(123.8671, "123.87"), (1.0, "1.00"), (0.5, "0.500"), (0.0008704, "0.000870"), (0.0, "0.00"), (-1.5, "-1.50")],
)
def test_sizes(value, shown):
    assert size(value) == shown


def test_columns_begin_with_what_holds_the_smallest():
    found = memories((), [30 << 30, 60 << 30])
    assert [memory.label for memory in found] == ["32GiB", "2x24GiB", "80GiB"]
    assert [memory.label for memory in memories((), [900 << 30])] == ["4x96GiB"]
    assert memories(("24GiB,48GiB",), [1])[0].gpus == (24 << 30, 48 << 30)


def test_the_tuned_quant_is_the_one_to_serve():
    columns = (CardMemory(label="1x", gpus=(1,)), CardMemory(label="2x", gpus=(2,)))
    rows = [row("small", 1, 0.5, contexts=(100, 200)), row("mix", 2, 0.2, "tuned", (None, 4096))]
    found = served(rows, columns)
    assert found is not None
    assert (found.branch, found.gpus, found.context) == ("mix", "2x", 4096)
    assert served([row("large", 9, 0.1, contexts=(None, None))], columns) is None


def test_paths_lose_their_folders():
    content = {"a": ["/home/me/x.json", "C:\\me\\y", "./z/w", "text of / slashes", "/"], "b": {"/c/d": 1}}
    assert without_folders(content) == {
        "a": ["x.json", "y", "./z/w", "text of / slashes", "/"],
        "b": {"/c/d": 1},
    }


def test_front_matter_from_the_base_model():
    assert pipeline_tag({}, {}) == "text-generation"
    assert pipeline_tag({"vision_config": {}}, {}) == "image-text-to-text"
    assert pipeline_tag({"vision_config": {}}, {"pipeline_tag": "any-to-any"}) == "any-to-any"
    assert tags({"model_type": "exl3"}, moe=False) == ("exl3", "exllamav3", "exltune")
    assert license_of({"license": "other", "license_name": "odd"}).name == "odd"
    assert source_repo(Path("/hub/models--zai-org--GLM-4.7/snapshots/abc")) == "zai-org/GLM-4.7"
    with pytest.raises(UsageError, match="`base_model`"):
        source_repo(Path("/data/GLM-4.7"))


@pytest.mark.parametrize("name", ["a", "a/b/c", "a b/c", "", "a/-b", "a/b.git"])
def test_names_that_the_hub_refuses(name):
    with pytest.raises(UsageError, match="`repo_id`"):
        check_repo_id(name, "`repo_id`")


PUBLISHED = [
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "quantization_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "chat_template.jinja",
    "merges.txt",
    "modeling_glm.py",
    "LICENSE",
]
KEPT_BACK = [
    "recipe.yaml",
    "exltune.json",
    "README.md",
    "api_tokens.yml",
    "API_TOKENS.json",
    ".env",
    "prod.env",
    ".locks",
    ".search.db",
    "hf_token",
    "token",
    "secrets.json",
    "my_secret.py",
    "id.key",
    "model.safetensors.partial",
    ".model.safetensors.partial",
    "tune.log",
    "config.yml",
]


def test_what_a_branch_gets(tmp_path):
    for name in PUBLISHED + KEPT_BACK:
        (tmp_path / name).write_text("x")
    (tmp_path / "cache").mkdir()
    taken, left = branch_files(tmp_path)
    assert sorted(taken) == sorted(PUBLISHED)
    assert sorted(left) == sorted(["cache", *KEPT_BACK])


def test_nothing_to_publish(tmp_path):
    (tmp_path / "README.md").write_text("x")
    with pytest.raises(UsageError, match="no file of a model"):
        branch_files(tmp_path)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("3.15 and 3.2 and 3 and 3.150", []),
        ("3.16", ["3.16"]),
        ("3.1", []),
        ("12,000 tokens, 12000 of them", []),
        ("12,001", ["12,001"]),
        ("branch 3.15bpw_H6 and title-3.15bpw_H6, not 3.16bpw_H6", ["3.16bpw_H6"]),
        ("sha256 ab12", ["ab12"]),
        ("-3.15", ["-3.15"]),
    ],
)
def test_the_check_of_numbers(tmp_path, text, wrong):
    """3.15 also rounds to 3.1 or 3.2, whichever way halves go."""
    content = {"bpw": 3.15, "tokens": 12000, "flag": True, "branch": "3.15bpw_H6", "title": "title"}
    (tmp_path / "card.json").write_text(json.dumps(content))
    assert unsourced(text, tmp_path) == wrong
