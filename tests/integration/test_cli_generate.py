"""`exltune generate`: a small real model and a served one answer prompts, through kills and trouble."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_models import chats, write_chat_tokenizer, write_jsonl
from command_line import exltune, fail, run_until_killed, succeed
from standin_openai import Standin, serving
from tenacity import wait_none

from exltune.corpora import ModelTokenizer
from exltune.engines.sampling import LocalSampler

MODEL = Path(__file__).resolve().parents[2] / "models" / "qwen3"
SHORT = ("--max-new-tokens", "12", "--batch", "2")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("Tell me about a cat and its house.\n\nHi\nWrite code.\n")
    return path


@pytest.fixture
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with a template is all that a served model needs here."""
    return write_chat_tokenizer(tmp_path_factory.mktemp("model"), "chatml")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exltune.publish.openai_client.wait_random_exponential", lambda **_: wait_none())


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def partial(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


def test_greedy_answers_are_the_likeliest_tokens(prompts: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out.jsonl"
    found = succeed("generate", MODEL, "--prompts", prompts, "--out", out, "--temperature", "0", *SHORT, "--batch", "3")
    assert (found["prompts"], found["samples"], found["empty"]) == (3, 3, 0)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32), ModelTokenizer(MODEL)
    for row in rows_of(out):
        *asked, answer = row["messages"]
        ids = tokenizer.encode(tokenizer.chat.render(asked, answer=True))
        start = len(ids)
        while len(ids) < start + 12:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == model.config.eos_token_id:
                break
        assert answer == {"role": "assistant", "content": tokenizer.decode(ids[start:])}
        stopped = ids[-1] == model.config.eos_token_id
        assert row["exltune"]["finish"] == ("stop" if stopped else "length")
        assert row["exltune"]["tokens"] == len(ids) - start - stopped


def test_answers_follow_from_the_seed_and_are_data(prompts: Path, tmp_path: Path) -> None:
    def traced(name: str, *more: object) -> bytes:
        out = tmp_path / name
        succeed("generate", MODEL, "--prompts", prompts, "--out", out, "--per-prompt", "8", *SHORT, *more)
        return out.read_bytes()

    first = traced("a.jsonl")
    assert first == traced("b.jsonl")
    assert first != traced("c.jsonl", "--seed", "1")
    # Hardly any probability kept is greedy.
    greedy = traced("d.jsonl", "--top-p", "0.01")
    assert len({json.loads(line)["messages"][-1]["content"] for line in greedy.splitlines()}) == 3
    assert not partial(tmp_path / "a.jsonl").exists()
    rows = ("--rows", "16", "--row-length", "16")
    inspected = succeed("data", "inspect", MODEL, "--data", f"own={tmp_path / 'a.jsonl'}", *rows)
    assert inspected["domains"][0]["samples"] == 24


def test_a_killed_trace_goes_on_and_ends_as_if_nothing_had_been(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    arguments = ("generate", MODEL, "--prompts", prompts, "--per-prompt", "2", *SHORT, "--out")
    succeed(*arguments, whole)
    run_until_killed("exltune.pipeline.texts.answers_file:AnswersFile.add", 3, *map(str, arguments), str(out))
    assert not out.exists()
    lines = partial(out).read_text().splitlines()
    assert len(lines) == 1 + 4
    partial(out).write_text("\n".join([*lines[:-1], lines[-1][:-20]]))  # as a kill within a write leaves it

    drawn = []
    draw = LocalSampler._answers

    def counted(self: LocalSampler, asked: Any, start: int) -> Any:
        drawn.append(start)
        return draw(self, asked, start)

    monkeypatch.setattr(LocalSampler, "_answers", counted)
    succeed(*arguments, out)
    assert drawn == [2, 4]
    assert out.read_bytes() == whole.read_bytes()
    assert not partial(out).exists()


def test_answers_of_another_trace_are_not_taken_and_not_lost(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    partial(out).write_text('{"job": "other"}\n[1, 1, {"content": "x", "finish": "stop"}]\n')
    arguments = ("generate", MODEL, "--prompts", prompts, *SHORT, "--out", out)
    fail(8, "another trace", "--force", here=tmp_path, arguments=arguments)
    assert succeed(*arguments, "--force")["samples"] == 3
    assert rows_of(out)[0]["messages"][-1]["content"] != "x"
    fail(8, str(out), "--force", here=tmp_path, arguments=arguments)


def test_prompts_of_every_kind(chat_model: Path, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "add"}}
    answered = chats(1)[0]["messages"]
    prompts = write_jsonl(
        tmp_path / "p.jsonl",
        [
            {"prompt": "plain"},
            {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "listed"}]},
            {"messages": answered, "tools": [tool]},
            {"text": "Once upon"},
        ],
    )
    out = tmp_path / "out.jsonl"
    with serving(Standin()) as server:
        found = succeed("generate", chat_model, "--prompts", prompts, "--out", out, "--url", f"{server.url}/v1/")
    assert found == {"out": str(out), "prompts": 4, "samples": 4, "tokens": 28, "cut": 0, "empty": 0}
    plain, listed, chat, text = rows_of(out)
    assert plain["messages"][0] == {"role": "user", "content": "plain"}
    assert plain["messages"][1]["content"].startswith(" answer to plain")
    assert [message["role"] for message in listed["messages"]] == ["system", "user", "assistant"]
    assert chat["messages"][:-1] == answered[:-1]
    assert chat["tools"] == [tool]
    assert text["text"].startswith("Once upon answer to Once upon")
    asked = {path: request for path, request in server.asked if "tools" in request or "prompt" in request}
    assert asked["/v1/chat/completions"]["tools"] == [tool]
    assert asked["/v1/completions"]["max_tokens"] == 1024
    assert len({request["seed"] for _, request in server.asked}) == 4


