"""Documents: pieces of text files, each small enough that every token set gets some of every file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from exltune.corpora.bundled import bundled_text_paths
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


def read_texts(paths: Sequence[Path | str] | None = None, piece_characters: int | None = None) -> list[Document]:
    """Read plain UTF-8 text files as documents, cut at paragraph boundaries; None reads exllamav3's bundled texts.

    Each file is a domain named after its stem; a directory stands for the files in it. Pieces have about
    `piece_characters` characters, or by default a 48th of their file, between 1,024 and 16,384.

    Raises: DataError for a file that is missing, empty or not UTF-8.
    """
    files = bundled_text_paths() if paths is None else _files(paths)
    documents = []
    for domain, path in zip(_domains(files), files, strict=True):
        text = _read(path)
        size = piece_characters or min(LONGEST_PIECE, max(SHORTEST_PIECE, len(text) // PIECES_PER_FILE))
        documents += [Document(domain=domain, text=p, id=f"{domain}/{i}") for i, p in enumerate(pieces(text, size))]
    return documents


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


def _files(paths: Sequence[Path | str]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, paths):
        files += sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    if not files:
        raise DataError("no text files given", fix="Name at least one plain text file with --data")
    return files


def _domains(files: Sequence[Path]) -> list[str]:
    """The stems, or whole names where two files share a stem, numbered where even those are the same."""
    stems = [path.stem for path in files]
    names = [path.name if stems.count(path.stem) > 1 else path.stem for path in files]
    return [name if names.count(name) == 1 else f"{name}#{i}" for i, name in enumerate(names)]


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError("no such text file", where=str(path), fix="Check the path given with --data") from error
    except UnicodeDecodeError as error:
        raise DataError("the file is not UTF-8 text", where=str(path), fix="Convert it to UTF-8 first") from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path)) from error
    if not text.strip():
        raise DataError("the text file is empty", where=str(path), fix="Give a file that holds text")
    return text
