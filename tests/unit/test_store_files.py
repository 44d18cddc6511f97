"""Outputs that appear whole or not at all."""

import pytest

from exltune.errors import OutputExistsError
from exltune.store.files import (
    exclusive,
    is_empty_but_for,
    locked,
    made,
    new_directory,
    refuse_existing,
    refuse_existing_file,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fill(path, text="new", **options):
    with new_directory(path, replaces="mark", **options) as partial:
        (partial / "mark").write_text(text)


def test_a_file_replaces_another_at_once(tmp_path):
    file = tmp_path / "deep" / "er" / "file"
    write_text(file, "first")
    write_text(file, "größer")
    assert file.read_text(encoding="utf-8") == "größer"
    assert names(file.parent) == ["file"]


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    write_text(tmp_path / "file", "old")
    for file in (tmp_path / "file", tmp_path / "new" / "file"):
        with pytest.raises(UnicodeEncodeError):
            write_text(file, "half\ud800")
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_directory_appears_when_it_is_done(tmp_path):
    out = tmp_path / "new" / "out"
    with new_directory(out, replaces="mark") as partial:
        (partial / "mark").write_text("new")
        assert not out.exists()
    assert (out / "mark").read_text() == "new"
    assert names(out.parent) == ["out"]


def test_a_directory_that_fails_leaves_nothing(tmp_path):
    def fail():
        with new_directory(tmp_path / "new" / "out", replaces="mark") as partial:
            (partial / "mark").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert names(tmp_path) == []


def test_what_earlier_attempts_left_is_removed(tmp_path):
    for name in (".out.partial", ".out.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stale").write_text("")
    (tmp_path / ".out.lock").write_text("")
    fill(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["mark"]


def test_an_existing_directory_is_replaced_only_by_force_and_only_if_ours(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    fill(out, "into an empty one")
    with pytest.raises(OutputExistsError, match="`force`"):
        fill(out)
    (out / "old").write_text("")
    fill(out, "replaced", force=True)
    assert names(out) == ["mark"]
    (out / "mark").rename(out / "precious")
    with pytest.raises(OutputExistsError, match="holds no mark"):
        fill(out, force=True)
    assert names(out) == ["precious"]


def test_a_file_is_never_replaced_by_a_directory_nor_the_other_way(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for force in (False, True):
        with pytest.raises(OutputExistsError):
            fill(tmp_path / "file", force=force)
        with pytest.raises(OutputExistsError, match="directory"):
            refuse_existing_file(tmp_path / "folder", force=force)


def test_refusal(tmp_path):
    refuse_existing(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    refuse_existing(tmp_path / "file", force=True)
    with pytest.raises(OutputExistsError, match="there already"):
        refuse_existing(tmp_path / "file")


def test_paths_without_a_name_and_links(tmp_path, monkeypatch):
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    fill(tmp_path / "link")
    assert (real / "mark").is_file()
    assert (tmp_path / "link").is_symlink()
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    with pytest.raises(OutputExistsError):
        fill(type(tmp_path)(".."))


def test_a_second_process_is_refused(tmp_path):
    with exclusive(tmp_path / "out"), locked(tmp_path / "file"):
        for hold in (exclusive(tmp_path / "out"), locked(tmp_path / "file")):
            with pytest.raises(OutputExistsError, match="at work"), hold:
                pass
    with exclusive(tmp_path / "out"), locked(tmp_path / "file"):
        pass
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == []


def test_a_lock_outlives_no_process(tmp_path):
    """A lock file that a killed process left holds nobody up."""
    (tmp_path / ".exltune.lock").write_text("")
    with exclusive(tmp_path):
        assert is_empty_but_for(tmp_path)


def test_directories_made_for_nothing_are_removed(tmp_path):
    def fail(directory, kept=()):
        with made(directory):
            for name in kept:
                (tmp_path / name).write_text("")
            raise RuntimeError

    for kept, left in (((), []), (("a/kept",), ["a"]), ((), ["a"])):
        with pytest.raises(RuntimeError):
            fail(tmp_path / "a" / "b", kept)
        assert names(tmp_path) == left
    assert names(tmp_path / "a") == ["kept"]
    (tmp_path / "a" / "kept").unlink()
    with pytest.raises(RuntimeError):
        fail(tmp_path / "a")
    assert names(tmp_path) == ["a"]


def test_what_is_empty(tmp_path):
    assert is_empty_but_for(tmp_path)
    (tmp_path / "job").write_text("")
    assert not is_empty_but_for(tmp_path)
    assert is_empty_but_for(tmp_path, "job")
