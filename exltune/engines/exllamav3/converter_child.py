"""The code of the conversion's process; importing it costs nothing."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence


def run(arguments: Sequence[str], log: str) -> None:
    """Convert with these arguments of exllamav3's own parser; all that is printed goes to `log`."""
    parent = os.getppid()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with open(log, "w", encoding="utf-8", buffering=1) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        sys.stdout = sys.stderr = file
        try:
            _convert(arguments)
        except Exception:  # noqa: BLE001
            # The edge of this process: the user is shown these lines.
            traceback.print_exc(file=file)
            raise SystemExit(1) from None


def _convert(arguments: Sequence[str]) -> None:
    from exllamav3.conversion import convert_model

    from exltune.engines.exllamav3.mends import mend

    mend()
    prepared, state, ready, problem = convert_model.prepare(convert_model.parser.parse_args(list(arguments)))
    if not ready:
        raise ValueError(problem)
    convert_model.main(prepared, state)


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
