"""Outputs appear whole or not at all: written to a temporary name, flushed, renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from exltune.errors import OutputExistsError

_LOCK = ".exltune.lock"


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)


@contextmanager
def new_directory(path: Path, *, force: bool = False) -> Iterator[Path]:
    """A directory to write into that becomes `path` when the block ends well; a stale attempt is removed first.

    Raises: OutputExistsError where `path` holds anything and force is not given, or another exltune writes it.
    """
    refuse_existing(path, force=force)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with _held(path.with_name(f".{path.name}.lock"), path):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        if path.is_dir():
            shutil.rmtree(path)
        partial.rename(path)


def refuse_existing(path: Path, *, force: bool = False) -> None:
    """Raise OutputExistsError for an output that would be overwritten; an empty directory is none."""
    if force or not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    raise OutputExistsError("the output is there already", where=str(path), fix="Give another --out, or --force")


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold a directory against a second exltune. Raises: OutputExistsError where one is at work there."""
    directory.mkdir(parents=True, exist_ok=True)
    with _held(directory / _LOCK, directory):
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
        lock.release()
        lock_file.unlink(missing_ok=True)


def holds_only_ours(directory: Path, ours: str) -> bool:
    """Whether a directory is absent, empty but for the lock, or marked as ours by a file of that name."""
    if not directory.is_dir():
        return True
    return (directory / ours).is_file() or all(entry.name == _LOCK for entry in directory.iterdir())