def test_a_model_without_a_template_goes_on_with_plain_prompts(prompts: Path, tmp_path: Path) -> None:
    base, out = write_chat_tokenizer(tmp_path / "base", None), tmp_path / "out.jsonl"
    with serving(Standin()) as server:
        succeed("generate", base, "--prompts", prompts, "--out", out, "--url", server.url, "--temperature", "0.5")
    assert {path for path, _ in server.asked} == {"/v1/completions"}
    assert {request["temperature"] for _, request in server.asked} == {0.5}
    assert rows_of(out)[1]["text"].startswith("Hi answer to Hi")
    chat = write_jsonl(tmp_path / "chat.jsonl", chats(1))
    arguments = ("generate", base, "--prompts", chat, "--out", tmp_path / "o.jsonl", "--url", "http://127.0.0.1:9")
    fail(7, "no chat template", here=tmp_path, arguments=arguments)


def test_thoughts_and_tool_calls_are_kept_and_empty_answers_are_not(
    chat_model: Path, prompts: Path, tmp_path: Path
) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    for number, answer in enumerate(
        ({"content": "Yes.", "reasoning_content": "Hm."}, {"content": None, "tool_calls": [call]}, {"content": " "})
    ):
        out = tmp_path / f"{number}.jsonl"
        with serving(Standin(answer=answer)) as server:
            found = succeed("generate", chat_model, "--prompts", prompts, "--out", out, "--url", server.url)
        last = [row["messages"][-1] for row in rows_of(out)]
        assert last == [{"role": "assistant"} | answer] * (0 if answer["content"] == " " else 3)
        assert found["empty"] == 3 - len(last)
    from exltune.corpora import read_sources
    from exltune.schema.tokens import DataSource

    tokenizer = ModelTokenizer(chat_model)
    for name, fragment in (("0.jsonl", "<think>\nHm.\n</think>\n\nYes."), ("1.jsonl", '{"a": 1}')):
        samples = read_sources([DataSource(path=str(tmp_path / name))], tokenizer)
        assert fragment in tokenizer.decode(list(samples[0].encode(tokenizer)))


