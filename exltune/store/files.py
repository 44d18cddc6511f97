"""Outputs appear whole or not at all: written to a temporary name, flushed, renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path

from filelock import FileLock, Timeout

from exltune.errors import OutputExistsError

_LOCK = ".exltune.lock"


def write_text(path: Path, text: str) -> None:
    """Write a file of text atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    temporary = path.with_name(f".{path.name}.partial")
    with made(path.parent):
        try:
            with temporary.open("wb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def new_directory(path: Path, *, force: bool = False, replaces: str) -> Iterator[Path]:
    """A directory to write into that becomes `path` when the block ends well; a stale attempt is removed first.

    replaces: force replaces a directory only where it holds a file of this name, so that it never costs a stranger's.
    Raises: OutputExistsError where `path` holds anything and force is not given, or another exltune writes it.
    """
    path = path.resolve()
    _refuse_existing_directory(path, force=force, replaces=replaces)
    partial = path.with_name(f".{path.name}.partial")
    with made(path.parent), locked(path):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _put_in_place(partial, path)


def _put_in_place(partial: Path, path: Path) -> None:
    """Rename, never delete, under the final name: a kill may leave no half of the old directory there."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.is_dir():
        path.rename(old)
    partial.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _refuse_existing_directory(path: Path, *, force: bool, replaces: str) -> None:
    if path.is_dir():
        if not any(path.iterdir()):
            return
        if force and not (path / replaces).is_file():
            raise OutputExistsError(
                f"it holds no {replaces}, so `force` does not replace it", where=str(path), fix="Give another `out`"
            )
    refuse_existing(path, force=force and not path.is_file())


def refuse_existing(path: Path, *, force: bool = False) -> None:
    """Raise OutputExistsError for an output that would be overwritten."""
    if path.exists() and not force:
        raise OutputExistsError("the output is there already", where=str(path), fix="Give another `out`, or `force`")


def refuse_existing_file(path: Path, *, force: bool = False) -> None:
    """Raise OutputExistsError for a file that would be overwritten, and for a directory in its place."""
    if path.is_dir():
        raise OutputExistsError("it is a directory, and the output is a file", where=str(path), fix="Name a file")
    refuse_existing(path, force=force)


@contextmanager
def made(directory: Path) -> Iterator[None]:
    """The directory with its parents; those made here are gone again where the block fails and leaves them empty."""
    absent = list(takewhile(lambda path: not path.exists(), (directory, *directory.parents)))
    directory.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for path in absent:
                path.rmdir()
        raise


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Make a directory and hold it against a second exltune. Raises: OutputExistsError where one is at work there."""
    with made(directory), _held(directory / _LOCK, directory):
        yield


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an output that is yet to be against a second exltune. Raises: OutputExistsError where one writes it."""
    with made(path.parent), _held(path.with_name(f".{path.name}.lock"), path):
        yield


@contextmanager
def _held(lock_file: Path, what: Path) -> Iterator[None]:
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OutputExistsError("another exltune is at work here", where=str(what), fix="Wait for it") from error
    try:
        yield
    finally:
        # In this order: a file that is removed after its release may be another's lock by then.
        lock_file.unlink(missing_ok=True)
        lock.release()


def is_empty_but_for(directory: Path, *names: str) -> bool:
    """Whether a directory holds nothing but entries of these names and the lock of `exclusive`."""
    return all(entry.name in (_LOCK, *names) for entry in directory.iterdir())
