"""From a bare GPU box to a verdict on the exllamav3 engine, in two calls: one of 9.5 minutes and one of 3.5.

    python benchmarks/gpu_parity.py --prepare KIT                  # long before: all that needs no card
    python benchmarks/gpu_parity.py --kit KIT --dry-run --out DIR  # the same path without a card
    python benchmarks/gpu_parity.py --kit KIT --out DIR            # on the box, and again, at once, with --minutes 3.3

On the box every step that has no good result yet is taken, in the order of parity/schedule.py, each within its own
limit; the run ends before --minutes are over. Findings are written at once to one JSON, OUT/<card>.json, and what the
steps printed to OUT/logs.txt. --step NAME takes one step, --again also those that are good. Exit codes: 0 all is well,
1 something failed or is left, 2 no GPU.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from parity.runner import DRY_CARD, ROOT, Setup, run_steps
from parity.schedule import CALL_SECONDS, STEPS

#: The box's, by its own list (2026-11).
_BOX_TORCH = "2.11.0"


def main() -> None:
    args = _arguments()
    if args.prepare is not None:
        _prepare(args)
        return
    card = DRY_CARD if args.dry_run else _card()
    if card is None:
        print("there is no CUDA device: nvidia-smi names none. Nothing was measured.", file=sys.stderr)
        sys.exit(2)
    # Steps run elsewhere than this process.
    setup = Setup(args.work.resolve(), args.out, args.kit.resolve() if args.kit else None, args.resume, args.dry_run)
    sys.exit(run_steps(setup, card, 60 * args.minutes, args.step, args.again))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", type=Path, metavar="KIT", help="make the kit in this folder, and end")
    parser.add_argument(
        "--python", type=Path, help="a Python of the box's version, for --prepare; 3.12 if there is one"
    )
    parser.add_argument("--torch", default=_BOX_TORCH, help="the box's torch, for --prepare")
    parser.add_argument("--kit", type=Path, help="the folder that --prepare filled")
    parser.add_argument("--dry-run", action="store_true", help="the stand-in takes the card's place; sizes are tiny")
    parser.add_argument("--out", type=Path, default=ROOT / "measurements" / "gpu")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "exltune-parity")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="results of a machine that is gone, to go on from")
    parser.add_argument("--minutes", type=float, default=CALL_SECONDS[0] / 60)
    parser.add_argument("--step", choices=[step.name for step in STEPS])
    parser.add_argument("--again", action="store_true")
    return parser.parse_args()


def _prepare(args: argparse.Namespace) -> None:
    from parity.kit import Box, Kit, prepare

    python = args.python or _python()
    prepare(args.prepare, Kit(), lambda line: print(line, flush=True), Box(python, args.torch))


def _python() -> Path:
    """A Python of the box's version on this machine."""
    found = [*sorted(Path.home().glob(".pyenv/versions/3.12*/bin/python")), shutil.which("python3.12")]
    if found[0] is None:
        print("there is no Python 3.12 here, as the box has: name one with --python", file=sys.stderr)
        sys.exit(1)
    return Path(found[0])


def _card() -> str | None:
    """The first card's name, asked of the driver: torch may not be installed yet."""
    try:
        words = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return names[0].strip() if names else None


if __name__ == "__main__":
    main()
