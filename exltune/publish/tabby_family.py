"""How a model family thinks and calls tools, as far as TabbyAPI can parse it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TEMPLATE, _TOKENIZER = "chat_template.jinja", "tokenizer_config.json"


@dataclass(frozen=True)
class Family:
    """reasoning: whether <think> blocks are split off. tool_format: TabbyAPI's name; None where it has none."""

    reasoning: bool
    tool_format: str | None


#: By model_type, where no chat template tells. The formats' own names differ per release, their parser does not.
#: Source: TabbyAPI, docs/10.-Tool-Calling.md.
_BY_MODEL_TYPE: Mapping[str, Family] = {
    "glm4_moe": Family(True, "glm4_7"),
    "glm4_moe_lite": Family(True, "glm4_7"),
    "qwen3_5": Family(True, "qwen3_5"),
    "qwen3_5_moe": Family(True, "qwen3_5"),
    "qwen3_next": Family(True, "qwen3_coder"),
}
#: Mark of tool calls in a chat template -> the parser that reads them.
_MARKERS = (("<arg_key>", "glm4_7"), ("<function=", "qwen3_coder"))
#: Formats that TabbyAPI finds by the tokenizer's special tokens and that need no setting.
_DETECTED = ("<|channel|>", "<|eom|>")
_THINK = "<think>"


def family_of(config: Mapping[str, Any], directory: Path | None) -> Family | None:
    """The family by the chat template, which a fine-tune may have changed; without one, by the config's model_type."""
    template = None if directory is None else _chat_template(directory)
    known = _BY_MODEL_TYPE.get(str(config.get("model_type", "")))
    if template is None:
        return known
    if any(marker in template for marker in _DETECTED):
        return None
    found = next((name for marker, name in _MARKERS if marker in template), None)
    if known is not None and found == "qwen3_coder" and known.tool_format == "qwen3_5":
        found = known.tool_format
    if found is None and _THINK not in template:
        return None
    return Family(_THINK in template, found)


def _chat_template(directory: Path) -> str | None:
    if (directory / _TEMPLATE).is_file():
        return (directory / _TEMPLATE).read_text(encoding="utf-8", errors="replace")
    if not (directory / _TOKENIZER).is_file():
        return None
    try:
        template = json.loads((directory / _TOKENIZER).read_text(encoding="utf-8")).get("chat_template")
    except (ValueError, AttributeError):
        return None
    # Several named templates: a list of {name, template}.
    return template if isinstance(template, str) else None if template is None else json.dumps(template)
