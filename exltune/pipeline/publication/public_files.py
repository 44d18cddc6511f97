"""Recipes, measurements, evaluations and verdicts as they are published: without the folders of this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from exltune.errors import UsageError
from exltune.pipeline.publication.published import Published
from exltune.store.names import EVALUATION, MEASUREMENT, RECIPE, VERDICT

#: Where the repository keeps each of a tune's files, named by branch.
FOLDERS = {RECIPE: "recipes", MEASUREMENT: "measurements", EVALUATION: "evaluations", VERDICT: "verdicts"}


def public_files(found: Published, evaluations: Sequence[Path]) -> dict[str, bytes]:
    """Contents by path in the repository. Raises: UsageError for two evaluations of one name, DataError."""
    files: dict[str, bytes] = {}
    for tune in found.tunes:
        for name, path in tune.files.items():
            files[f"{FOLDERS[name]}/{tune.quant.branch}{path.suffix}"] = _public(path)
    for path in evaluations:
        name = f"{FOLDERS[EVALUATION]}/{path.stem}.json"
        if name in files:
            raise UsageError(f"two evaluations would both be {name}", where=str(path), fix="Rename one of the files")
        files[name] = _public(path)
    return files


def _public(path: Path) -> bytes:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return (json.dumps(without_folders(json.loads(text)), indent=1, ensure_ascii=False) + "\n").encode()
    return yaml.safe_dump(without_folders(yaml.safe_load(text)), sort_keys=False, allow_unicode=True).encode()


def without_folders(content: Any) -> Any:
    """Absolute paths in JSON or YAML content as their last part: a home directory is nobody's business."""
    if isinstance(content, dict):
        return {key: without_folders(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_folders(value) for value in content]
    if isinstance(content, str):
        for kind in (PurePosixPath, PureWindowsPath):
            if kind(content).is_absolute() and kind(content).name:
                return kind(content).name
    return content
