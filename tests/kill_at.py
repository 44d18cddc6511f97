"""Run exltune and die by SIGKILL inside it: python kill_at.py module:function NUMBER ARGUMENT..."""

from __future__ import annotations

import functools
import os
import signal
import sys
from importlib import import_module
from typing import Any


def main() -> None:
    """Arm the function, then be the command."""
    where, number, *arguments = sys.argv[1:]
    arm(where, int(number))
    from exltune.cli import main as exltune

    sys.argv = ["exltune", *arguments]
    exltune()


def arm(where: str, number: int) -> None:
    """Let the process die as the `number`th call of `module:function` or `module:Class.method` begins."""
    module, _, path = where.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, import_module(module))
    original, left = getattr(owner, name), number

    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, deadly)


if __name__ == "__main__":
    main()
