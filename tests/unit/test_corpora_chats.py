"""Chats as the model's own template writes them, from JSON lines and parquet, and what is wrong with some."""

from __future__ import annotations

import builtins
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from chat_models import SPECIAL, chats, write_chat_tokenizer, write_jsonl

from exltune.corpora import ModelTokenizer, read_sources
from exltune.errors import CorruptFileError, DataError, UsageError
from exltune.schema.tokens import DataSource

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "required": ["a"]}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Hi <b>there</b>"}, {"role": "assistant", "content": "Grüße 🙂"}]},
    {
        "messages": [
            {"role": "system", "content": "Be terse."},
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "4", "reasoning_content": "Two and two."},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Yes.", "reasoning_content": "They ask again."},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "Add one."},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "Two."},
        ],
        "tools": [TOOL],
    },
]


@pytest.fixture(scope="module", params=sorted(SPECIAL))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_tokenizer(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_tokenizer(tmp_path_factory.mktemp("chatml"), "chatml")


def encoded(path: Path, folder: Path) -> list[list[int]]:
    tokenizer = ModelTokenizer(folder)
    return [list(s.encode(tokenizer)) for s in read_sources([DataSource(path=str(path))], tokenizer)]


def test_tokens_are_those_of_transformers(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    rows = CHATS[:2] if folder.name == "llama3" else CHATS
    oracle = AutoTokenizer.from_pretrained(folder)
    day = {"date_string": "26 Jul 2024"}
    expected = [
        oracle.apply_chat_template(row["messages"], tools=row.get("tools"), return_dict=False, **day) for row in rows
    ]
    found = encoded(write_jsonl(tmp_path / "chats.jsonl", rows), folder)
    assert found == expected
    special = {ModelTokenizer(folder).encode(name)[0] for name in SPECIAL[folder.name]}
    assert special & set(found[0])


def test_a_template_in_the_config_counts_as_well(chatml: Path, tmp_path: Path) -> None:
    other = write_chat_tokenizer(tmp_path / "model", "chatml", in_config=True)
    assert not (other / "chat_template.jinja").exists()
    path = write_jsonl(tmp_path / "chats.jsonl", CHATS)
    assert encoded(path, other) == encoded(path, chatml)


def test_the_template_s_own_options_are_passed_on(chatml: Path) -> None:
    chat = ModelTokenizer(chatml).chat
    messages = CHATS[0]["messages"][:1]
    assert chat.render(messages, answer=True).endswith("<|im_start|>assistant\n")
    assert chat.render(messages, None, {"enable_thinking": False}, answer=True).endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize("code", ["%d %b %Y", "%Y-%m-%d", "%A, %B %d, %y"])
def test_templates_that_ask_for_the_date_get_the_same_one_every_day(tmp_path: Path, code: str) -> None:
    folder = write_chat_tokenizer(tmp_path, None)
    (folder / "chat_template.jinja").write_text(
        "{% if strftime_now is defined %}{{ strftime_now('" + code + "') }}{% endif %}"
    )
    text = ModelTokenizer(folder).chat.render(CHATS[0]["messages"])
    assert text == datetime(2024, 7, 26).strftime(code)


def test_parquet_and_json_lines_give_the_same_tokens(chatml: Path, tmp_path: Path) -> None:
    lines = encoded(write_jsonl(tmp_path / "chats.jsonl", CHATS), chatml)
    table = pyarrow.Table.from_pylist([{"source": "x", "tools": None} | row for row in CHATS])
    pyarrow.parquet.write_table(table, tmp_path / "chats.parquet")
    assert encoded(tmp_path / "chats.parquet", chatml) == lines
    texts = [{"text": "one text"}, {"text": "  "}, {"text": "another"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(texts), tmp_path / "texts.parquet")
    found = encoded(tmp_path / "texts.parquet", chatml)
    assert found == encoded(write_jsonl(tmp_path / "texts.jsonl", texts), chatml)
    assert found == [ModelTokenizer(chatml).encode(text) for text in ("one text", "another")]


def refuse(folder: Path, path: Path, *fragments: str, kind: type[Exception] = DataError) -> None:
    with pytest.raises(kind) as caught:
        encoded(path, folder)
    assert all(fragment in str(caught.value) for fragment in fragments), str(caught.value)


@pytest.mark.parametrize(
    ("line", "fragments"),
    [
        ('{"messages": [', ("is not JSON", "one JSON object on each line")),
        ("[1, 2]", ("is not an object",)),
        ('{"prompt": "x", "answer": "y"}', ("neither messages nor text", "prompt, answer")),
        ("{}", ("neither messages nor text", "nothing")),
        ('{"text": 7}', ("its text is a int",)),
        ('{"messages": []}', ("empty",)),
        ('{"messages": "x"}', ("are not a list",)),
        ('{"messages": [{"content": "x"}]}', ("message 1 has no role",)),
        ('{"messages": [{"role": "user", "content": "x"}, {"role": "assistant"}]}', ("message 2", "no content")),
        ('{"messages": [{"role": "user", "content": "x"}], "tools": "y"}', ("tools", "list")),
        ('{"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": 1}', ("chat_template_kwargs",)),
        ('{"messages": [{"role": "user", "content": 5}]}', ("template refuses",)),
        ('{"text": "half of a pair: \\ud800"}', ("surrogate pair",)),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', ("surrogate pair",)),
    ],
)
def test_bad_lines_are_named(chatml: Path, tmp_path: Path, line: str, fragments: tuple[str, ...]) -> None:
    path = write_jsonl(tmp_path / "bad.jsonl", [*chats(2), "", line])
    refuse(chatml, path, f"{path}, line 4", *fragments)


def test_a_chat_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    folder = write_chat_tokenizer(tmp_path / "model", "llama3")
    twice = {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}
    path = write_jsonl(tmp_path / "bad.jsonl", [*chats(1), twice])
    refuse(folder, path, f"{path}, line 2", "roles must alternate", "leave it out")


def test_a_model_without_a_template_is_told_so(tmp_path: Path) -> None:
    folder = write_chat_tokenizer(tmp_path / "model", None)
    refuse(folder, write_jsonl(tmp_path / "c.jsonl", chats(1)), str(folder), "no chat template", "chat_template.jinja")


def test_a_broken_template_is_the_model_s_fault(tmp_path: Path) -> None:
    folder = write_chat_tokenizer(tmp_path / "model", None)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}\n{{ m.role }\n{% endfor %}")
    path = write_jsonl(tmp_path / "c.jsonl", chats(1))
    refuse(folder, path, str(folder), "line 2", kind=CorruptFileError)


def test_bad_tables_are_named(chatml: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"], "answer": ["b"]}), path)
    refuse(chatml, path, str(path), "neither messages nor text", "prompt, answer")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([CHATS[0], {"messages": []}]), path)
    refuse(chatml, path, f"{path}, row 2", "empty")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refuse(chatml, path, str(path), "damaged", kind=CorruptFileError)
    path.write_text("no table at all")
    refuse(chatml, path, str(path), "damaged", kind=CorruptFileError)


def test_without_pyarrow_the_command_that_installs_it_is_named(
    chatml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "t.parquet")
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    refuse(chatml, tmp_path / "t.parquet", "pyarrow", "pip install 'exltune[parquet]'", kind=UsageError)


@pytest.mark.parametrize("name", ["none.jsonl", "none.parquet", "none.safetensors"])
def test_files_that_are_not_there(chatml: Path, tmp_path: Path, name: str) -> None:
    refuse(chatml, tmp_path / name, str(tmp_path / name), "no such file")


def test_files_that_hold_nothing(chatml: Path, tmp_path: Path) -> None:
    refuse(chatml, write_jsonl(tmp_path / "empty.jsonl", ["", ""]), "empty.jsonl", "holds no chats")
    refuse(chatml, write_jsonl(tmp_path / "blank.jsonl", [{"text": " "}]), "blank.jsonl", "holds no chats")
