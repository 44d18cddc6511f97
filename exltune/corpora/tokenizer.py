"""The tokenizer of a model directory."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from exltune.errors import CorruptFileError, DataError


def load_tokenizer(tokenizer_dir: Path | str) -> Tokenizer:
    """The fast tokenizer of a model directory.

    Raises: DataError where tokenizer.json is missing, CorruptFileError where it cannot be read.
    """
    path = Path(tokenizer_dir) / "tokenizer.json"
    if not path.is_file():
        raise DataError("no tokenizer.json", where=str(tokenizer_dir), fix="The model needs a fast tokenizer's file")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise CorruptFileError(f"it is no tokenizer ({error})", where=str(path), fix="Download it again") from error
