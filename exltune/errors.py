"""Every error a user can cause, drawn as a tree; each class has its own exit code.

```text
ExltuneError
├── UsageError                         2   arguments that contradict each other or name nothing
├── ModelError                         3   the model directory cannot be used
│   ├── NotAModelError                10
│   ├── UnsupportedArchitectureError  11
│   ├── MissingTensorError            12
│   ├── CorruptFileError              13   truncated or unreadable safetensors
│   └── NonFiniteError                14   NaN or inf in weights or activations
├── BudgetError                        4   nothing fits, or the target is out of range
├── RecipeError                        5   unknown or missing keys, impossible bits
├── QuantMismatchError                 6   base quants that belong to another model
├── DataError                          7   too few tokens, empty or unreadable texts
├── OutputExistsError                  8   an output is there and --force was not given
├── VerdictError                       9   the demo's tuned mix did not win
├── StorageError                      15   the system refuses to read or write: a full disk, no permission
├── DeployError                       16   a server refuses, fails, is gone, or serves something else than was planned
├── CompareRefusedError               17   two quants that cannot be compared: other bytes or tokens, incomplete runs
├── CompareLostError                  18   the candidate is worse than the baseline
├── HubError                          19   the Hugging Face Hub refuses, fails or cannot be reached
├── EngineError                       21   an engine cannot run here, or its hardware fails
└── WorkerLostError                   20   workers of a cluster are lost again and again, or never come
```
"""

from __future__ import annotations

import re
from typing import Any


class ExltuneError(Exception):
    """Something the user can mend: `what` went wrong, `where`, and the `fix`."""

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        parts = [what if where is None else f"{where}: {what}"]
        if fix is not None:
            parts.append(fix)
        super().__init__(". ".join(part.rstrip(".") for part in parts) + ".")

    def __reduce__(self) -> tuple[object, ...]:
        """As it was made, so that it comes whole out of another process."""
        return _remade, (type(self), dict(vars(self)))


def _remade(kind: type[ExltuneError], fields: dict[str, Any]) -> ExltuneError:
    return kind(fields.pop("what"), **fields)


class UsageError(ExltuneError):
    """Arguments that contradict each other or name nothing that exists."""

    exit_code = 2


class ModelError(ExltuneError):
    """The model directory cannot be used."""

    exit_code = 3


class NotAModelError(ModelError):
    """The path is not a directory with a config.json and safetensors."""

    exit_code = 10


class UnsupportedArchitectureError(ModelError):
    """The config names an architecture without a row in the inventory's table."""

    exit_code = 11


class MissingTensorError(ModelError):
    """A tensor that the architecture needs is not in the safetensors files."""

    exit_code = 12


class CorruptFileError(ModelError):
    """A safetensors or JSON file is truncated or unreadable."""

    exit_code = 13


class NonFiniteError(ModelError):
    """Weights, activations or scores hold NaN or inf; `mixes` names the mixes where only their scores do."""

    exit_code = 14

    def __init__(
        self, what: str, *, where: str | None = None, fix: str | None = None, mixes: tuple[str, ...] = ()
    ) -> None:
        self.mixes = mixes
        super().__init__(what, where=where, fix=fix)


class BudgetError(ExltuneError):
    """No mix fits the target, or the target is above the largest possible."""

    exit_code = 4


class RecipeError(ExltuneError):
    """A recipe has unknown or missing keys, or bits that do not exist."""

    exit_code = 5


class QuantMismatchError(ExltuneError):
    """A quant directory belongs to another model or is incomplete."""

    exit_code = 6


class DataError(ExltuneError):
    """Texts that are empty, unreadable or too short for the tokens asked for."""

    exit_code = 7


class OutputExistsError(ExltuneError):
    """An output is there already and may not be overwritten."""

    exit_code = 8


class VerdictError(ExltuneError):
    """The tuned mix is not better than the uniform quant on held-out tokens."""

    exit_code = 9


class StorageError(ExltuneError):
    """The system refuses to read or write a file: a full disk, no permission."""

    exit_code = 15


class DeployError(ExltuneError):
    """A server refuses a load or a key, fails, goes away, or serves something else than was planned."""

    exit_code = 16


class CompareRefusedError(ExltuneError):
    """Two quants cannot be compared: other bytes, other or known tokens, incomplete runs."""

    exit_code = 17


class CompareLostError(ExltuneError):
    """The candidate is worse than the baseline."""

    exit_code = 18


class HubError(ExltuneError):
    """The Hugging Face Hub refuses a token, a right or more bytes, fails, or cannot be reached."""

    exit_code = 19


class EngineError(ExltuneError):
    """An engine cannot run here (no GPU, no extension, a wrong version), or its hardware fails or is too small."""

    exit_code = 21


class WorkerLostError(ExltuneError):
    """Workers of a cluster are lost again and again over the same work, or there is no room for any."""

    exit_code = 20


def without_password(url: str) -> str:
    """A URL as it may be shown, also one that cannot be parsed."""
    return re.sub(r"(://[^:/@]*:)[^@]*@", r"\1***@", url)
