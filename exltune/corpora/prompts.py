"""Seed prompts, to which a model writes the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exltune.corpora.chat_template import Message
from exltune.corpora.rows import MESSAGES, OPTIONS, TEXT, TOOLS, check_messages, check_row
from exltune.corpora.tokenizer import ModelTokenizer
from exltune.errors import DataError

_PROMPT = "prompt"


@dataclass(frozen=True)
class Prompt:
    """A chat that waits for an answer, or a text to go on with; `where` names its file and line.

    plain: neither is known before the model is: a chat where it has a template, a text where it has none.
    """

    where: str
    messages: tuple[Message, ...] = ()
    text: str | None = None
    tools: tuple[Mapping[str, Any], ...] | None = None
    options: Mapping[str, Any] | None = None
    plain: bool = False

    def of(self, tokenizer: ModelTokenizer) -> Prompt:
        """The prompt as this model takes it."""
        if self.plain and not tokenizer.has_chat:
            return Prompt(self.where, text=str(self.messages[0]["content"]))
        return replace(self, plain=False)

    def rendered(self, tokenizer: ModelTokenizer) -> str:
        """All that the model sees. Raises: DataError naming the line that the template refuses."""
        if self.text is not None:
            return self.text
        chat = tokenizer.chat
        try:
            return chat.render(self.messages, self.tools, self.options, answer=True)
        except DataError as error:
            raise DataError(error.what, where=self.where, fix=error.fix) from error

    def row(self) -> dict[str, Any]:
        """As a row of JSON lines, but for the answer."""
        if self.text is not None:
            return {TEXT: self.text}
        extras = {TOOLS: self.tools and list(self.tools), OPTIONS: self.options}
        return {MESSAGES: [dict(m) for m in self.messages]} | {k: v for k, v in extras.items() if v}


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a file: rows with `prompt`, `messages` or `text` of `.jsonl`, else every line that is not blank.

    A chat's last answers are left out, so that data sets of chats can serve as prompts.
    Raises: DataError naming the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise DataError(
            "no such file of prompts", where=str(path), fix="Check the path given with `prompts`"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError("the file is not UTF-8 text", where=str(path), fix="Convert it to UTF-8 first") from error
    read = _from_json if path.suffix.lower() in (".jsonl", ".ndjson") else _from_text
    prompts = [read(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise DataError("it holds no prompts", where=str(path), fix="Write one on each line")
    return prompts


def _from_text(line: str, where: str) -> Prompt:
    return Prompt(where, ({"role": "user", "content": line.strip()},), plain=True)


def _from_json(line: str, where: str) -> Prompt:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"it is not JSON ({error})", where=where, fix="Write one JSON object on each line") from error
    asked = row.get(_PROMPT) if isinstance(row, dict) else None
    if isinstance(asked, str) and asked.strip():
        return _from_text(asked, where)
    if isinstance(asked, list):
        row = {**row, MESSAGES: asked}
    if not check_row(row, where):
        raise DataError("its text is empty", where=where, fix="Write the beginning of a text, or leave the line out")
    if row.get(MESSAGES) is None:
        return Prompt(where, text=row[TEXT])
    messages = row[MESSAGES]
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    check_messages(messages, where)
    tools = row.get(TOOLS)
    return Prompt(where, tuple(messages), tools=None if tools is None else tuple(tools), options=row.get(OPTIONS))
