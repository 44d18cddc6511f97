"""The tokenizer of a model directory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

from exltune.corpora.chat_template import ChatTemplate
from exltune.errors import CorruptFileError, DataError, QuantMismatchError

#: In a model's directory.
TOKENIZER_FILE = "tokenizer.json"


class ModelTokenizer:
    """Tokens of texts, and the mark that tells one model's tokens from another's."""

    def __init__(self, model_dir: Path | str) -> None:
        self.model_dir = Path(model_dir)
        self._tokenizer = load_tokenizer(model_dir)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; the names of special tokens within it become these tokens, and no others are added."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    @cached_property
    def chat(self) -> ChatTemplate:
        """The model's chat template. Raises: DataError where there is none."""
        return ChatTemplate(self.model_dir)

    @cached_property
    def has_chat(self) -> bool:
        """Whether the model has a chat template."""
        try:
            return self.chat is not None
        except DataError:
            return False

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return vocabulary

    @cached_property
    def size(self) -> int:
        """One more than the largest id."""
        return 1 + max(self._vocabulary.values())

    @cached_property
    def sha256(self) -> str:
        """Hash of all tokens and their ids, whatever else stands in the tokenizer's files."""
        content = json.dumps(sorted(self._vocabulary.items()), ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()


def check_same_tokenizer(model: Path, quant: Path) -> None:
    """Check that a quant's tokenizer, where it has one, gives the model's tokens.

    Raises: QuantMismatchError naming a token, CorruptFileError.
    """
    files = [folder / TOKENIZER_FILE for folder in (model, quant)]
    if not all(file.is_file() for file in files) or files[0].read_bytes() == files[1].read_bytes():
        return
    ours, theirs = (load_tokenizer(folder).get_vocab(with_added_tokens=True) for folder in (model, quant))
    for token in sorted(ours.keys() | theirs.keys()):
        if ours.get(token) != theirs.get(token):
            raise QuantMismatchError(
                f"it has another tokenizer than {model}: {token!r} is {_place(theirs, token)} there and "
                f"{_place(ours, token)} in the model",
                where=str(quant),
                fix="Give the quant of this model, or put the model's tokenizer.json there if they differ by mistake",
            )


def _place(vocabulary: Mapping[str, int], token: str) -> str:
    return f"token {vocabulary[token]}" if token in vocabulary else "no token"


def load_tokenizer(tokenizer_dir: Path | str) -> Tokenizer:
    """The fast tokenizer of a model directory.

    Raises: DataError where tokenizer.json is missing, CorruptFileError where it cannot be read.
    """
    path = Path(tokenizer_dir) / TOKENIZER_FILE
    if not path.is_file():
        raise DataError("no tokenizer.json", where=str(tokenizer_dir), fix="The model needs a fast tokenizer's file")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise CorruptFileError(f"it is not a tokenizer ({error})", where=str(path), fix="Download it again") from error
