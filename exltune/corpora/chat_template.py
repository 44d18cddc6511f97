"""Chats as the model knows them: its own template, rendered by transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from exltune.errors import CorruptFileError, DataError

#: Some templates write today's date; tokens must not change overnight. The day is the one that Llama 3 falls back to.
_DAY = {"%Y": "2024", "%y": "24", "%m": "07", "%B": "July", "%b": "Jul", "%d": "26", "%A": "Friday", "%a": "Fri"}
_CLOCK = "strftime_now"

Message = Mapping[str, Any]


class ChatTemplate:
    """The template in chat_template.jinja or tokenizer_config.json of a model directory.

    Raises: DataError where the model has none, CorruptFileError where transformers cannot read its tokenizer files.
    """

    def __init__(self, model_dir: Path) -> None:
        self._where = str(model_dir)
        self._tokenizer = _read_tokenizer(model_dir)
        if self._tokenizer.chat_template is None:
            raise DataError(
                "the model has no chat template",
                where=self._where,
                fix="Put the chat_template.jinja of its chat model there, or give plain text instead of messages",
            )

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        answer: bool = False,
    ) -> str:
        """A chat as one text, its special tokens by name. answer: up to where the model's next message begins.

        tools: JSON schemas of functions. options: the template's own variables, such as enable_thinking.
        Raises: DataError in the template's words.
        """
        try:
            template = self._tokenizer.get_chat_template(tools=tools)
            text: str = self._tokenizer.apply_chat_template(
                list(messages),
                tools=None if tools is None else list(tools),
                chat_template=_with_fixed_clock(template),
                add_generation_prompt=answer,
                tokenize=False,
                **(options or {}),
            )
        except TemplateSyntaxError as error:
            raise CorruptFileError(
                f"the chat template has an error in line {error.lineno}: {error.message}",
                where=self._where,
                fix="Download its chat_template.jinja again",
            ) from error
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise DataError(
                f"the model's chat template refuses it: {' '.join(str(error).split())}",
                fix="Change the chat, or leave it out",
            ) from error
        return text


def _with_fixed_clock(template: str) -> str:
    if _CLOCK not in template:
        return template
    replaced = "".join(f".replace('{code}', '{value}')" for code, value in _DAY.items())
    return f"{{%- macro {_CLOCK}(format) -%}}{{{{ format{replaced} }}}}{{%- endmacro -%}}{template}"


def _read_tokenizer(model_dir: Path) -> Any:
    # transformers takes seconds to import, and plain text needs none of it.
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(model_dir), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise CorruptFileError(
            f"transformers cannot read its tokenizer ({' '.join(str(error).split())})",
            where=str(model_dir),
            fix="Check tokenizer.json and tokenizer_config.json",
        ) from error
