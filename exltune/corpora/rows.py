"""Samples that are rows of a table: chats (`messages`) and texts (`text`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exltune.corpora.chat_template import ChatTemplate
from exltune.corpora.tokenizer import ModelTokenizer
from exltune.errors import DataError

Row = Mapping[str, Any]
#: The columns of a row; TRL's names. Other columns are left alone.
MESSAGES, TEXT, TOOLS, OPTIONS = "messages", "text", "tools", "chat_template_kwargs"
COLUMNS = (MESSAGES, TEXT, TOOLS, OPTIONS)


@dataclass(frozen=True)
class RowSample:
    """A chat or a text; `where` names its file and row, `load` reads it when it is needed."""

    domain: str
    id: str
    where: str
    load: Callable[[], Row]

    def encode(self, tokenizer: ModelTokenizer) -> Sequence[int]:
        """As Sample.encode; special tokens of the template are tokenized as such."""
        row = self.load()
        text: str = row[TEXT] if row.get(MESSAGES) is None else self._rendered(row, tokenizer.chat)
        if not _is_unicode(text):
            raise DataError("it holds half of a surrogate pair", where=self.where, fix="Mend the text, or remove it")
        return tokenizer.encode(text)

    def _rendered(self, row: Row, chat: ChatTemplate) -> str:
        try:
            return chat.render(row[MESSAGES], row.get(TOOLS), row.get(OPTIONS))
        except DataError as error:
            raise DataError(error.what, where=self.where, fix=error.fix) from error


def check_row(row: object, where: str) -> bool:
    """Whether a row holds anything. Raises: DataError naming the row and the field that is wrong."""
    if not isinstance(row, dict):
        raise DataError("it is not an object", where=where, fix='Write {"messages": [...]} or {"text": "..."}')
    if row.get(MESSAGES) is not None:
        check_messages(row[MESSAGES], where)
        _check_extras(row, where)
        return True
    text = row.get(TEXT)
    if text is None:
        raise missing_columns(row, where)
    if not isinstance(text, str):
        raise DataError(f"its text is a {type(text).__name__}", where=where, fix="Write a string")
    return bool(text.strip())


def missing_columns(columns: Sequence[str] | Row, where: str) -> DataError:
    """The error for a table without chats and without texts."""
    return DataError(
        f"it has neither messages nor text, only: {', '.join(map(str, columns)) or 'nothing'}",
        where=where,
        fix='Name the chats "messages" (a list of role and content) or the texts "text"',
    )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_messages(messages: object, where: str) -> None:
    """Check that messages are a chat. Raises: DataError naming the row and the message."""
    if not isinstance(messages, list) or not messages:
        raise DataError(
            "its messages are not a list, or the list is empty", where=where, fix="List role and content of each"
        )
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError(
                f"message {number} has no role", where=where, fix='Write {"role": "user", "content": "..."}'
            )
        if message.get("content") is None and not message.get("tool_calls"):
            raise DataError(
                f"message {number} ({message['role']}) has no content",
                where=where,
                fix="Give it content, or tool_calls",
            )


def _check_extras(row: Row, where: str) -> None:
    for name, kind, word in ((TOOLS, list, "a list"), (OPTIONS, dict, "an object")):
        if row.get(name) is not None and not isinstance(row[name], kind):
            raise DataError(f"its {name} are not {word}", where=where, fix=f"Write {word}, or leave {name} out")
