"""What a Hub holds: repositories, branches, commits and large files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

#: From here on, or with this ending, the Hub keeps a file as LFS.
LARGE_BYTES = 10 * 1024
LARGE_ENDINGS = (".safetensors", ".png")


@dataclass
class Branch:
    """Files by path, each as the oid that the Hub reports and its content or LFS sha256."""

    files: dict[str, tuple[str, bytes | str]] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    @property
    def head(self) -> str:
        return self.commits[-1]

    def commit(self, message: str) -> str:
        content = json.dumps([message, len(self.commits), sorted((k, v[0]) for k, v in self.files.items())])
        self.commits.append(hashlib.sha1(content.encode()).hexdigest())
        return self.head


@dataclass
class Repo:
    """A repository begins with a commit of .gitattributes, as on the Hub."""

    private: bool
    branches: dict[str, Branch] = field(default_factory=dict)

    def __post_init__(self) -> None:
        first = Branch({".gitattributes": (git_oid(b"*.safetensors filter=lfs"), b"*.safetensors filter=lfs")})
        first.commit("initial commit")
        self.branches["main"] = first

    def branch_off(self, name: str) -> None:
        main = self.branches["main"]
        self.branches[name] = Branch(dict(main.files), list(main.commits))


def git_oid(content: bytes) -> str:
    """What git calls a blob; regular files are compared by it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def upload_mode(path: str, size: int) -> str:
    """Whether a file is kept by git or as LFS."""
    return "lfs" if path.endswith(LARGE_ENDINGS) or size > LARGE_BYTES else "regular"
