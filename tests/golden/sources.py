"""A lock of the sources that decide results: per algorithm its version, and a hash of its code without its words."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from exltune.schema.versions import ALGORITHMS, owner_of

PACKAGE = Path(__file__).resolve().parents[2] / "exltune"
LOCK = Path(__file__).resolve().parent / "sources.json"

#: Fields of the tree that say nothing to the interpreter: where code stands, and types.
_SILENT = ("annotation", "returns", "type_comment", "type_ignores", "type_params", "kind")

Lock = Mapping[str, Mapping[str, object]]


def files_by_algorithm(package: Path = PACKAGE) -> dict[str, list[Path]]:
    """Algorithm -> its files. Raises: KeyError for a file that is in no algorithm and in no idle package."""
    found: dict[str, list[Path]] = {name: [] for name in ALGORITHMS}
    for file in sorted(package.rglob("*.py")):
        owner = owner_of(file.relative_to(package).as_posix())
        if owner is not None:
            found[owner].append(file)
    return found


def lock(package: Path = PACKAGE) -> Lock:
    """The lock of a package as it is now."""
    return {
        name: {"version": ALGORITHMS[name].version, "sha256": _sha256(package, files)}
        for name, files in sorted(files_by_algorithm(package).items())
    }


def read_lock() -> Lock:
    """The lock as it was written; empty where it never was."""
    return dict(json.loads(LOCK.read_text(encoding="utf-8"))) if LOCK.is_file() else {}


def write_lock(content: Lock) -> None:
    """Write the lock."""
    LOCK.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


@cache
def normalized(source: str) -> str:
    """Code without comments, docstrings and types; the same on every version of Python."""
    return "".join(_written(ast.parse(source)))


def _sha256(package: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(package).as_posix()
        digest.update(f"{name}\n{normalized(file.read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()


def _written(node: object) -> Iterator[str]:
    """A tree as text. Empty fields are left out: which ones a node has depends on the version of Python."""
    if isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for name, value in ast.iter_fields(_without_docstring(node)):
            if name not in _SILENT and value is not None and value != []:
                yield f" {name}="
                yield from _written(value)
        yield ")"
    elif isinstance(node, list):
        yield "["
        for entry in node:
            yield from _written(entry)
        yield "]"
    else:
        yield repr(node)


def _without_docstring(node: ast.AST) -> ast.AST:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return node
    if ast.get_docstring(node, clean=False) is not None:
        node.body = node.body[1:]
    return node
