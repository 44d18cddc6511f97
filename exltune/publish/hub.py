"""A model repository on the Hugging Face Hub, through huggingface_hub: its retries, its chunks, its skipping."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token

from exltune.errors import HubError, StorageError
from exltune.publish.hub_errors import hub_errors
from exltune.schema.push import PushedBranch

MAIN = "main"


def read_token(file: Path | None) -> str:
    """The token of a file, of HF_TOKEN, or of `hf auth login`. Raises: HubError where there is none, StorageError."""
    if file is None:
        token = get_token()
        if token is None:
            raise HubError(
                "there is no token for the Hub", fix="Set HF_TOKEN, give `token_file` FILE, or run hf auth login"
            )
        return token
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        # The content is never shown, whatever it is.
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise StorageError(f"the token cannot be read ({reason})", where=str(file), fix="Check `token_file`") from None
    if not token or any(not letter.isprintable() or letter.isspace() for letter in token):
        raise HubError("it holds no token", where=str(file), fix="Write the token alone into it")
    return token


class Repository:
    """One model repository. Every method raises HubError."""

    def __init__(self, repo_id: str, token: str, endpoint: str | None = None) -> None:
        self.repo_id = repo_id
        self._token = token
        self._api = HfApi(endpoint=endpoint, token=token, library_name="exltune")

    def check_token(self) -> None:
        """Ask the Hub whether it knows the token, before anything is made or hashed."""
        with self._errors():
            self._api.whoami()

    def create(self, *, private: bool) -> str:
        """Make the repository where it is not there yet; its address."""
        with self._errors():
            return str(self._api.create_repo(self.repo_id, private=private, exist_ok=True))

    def create_branch(self, branch: str) -> None:
        """Make a branch where it is not there yet."""
        with self._errors():
            self._api.create_branch(self.repo_id, branch=branch, exist_ok=True)

    def commit(self, branch: str, files: Mapping[str, Path], message: str) -> PushedBranch:
        """Bring files to a branch in one commit; the library sends only files that the Hub does not have."""
        operations = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path)) for name, path in sorted(files.items())
        ]
        with self._errors():
            before = self._head(branch)
            made = self._api.create_commit(self.repo_id, operations, commit_message=message, revision=branch)
        return PushedBranch(branch=branch, commit=made.oid, changed=made.oid != before)

    def _head(self, branch: str) -> str | None:
        refs = self._api.list_repo_refs(self.repo_id)
        return next((ref.target_commit for ref in refs.branches if ref.name == branch), None)

    def _errors(self) -> AbstractContextManager[None]:
        return hub_errors(self.repo_id, self._token)
