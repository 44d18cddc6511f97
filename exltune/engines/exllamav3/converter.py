"""exllamav3's conversion in a process of its own: its checkpoints, its devices, its last words if it fails."""

from __future__ import annotations

import json
import multiprocessing
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from torch import Tensor

from exltune.engines.base import ConvertJob, Progress
from exltune.engines.exllamav3.converter_child import run
from exltune.errors import EngineError
from exltune.schema.inventory import Inventory

LOG = "convert.log"
_POLL_SECONDS = 0.2
#: Work that a kill costs at most, beside the layer in work.
CHECKPOINT_SECONDS = 60
_LAST_LINES = 5
_KILLED = -9
#: Text in the last lines of a conversion, and its remedy.
_REMEDIES = (
    ("No space left on device", "Make room on the disk"),
    ("File too large", "Raise the limit of file sizes (ulimit -f)"),
    ("out of memory", "Free memory of the GPU, or name others with `devices`,"),
    ("CUBLAS_STATUS_ALLOC_FAILED", "Free memory of the GPU, or name others with `devices`,"),
    ("CUDA error", "See nvidia-smi and dmesg (`devices` leaves a broken GPU out)"),
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_DONE = re.compile(r"^ -- (?:Quantized|Unquantized): (\S+)\s+bpw:")
_RESUMED = re.compile(r"^ -- Resuming at: (\S+)")


def convert(
    model_dir: Path,
    inventory: Inventory,
    job: ConvertJob,
    tokens: Tensor,
    devices: Sequence[int],
    progress: Progress | None = None,
) -> None:
    """Write the EXL3 directory job.out, taking up an earlier attempt in job.work_dir.

    tokens: (rows, T) calibration rows. progress counts weights.
    Raises: EngineError with the conversion's last lines if it fails; finished work stays in job.work_dir.
    """
    arguments = _arguments(model_dir, job, _calibration(job.work_dir, tokens), tokens, devices)
    log = job.work_dir / LOG
    process = multiprocessing.get_context("spawn").Process(target=run, args=(arguments, str(log)), daemon=True)
    log.unlink(missing_ok=True)
    process.start()
    try:
        watch = _Watch(inventory, progress)
        while process.is_alive():
            process.join(_POLL_SECONDS)
            watch.read(log)
        watch.read(log)
    finally:
        # Also where the user interrupts: nobody would watch it any more.
        process.terminate()
        process.join()
    if process.exitcode:
        raise failure(_last_lines(log), process.exitcode, log)
    # Its card speaks of the model that it was made from.
    (job.out / "README.md").unlink(missing_ok=True)


def failure(last_lines: str, code: int, log: Path) -> EngineError:
    """The error for a conversion that ended with a code other than 0."""
    killed = f"it was killed by signal {-code}" if code < 0 else ""
    what = "; ".join(filter(None, [last_lines, killed])) or f"it ended with {code}"
    remedy = "Make room in RAM, which is the usual cause," if code == _KILLED else "Mend that"
    remedy = next((fix for words, fix in _REMEDIES if words in last_lines), remedy)
    return EngineError(
        f"exllamav3's conversion failed: {what}",
        where=str(log),
        fix=f"{remedy} and run the same command again: it goes on from its last checkpoint",
    )


def _arguments(model_dir: Path, job: ConvertJob, data: Path, tokens: Tensor, devices: Sequence[int]) -> list[str]:
    """Arguments of the converter's own parser. Source: exllamav3 1.6.5, conversion/convert_model.py."""
    options: dict[str, object] = {
        "--in_dir": model_dir.resolve(),
        "--work_dir": job.work_dir.resolve(),
        "--out_dir": job.out.resolve(),
        "--bits": job.bits,
        "--head_bits": job.head_bits,
        "--codebook": job.codebook,
        "--cal_data": data.resolve(),
        "--cal_rows": tokens.shape[0],
        "--cal_cols": tokens.shape[1],
        "--devices": ",".join(map(str, devices)),
        "--checkpoint_interval": CHECKPOINT_SECONDS,
    }
    if job.recipe is not None:
        options["--recipe"] = _recipe(job, job.recipe).resolve()
    if job.hq:
        options["--hq"] = job.hq
    resumed = ["--resume"] if (job.work_dir / "ckpt" / "job.json").is_file() else []
    return [*resumed, *(word for option, value in options.items() for word in (option, f"{value}"))]


def _recipe(job: ConvertJob, tensors: Mapping[str, float]) -> Path:
    """The recipe as a file (JSON is YAML too), whole bits as integers: exllamav3 shifts by them."""
    path = job.work_dir / "recipe.yaml"
    whole = {key: int(bits) if float(bits).is_integer() else bits for key, bits in tensors.items()}
    content = {"target_bpw": job.bits, "head_bits": job.head_bits, "tensors": whole}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def _calibration(folder: Path, tokens: Tensor) -> Path:
    """Rows as the converter takes them.

    Source: exllamav3 1.6.5, conversion/calibration_data.py get_file_calibration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "calibration.safetensors"
    rows, length = tokens.shape
    lengths = np.full(rows, length, dtype=np.int32)
    save_file({"input_ids": tokens.numpy().astype(np.int32), "lengths": lengths}, path)
    return path


class _Watch:
    """Follows the log: every linear that it names is done."""

    def __init__(self, inventory: Inventory, progress: Progress | None) -> None:
        self.progress = progress
        self._sizes = {spec.key: spec.padded_in * spec.padded_out for spec in inventory.linears if not spec.role.fp16}
        self._total, self._left = sum(self._sizes.values()), dict(self._sizes)
        self._at = 0

    def read(self, log: Path) -> None:
        """Take in the text written since the last call."""
        if self.progress is None or not log.is_file():
            return
        with log.open("rb") as handle:
            handle.seek(self._at)
            whole, newline, _ = handle.read().rpartition(b"\n")
        self._at += len(whole + newline)
        for line in _COLOUR.sub("", whole.decode("utf-8", errors="replace")).splitlines():
            resumed, done = _RESUMED.match(line), _DONE.match(line)
            if resumed:
                self._skip(resumed[1])
            elif done and self._left.pop(done[1], None):
                self.progress(self._total - sum(self._left.values()), self._total, done[1])

    def _skip(self, module: str) -> None:
        """All that comes before a module was done by an earlier attempt."""
        for key in self._sizes:
            if key == module or key.startswith(f"{module}."):
                return
            self._left.pop(key, None)


def _last_lines(log: Path) -> str:
    lines = _COLOUR.sub("", log.read_text(encoding="utf-8", errors="replace")).splitlines() if log.is_file() else []
    return " / ".join(" ".join(line.split()) for line in [line for line in lines if line.strip()][-_LAST_LINES:])
