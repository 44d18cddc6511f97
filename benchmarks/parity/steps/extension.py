"""exllamav3's extension: the carried one if it works on this card, else the one that is built here."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch

from exltune.engines.exllamav3.runtime import import_exllamav3
from parity import extension
from parity.take import Task

_CHECK_SECONDS = 40
#: exllamav3 with its extension, and one of its kernels on the card.
_CHECK = "from parity.steps.extension import check; print(check('cuda:0'))"


def take(task: Task) -> dict[str, Any]:
    if task.dry:
        return {"carried": False, "refused": None, "hadamard_error": check("cpu")}
    library, refused = task.work / "site" / extension.NAME, None
    if library.is_file():
        try:
            return {"carried": True, "refused": None, "hadamard_error": _tried()}
        except RuntimeError as error:
            refused = str(error)
            library.unlink()
            task.keep({"carried": False, "refused": refused})
    extension.wait_for_build(task.work, task.end - 15)
    return {"carried": False, "refused": refused, "hadamard_error": _tried()}


def _tried() -> float:
    """`check` in a process of its own, which a library that does not fit may end or hang. Raises: RuntimeError."""
    words = [sys.executable, "-c", _CHECK]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_CHECK_SECONDS)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"its first kernel had not run after {_CHECK_SECONDS} s") from None
    if done.returncode:
        raise RuntimeError(f"its first kernel ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
    return float(done.stdout.splitlines()[-1])


def check(device: str) -> float:
    """The largest error of exllamav3's Hadamard kernel on rows of 256. Raises: RuntimeError where it is large."""
    import_exllamav3()
    from exllamav3.ext import exllamav3_ext

    rows = torch.randn(4, 256, generator=torch.Generator().manual_seed(0)).half().to(device)
    found = torch.empty_like(rows)
    exllamav3_ext.had_r_128(rows, found, None, None, 1.0)
    error = (found.float().cpu() - rows.float().cpu().view(-1, 128).matmul(_hadamard()).view(4, 256)).abs().max().item()
    if not error < 0.01:
        raise RuntimeError(
            f"exllamav3's Hadamard transform is off by {error:.3g}: the extension does not fit this card"
        )
    return error


def _hadamard() -> torch.Tensor:
    """Sylvester's matrix of 128, orthonormal."""
    matrix = torch.ones(1, 1)
    for _ in range(7):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / 128**0.5
