"""The changes of `exltune push`, made or planned."""

from __future__ import annotations

from typing import Literal

from exltune.schema.base import Record


class PushAction(Record):
    """One step. path: in the branch, None for a step on the branch itself; reason: why a file is left out."""

    do: Literal["create repository", "create branch", "upload", "leave out"]
    branch: str
    path: str | None = None
    size_bytes: int = 0
    reason: str | None = None


class PushedBranch(Record):
    """A branch as it stands now. changed: false where everything was there already."""

    branch: str
    commit: str
    changed: bool


class PushResult(Record):
    """All steps in order; `branches` is empty for a dry run. size_bytes: of all uploads, those skipped included."""

    repo_id: str
    url: str | None
    dry_run: bool
    actions: tuple[PushAction, ...]
    size_bytes: int
    branches: tuple[PushedBranch, ...]
