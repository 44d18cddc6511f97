"""Reading texts: where they come from, how they are cut, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from exltune.corpora import read_texts
from exltune.corpora.documents import pieces
from exltune.errors import DataError


def test_bundled_texts_come_without_importing_exllamav3() -> None:
    code = (
        "import sys; from exltune.corpora import read_texts; print(len({d.domain for d in read_texts()}));"
        "assert not {'exllamav3', 'torch', 'transformers'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == 6


def test_pieces_join_to_the_text_and_keep_their_size() -> None:
    text = "".join(f"Paragraph {i} has some words.\n\n" if i % 3 else f"Line {i}\n" for i in range(500))
    parts = list(pieces(text, 300))
    assert "".join(parts) == text
    assert all(300 <= len(part) <= 450 for part in parts[:-1])
    assert all(part.endswith("\n\n") for part in parts[:-1])


@pytest.mark.parametrize(("text", "end"), [("a line\n" * 400, "\n"), ("word " * 400, " "), ("x" * 2000, "x")])
def test_pieces_end_at_the_best_boundary_there_is(text: str, end: str) -> None:
    parts = list(pieces(text, 300))
    assert "".join(parts) == text
    assert len(parts) > 3
    assert all(part.endswith(end) for part in parts)


def test_a_book_becomes_many_documents(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("A sentence of the book.\n\n" * 5000, encoding="utf-8")
    documents = read_texts([tmp_path / "book.txt"])
    assert len(documents) > 30
    assert {d.domain for d in documents} == {"book"}
    assert len({d.id for d in documents}) == len(documents)


def test_directories_stand_for_their_files_and_equal_names_stay_apart(tmp_path: Path) -> None:
    for folder, name in (("a", "x.txt"), ("a", "x.md"), ("b", "x.txt")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(f"text of {folder}/{name}", encoding="utf-8")
    documents = read_texts([tmp_path / "a", tmp_path / "b"])
    assert [d.domain for d in documents] == ["x.md", "x.txt#1", "x.txt#2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b" \n\n", "empty"), (b"caf\xe9", "not UTF-8"), (None, "no such text file")],
)
def test_bad_files_are_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_texts([path])
    assert str(path) in str(caught.value)


def test_no_paths_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text files"):
        read_texts([tmp_path])
