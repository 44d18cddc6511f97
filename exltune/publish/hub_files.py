"""Which files of an EXL3 directory a branch gets."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from exltune.errors import UsageError

#: Files that exllamav3, transformers and TabbyAPI read of a model directory, and those that a license asks for.
_MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "quantization_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "*.jinja",
    "token*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "*.py",
    "LICENSE*",
    "NOTICE*",
)
#: Records of ours, with paths in them; the card has copies without.
_NOTES = ("recipe.yaml", "exltune.json")
#: Files of the server's own that TabbyAPI reads beside a model, and keys wherever they lie.
_SECRETS = ("api_tokens.*", "*.env", ".env*", "*.pem", "*.key", "*_token", "*.token", "token", "*secret*")
#: Of the card, on every branch.
README = "README.md"


def branch_files(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Files to upload by name, and those left out with the reason. Raises: UsageError where there is nothing."""
    taken: dict[str, Path] = {}
    left: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        reason = _reason(path)
        if reason is None:
            taken[path.name] = path
        else:
            left[path.name] = reason
    if not taken:
        raise UsageError("it holds no file of a model", where=str(folder), fix="Name an EXL3 directory")
    return taken, left


def _reason(path: Path) -> str | None:
    name = path.name
    if path.is_dir():
        return "a directory"
    if name == README:
        return "the card takes its place"
    if any(_matches(name, pattern) for pattern in _SECRETS):
        return "may hold secrets"
    if name in _NOTES:
        return "names folders of this machine"
    if name.startswith("."):
        return "hidden: a lock, a search's store or a temporary file"
    return None if any(_matches(name, pattern) for pattern in _MODEL_FILES) else "no file of a model"


def _matches(name: str, pattern: str) -> bool:
    return fnmatch(name.lower(), pattern.lower())