def test_a_busy_server_is_asked_again(chat_model: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with serving(Standin(fail=[503, 429, 502])) as server:
        assert succeed("generate", chat_model, "--prompts", prompts, "--out", out, "--url", server.url)["samples"] == 3
    assert len(server.asked) == 3


def test_what_came_before_a_failure_is_kept(chat_model: Path, prompts: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    arguments = ("generate", chat_model, "--prompts", prompts, "--parallel", "1", "--per-prompt", "2")
    with serving(Standin(last=4)) as server:
        outcome = exltune(*arguments, "--out", out, "--url", server.url)
        assert outcome.code == 16
        assert "500: out of memory" in outcome.stderr
        assert "the same command goes on" in outcome.stderr
        assert not out.exists()
        server.last = None
        before = len(server.asked)
        succeed(*arguments, "--out", out, "--url", server.url)
        assert before == 4
        assert len(server.asked) == 6
        succeed(*arguments, "--out", whole, "--url", server.url)
    assert out.read_bytes() == whole.read_bytes()


def test_keys_are_sent_and_never_shown(chat_model: Path, prompts: Path, tmp_path: Path) -> None:
    arguments = ("generate", chat_model, "--prompts", prompts, "--out", tmp_path / "out.jsonl")
    good, bad, two = tmp_path / "good", tmp_path / "bad", tmp_path / "two"
    good.write_text("secret-1234\n")
    bad.write_text("secret-9999\n")
    two.write_text("one two\n")
    with serving(Standin(key="secret-1234")) as server:
        asked = (*arguments, "--url", server.url)
        fail(16, "wants a key", "--key-file", here=tmp_path, arguments=asked)
        outcome = fail(16, "does not accept", here=tmp_path, arguments=(*asked, "--key-file", bad))
        assert "secret" not in outcome.stdout + outcome.stderr
        fail(2, str(two), "one key", here=tmp_path, arguments=(*asked, "--key-file", two))
        assert succeed(*asked, "--key-file", good)["samples"] == 3


@pytest.mark.parametrize(
    ("body", "word"), [(b"<html>", "the whole answer"), (b'{"choices": []}', "choices"), (b"{}", "choices")]
)
def test_a_server_of_another_kind(chat_model: Path, prompts: Path, tmp_path: Path, body: bytes, word: str) -> None:
    with serving(Standin(body=body)) as server:
        arguments = ("generate", chat_model, "--prompts", prompts, "--out", tmp_path / "o.jsonl", "--url", server.url)
        fail(16, server.url, f"unknown at {word}", "OpenAI-compatible", here=tmp_path, arguments=arguments)
        wrong = (*arguments[:-1], f"{server.url}/api")
        fail(16, "404", "--url", here=tmp_path, arguments=wrong)
    fail(16, "no connection", "Start the server", here=tmp_path, arguments=arguments)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", ("is not JSON",)),
        ('{"question": "x"}', ("neither messages nor text", "question")),
        ('{"text": ""}', ("empty",)),
        ('{"prompt": []}', ("empty",)),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', ("empty",)),
        ('{"messages": [{"role": "user", "content": 5}]}', ("template refuses",)),
    ],
)
def test_bad_prompts_are_named(chat_model: Path, tmp_path: Path, line: str, words: tuple[str, ...]) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [*chats(1), line])
    arguments = (
        "generate",
        chat_model,
        "--prompts",
        path,
        "--out",
        tmp_path / "o.jsonl",
        "--url",
        "http://127.0.0.1:9",
    )
    fail(7, f"{path}, line 2", *words, here=tmp_path, arguments=arguments)


def test_bad_arguments(prompts: Path, tmp_path: Path) -> None:
    def refuse(code: int, *words: str, more: tuple[object, ...]) -> None:
        arguments = ("generate", MODEL, "--prompts", prompts, "--out", tmp_path / "o.jsonl", *more)
        fail(code, *words, here=tmp_path, arguments=arguments)

    refuse(2, "does not end with .jsonl", more=("--out", tmp_path / "o.json"))
    refuse(2, "--served-model", "without --url", more=("--served-model", "x"))
    refuse(2, "--url names no http address", more=("--url", "localhost:5000"))
    refuse(2, "user or password", more=("--url", "http://me:pw@localhost:5000"))
    refuse(7, "no such file of prompts", more=("--prompts", tmp_path / "none.txt"))
    (tmp_path / "blank.txt").write_text("\n \n")
    refuse(7, "holds no prompts", more=("--prompts", tmp_path / "blank.txt"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    refuse(7, "UTF-8", more=("--prompts", tmp_path / "latin.txt"))
    (tmp_path / "long.txt").write_text("word " * 4000)
    refuse(7, "line 1", "context is 2048", "Shorten", more=("--prompts", tmp_path / "long.txt"))
    for option, value in (("--temperature", "-1"), ("--top-p", "0"), ("--top-p", "1.5"), ("--per-prompt", "0")):
        outcome = exltune("generate", MODEL, "--prompts", prompts, "--out", tmp_path / "o.jsonl", option, value)
        assert (outcome.code, outcome.stdout) == (2, "")


def test_weights_that_cannot_be_loaded(chat_model: Path, prompts: Path, tmp_path: Path) -> None:
    (chat_model / "config.json").write_text('{"model_type": "qwen3"}')
    arguments = ("generate", chat_model, "--prompts", prompts, "--out", tmp_path / "o.jsonl")
    fail(3, str(chat_model), "--url", here=tmp_path, arguments=arguments)
