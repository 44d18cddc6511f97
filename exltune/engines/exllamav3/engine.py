"""The exllamav3 engine: models far larger than one GPU, streamed layer by layer over one or several of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from exltune.engines.base import MIN_EXPERT_TOKENS, ConvertJob, LayerCapture, Progress, ScoreStats
from exltune.engines.checks import check_mix, check_tokens
from exltune.engines.exllamav3.capture import CapturePass
from exltune.engines.exllamav3.chunks import out_of_memory
from exltune.engines.exllamav3.converter import convert
from exltune.engines.exllamav3.fits import hold_to
from exltune.engines.exllamav3.references import ReferenceRows
from exltune.engines.exllamav3.runtime import import_exllamav3, named_devices
from exltune.engines.exllamav3.scoring import Limits, ScorePass
from exltune.engines.exllamav3.shelf import Shelf
from exltune.engines.exllamav3.worker import Worker
from exltune.engines.streaming.prefix_tree import build_tree
from exltune.engines.streaming.results import scores_of
from exltune.engines.streaming.states import peak_states
from exltune.engines.streaming.weights import CheckpointWeights
from exltune.errors import EngineError, UsageError
from exltune.exl3.codebooks import Codebook
from exltune.exl3.hessian import Hessian, RotatedHessian
from exltune.exl3.linear import QuantizedLinear
from exltune.exl3.quantizer import QuantStats, quantize_linear
from exltune.exl3.tensors import TensorFiles
from exltune.inventory import is_exl3, load_inventory, load_unquantized, model_shape, read_config
from exltune.schema.mix import REFERENCE, Choice, Mix
from exltune.schema.score import Score

#: One part in so many of the RAM for hidden states keeps the unquantized model's from call to call; a call holds those
#: of its own rows once more.
_REFERENCE_SHARE = 8


class ExllamaEngine:
    """exllamav3's own modules in fp16 on CUDA devices.

    quants: choice -> EXL3 directory. devices: where it runs, or numbers of CUDA devices; all of these if none are
    given. limits: memory of a score call; state_bytes, vram_bytes: its hidden states in RAM, and its memory of
    each device, if other than the limits' own.
    Raises: EngineError where exllamav3 cannot be used, and all that reading the model raises.
    """

    name = "exllamav3"
    needs_gpu = True

    def __init__(
        self,
        model_dir: Path,
        quants: Mapping[Choice, Path],
        *,
        devices: Sequence[torch.device | int] = (),
        limits: Limits | None = None,
        state_bytes: int | None = None,
        vram_bytes: int | None = None,
        min_expert_tokens: int = MIN_EXPERT_TOKENS,
    ) -> None:
        import_exllamav3()
        given = tuple(device for device in devices if isinstance(device, torch.device))
        self.devices = given or named_devices([device for device in devices if isinstance(device, int)])
        self.model_dir = Path(model_dir)
        self.inventory = load_inventory(self.model_dir)
        config = read_config(self.model_dir)
        self._head_dim, self._window = model_shape(config).head_dim, unheeded_window(config)
        self.shelf = Shelf(quants, self.inventory)
        self.limits = limits or Limits()
        if state_bytes is not None:
            self.limits = replace(self.limits, state_bytes=state_bytes)
        if vram_bytes is not None:
            self.limits = replace(self.limits, vram_bytes=vram_bytes)
        for device in self.devices:
            hold_to(device, self.limits.vram_bytes)
        self.workers = [Worker(device, self.model_dir, self.inventory) for device in self.devices]
        self.min_expert_tokens = min_expert_tokens
        self._references = ReferenceRows(self.limits.state_bytes // _REFERENCE_SHARE)
        self.stats = ScoreStats()

    def score(self, mixes: Sequence[Mix], tokens: Tensor, progress: Progress | None = None) -> list[Score]:
        """As Engine.score; `stats` then holds the call's counts and seconds."""
        start = perf_counter()
        check_tokens(tokens, self.inventory, self.model_dir)
        self._check_window(tokens)
        for mix in mixes:
            check_mix(mix, self.inventory, (REFERENCE, *self.shelf.paths), self._head_dim)
        if not mixes:
            return []
        tree = build_tree(mixes, self.inventory)
        self.stats = ScoreStats(mixes=len(mixes), tokens=tokens.numel(), distinct_mixes=len(set(tree.leaves)))
        own = replace(self.limits, state_bytes=self.limits.state_bytes * (_REFERENCE_SHARE - 2) // _REFERENCE_SHARE)
        run = ScorePass(self.workers, self.shelf, self.inventory, own, self.stats)
        run.reference = self._references.find(tokens)
        with _lost_devices():
            sums = run.run(tree, tokens, progress)
        if run.reference is not None:
            self._references.keep(tokens, run.reference)
        self.stats.total_seconds = perf_counter() - start
        return scores_of(mixes, tree, sums, tokens.shape[1] - 1)

    def add_quants(self, quants: Mapping[Choice, Path]) -> None:
        """As Engine.add_quants."""
        self.shelf.add(quants)

    def rows_at_once(self, mixes: Sequence[Mix], length: int) -> int:
        """As Engine.rows_at_once; files beside the RAM are memory too."""
        states = peak_states(build_tree(mixes, self.inventory).layers)
        return self.limits.room() // (4 * states * length * self.inventory.hidden_size)

    def capture(
        self, tokens: Tensor, keys: Collection[str] | None = None, progress: Progress | None = None
    ) -> Iterator[LayerCapture]:
        """As Engine.capture, on the first device."""
        check_tokens(tokens, self.inventory, self.model_dir)
        rows = self.limits.batch_rows(tokens.shape[1])
        return CapturePass(self.workers[0], self.inventory, self.min_expert_tokens, rows).run(tokens, keys, progress)

    def quantize(
        self, key: str, hessian: Hessian | RotatedHessian | None, bits: float, codebook: Codebook, seed: str
    ) -> tuple[QuantizedLinear, QuantStats]:
        """As Engine.quantize, with the encoder of the CPU; `convert` is the fast way."""
        self._group_of(key)
        if is_exl3(files := TensorFiles(self.model_dir)):
            load_unquantized(self.model_dir)
        weights = CheckpointWeights(files).linear(self.shelf.specs[key])
        return quantize_linear(weights.weight.T.contiguous(), hessian, bits, codebook, seed, weights.bias)

    def rfn(self, choice: Choice, keys: Iterable[str] | None = None) -> dict[str, float]:
        """As Engine.rfn, on the first device."""
        wanted = list(keys) if keys is not None else self._grouped_keys()
        worker, errors = self.workers[0], {}
        for key in wanted:
            group = self._group_of(key)
            with worker.weight_of(key, {}) as weight:
                reference = weight.float()
            if choice == REFERENCE:
                errors[key] = 0.0
                continue
            with worker.weight_of(key, self.shelf.read([(group, choice)])[group, choice]) as weight:
                errors[key] = float((weight.float() - reference).norm() / reference.norm())
        return errors

    def convert(self, job: ConvertJob, tokens: Tensor, progress: Progress | None = None) -> None:
        """As Converter.convert, on all devices of this engine."""
        load_unquantized(self.model_dir)
        check_tokens(tokens, self.inventory, self.model_dir)
        convert(self.model_dir, self.inventory, job, tokens, [device.index or 0 for device in self.devices], progress)

    def _check_window(self, tokens: Tensor) -> None:
        if self._window is not None and tokens.shape[1] > self._window:
            raise UsageError(
                f"rows of {tokens.shape[1]} tokens reach beyond the model's sliding window of {self._window}, and "
                f"exllamav3 runs {self.inventory.architecture} without one",
                where=str(self.model_dir),
                fix=f"Give rows of at most {self._window} tokens (`row_length`), or `engine` reference",
            )

    def _grouped_keys(self) -> list[str]:
        return [key for group in (*self.inventory.groups, self.inventory.head) for key in group.tensors]

    def _group_of(self, key: str) -> str:
        for group in (*self.inventory.groups, self.inventory.head):
            if key in group.tensors:
                return group.id
        raise UsageError(f"the model has no linear {key!r}", where=str(self.model_dir))


def unheeded_window(config: Mapping[str, Any]) -> int | None:
    """Tokens that the model's layers see at most, where exllamav3 lets them see all; None where nothing is lost.

    Source: exllamav3 1.6.5, architecture/{qwen2,qwen3,qwen3_moe,mistral}.py, which read no window.
    """
    if not config.get("use_sliding_window", "MistralForCausalLM" in (config.get("architectures") or ())):
        return None
    window = config.get("sliding_window")
    return None if window is None else int(window)


@contextmanager
def _lost_devices() -> Iterator[None]:
    """A device that failed fails for good, and for the whole process: that is said instead of a trace.

    One that is full while a layer is loaded, where no smaller chunks help, is told too.
    """
    try:
        yield
    except RuntimeError as error:
        if out_of_memory(error):
            raise EngineError(
                f"a CUDA device has too little memory for a layer ({str(error).splitlines()[0]})",
                fix="Free memory of the device, or give more of it (`max_vram`)",
            ) from error
        if "CUDA error" not in str(error):
            raise
        raise EngineError(
            f"a CUDA device failed ({str(error).splitlines()[0]})",
            fix="See nvidia-smi and dmesg, then run the same command again: earlier scores are kept",
        ) from error
