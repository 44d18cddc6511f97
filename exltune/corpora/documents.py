"""Documents: pieces of text files, each small enough that every token set gets some of every file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from exltune.corpora.bundled import bundled_text_paths
from exltune.corpora.files import domain_names, files_in
from exltune.corpora.tokenizer import ModelTokenizer
from exltune.errors import DataError
from exltune.schema.base import Record

#: Pieces are no longer than this, and no shorter than the least while a file is cut into this many pieces.
LONGEST_PIECE = 16384
SHORTEST_PIECE = 1024
PIECES_PER_FILE = 48


class Document(Record):
    """A text that stays together in one token set; `domain` is its kind, `id` names it within the domain."""

    domain: str
    text: str
    id: str

    def encode(self, tokenizer: ModelTokenizer) -> list[int]:
        """As Sample.encode."""
        return tokenizer.encode(self.text)


def read_texts(paths: Sequence[Path | str] | None = None, piece_characters: int | None = None) -> list[Document]:
    """Read plain UTF-8 text files as documents, cut at paragraph boundaries; None reads exllamav3's bundled texts.

    Each file is a domain named after its stem; a directory stands for the files in it. Pieces have about
    `piece_characters` characters, or by default a 48th of their file, between 1,024 and 16,384.

    Raises: DataError for a file that is missing, empty or not UTF-8.
    """
    files = bundled_text_paths() if paths is None else files_in(paths)
    named = zip(files, domain_names(files), strict=True)
    return [document for path, domain in named for document in text_documents(path, domain, piece_characters)]


def text_documents(path: Path, domain: str, piece_characters: int | None = None) -> list[Document]:
    """The pieces of one plain UTF-8 text file. Raises: as read_texts."""
    text = _read(path)
    size = piece_characters or min(LONGEST_PIECE, max(SHORTEST_PIECE, len(text) // PIECES_PER_FILE))
    return [Document(domain=domain, text=p, id=f"{domain}/{i}") for i, p in enumerate(pieces(text, size))]


def pieces(text: str, size: int) -> Iterator[str]:
    """Cut a text into pieces of `size` to 1.5 * `size` characters, at blank lines, else line ends, else spaces."""
    start = 0
    while len(text) - start > size * 3 // 2:
        end = _boundary(text, start + size, start + size * 3 // 2)
        yield text[start:end]
        start = end
    if text[start:].strip():
        yield text[start:]


def _boundary(text: str, low: int, high: int) -> int:
    for pattern in (r"\n\s*\n", r"\n", r" "):
        match = re.compile(pattern).search(text, low, high)
        if match:
            return match.end()
    return high


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError("no such text file", where=str(path), fix="Check the path given with `data`") from error
    except UnicodeDecodeError as error:
        raise DataError("the file is not UTF-8 text", where=str(path), fix="Convert it to UTF-8 first") from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path)) from error
    if not text.strip():
        raise DataError("the text file is empty", where=str(path), fix="Give a file that holds text")
    return text
