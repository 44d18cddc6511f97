"""One step in a process of its own: `python -m parity.take STEP WORK --answer FILE`."""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from parity.kit import NOTE, Kit
from parity.schedule import STEPS
from parity.sizes import Sizes, sizes


@dataclass(frozen=True)
class Task:
    """What a step is told. kit: the folder that was prepared; end: of its time, by time.monotonic.

    dry: no card is here, the stand-in for exllamav3's kernels is, and sizes are tiny.
    """

    work: Path
    kit: Path | None
    answer: Path
    end: float
    dry: bool

    @property
    def device(self) -> torch.device:
        """The card."""
        return torch.device("cpu") if self.dry else torch.device("cuda", 0)

    @property
    def sizes(self) -> Sizes:
        """How much the step shall do."""
        return sizes(self.dry)

    @property
    def made_of(self) -> Kit:
        """What the kit was made of."""
        return Kit.read(self.carried(NOTE).parent)

    def carried(self, name: str) -> Path:
        """A file or folder of the kit. Raises: FileNotFoundError saying how to make it."""
        path = None if self.kit is None else self.kit / name
        if path is None or not path.exists():
            raise FileNotFoundError(f"the kit has no {name}: make one with gpu_parity.py --prepare KIT, and give --kit")
        return path

    def keep(self, found: Mapping[str, Any]) -> None:
        """Write down what is known so far, in case the step does not live to its end."""
        partial = self.answer.with_suffix(".partial")
        partial.write_text(json.dumps({"ok": False, "error": "it was ended early", **found}))
        partial.replace(self.answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=[step.name for step in STEPS])
    parser.add_argument("work", type=Path)
    parser.add_argument("--answer", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--kit", type=Path)
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    task = Task(args.work, args.kit, args.answer, time.monotonic() + args.seconds, args.dry)
    try:
        if task.dry:
            import_module("parity.dry").pretend_card()
        found = {"ok": True, **import_module(f"parity.steps.{args.step}").take(task)}
    except Exception as error:  # noqa: BLE001 - a script's edge: the answer is what is looked at
        traceback.print_exc()
        before = json.loads(task.answer.read_text()) if task.answer.is_file() else {}
        found = {**before, "ok": False, "error": f"{type(error).__name__}: {error}"[-2000:]}
    task.answer.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
