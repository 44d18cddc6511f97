"""Folders with a tokenizer and a chat template, as model directories have them, and chats to render."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from real_models import write_tokenizer
from tokenizers import AddedToken, Tokenizer

TEMPLATES = Path(__file__).parent / "fixtures" / "templates"
SPECIAL = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "glm": ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    "llama3": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}
_WORDS = ("model", "weight", "layer", "token", "bits", "noise", "route", "expert", "error", "scale", "tile", "chat")


def write_chat_tokenizer(folder: Path, template: str | None, *, in_config: bool = False) -> Path:
    """A byte-level tokenizer with a template's special tokens; the template in a file of its own or in the config."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL.get(template or "", ())])
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if template == "llama3":
        config["bos_token"] = "<|begin_of_text|>"
    if template is not None:
        text = (TEMPLATES / f"{template}.jinja").read_text()
        if in_config:
            config["chat_template"] = text
        else:
            (folder / "chat_template.jinja").write_text(text)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def words(count: int, seed: object) -> str:
    """Text of its own for every seed."""
    rng = random.Random(str(seed))
    return " ".join(f"{rng.choice(_WORDS)}{rng.randrange(1000)}" for _ in range(count))


def chats(count: int, length: int = 40, seed: object = 0) -> list[dict[str, Any]]:
    """Rows of two turns each."""
    return [
        {
            "messages": [
                {"role": "user", "content": words(length // 2, (seed, i, "asked"))},
                {"role": "assistant", "content": words(length, (seed, i, "told"))},
            ]
        }
        for i in range(count)
    ]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """A JSON line for every row; text goes in as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
