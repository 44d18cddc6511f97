"""The reference engine: slow on large models, exact, and at home on any machine."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from exltune.engines.base import MIN_EXPERT_TOKENS, LayerCapture, Progress, ScoreStats
from exltune.engines.checks import check_mix, check_tokens
from exltune.engines.reference.capture import CapturePass
from exltune.engines.reference.scoring import Limits, ScorePass
from exltune.engines.reference.shell import ModelShell
from exltune.engines.reference.store import WeightStore
from exltune.engines.reference.workers import Workers
from exltune.engines.streaming.prefix_tree import build_tree
from exltune.engines.streaming.results import scores_of
from exltune.engines.streaming.states import peak_states
from exltune.errors import UsageError
from exltune.exl3.codebooks import Codebook
from exltune.exl3.hessian import Hessian, RotatedHessian
from exltune.exl3.linear import QuantizedLinear
from exltune.exl3.quantizer import QuantStats, quantize_linear
from exltune.exl3.tensors import TensorFiles
from exltune.inventory import load_inventory, load_unquantized
from exltune.schema.inventory import LinearSpec
from exltune.schema.mix import Choice, Mix
from exltune.schema.score import Score


class ReferenceEngine:
    """transformers' layers in fp32 on the CPU, with weights from the checkpoint and from EXL3 directories.

    model_dir: the reference, unquantized or an EXL3 directory. quants: choice -> EXL3 directory. cache_bytes:
    dequantized weights kept between calls. limits: memory of a score call; state_bytes: those of its states, if other
    than the limits' own. threads: how many run at once, each on one core (torch's own number if None). The model is
    checked when the engine is made; quants are opened when a mix first needs them.
    """

    name = "reference"
    needs_gpu = False

    def __init__(
        self,
        model_dir: Path,
        quants: Mapping[Choice, Path],
        *,
        cache_bytes: int = 1 << 30,
        limits: Limits | None = None,
        state_bytes: int | None = None,
        threads: int | None = None,
        min_expert_tokens: int = MIN_EXPERT_TOKENS,
    ) -> None:
        self.model_dir = Path(model_dir)
        self.inventory = load_inventory(self.model_dir)
        self.store = WeightStore(TensorFiles(self.model_dir), quants, self.inventory, cache_bytes)
        self.shell = ModelShell(self.model_dir, self.store.plain)
        self.limits, self.threads = limits or Limits(), threads
        if state_bytes is not None:
            self.limits = replace(self.limits, state_bytes=state_bytes)
        self.min_expert_tokens = min_expert_tokens
        self.stats = ScoreStats()

    def score(self, mixes: Sequence[Mix], tokens: Tensor, progress: Progress | None = None) -> list[Score]:
        """As Engine.score; `stats` then holds the call's counts and seconds."""
        start = perf_counter()
        check_tokens(tokens, self.inventory, self.model_dir)
        for mix in mixes:
            check_mix(mix, self.inventory, self.store.choices, self.shell.head_dim)
        parts = self._parts(mixes, tokens.shape[1])
        self.stats = ScoreStats(mixes=len(mixes), tokens=tokens.numel())
        scores: list[Score] = []
        with Workers(self._thread_count) as workers:
            for number, part in enumerate(parts):
                scores += self._score(part, tokens, _part_of(progress, number, len(parts)), workers)
        self.stats.total_seconds = perf_counter() - start
        return scores

    def add_quants(self, quants: Mapping[Choice, Path]) -> None:
        """As Engine.add_quants."""
        self.store.add(quants)

    def rows_at_once(self, mixes: Sequence[Mix], length: int) -> int:
        """As Engine.rows_at_once."""
        states = peak_states(build_tree(mixes, self.inventory).layers)
        return self.limits.slab_rows(states, length, self.inventory.hidden_size)

    def capture(
        self, tokens: Tensor, keys: Collection[str] | None = None, progress: Progress | None = None
    ) -> Iterator[LayerCapture]:
        """As Engine.capture."""
        check_tokens(tokens, self.inventory, self.model_dir)
        rows = self.limits.batch_rows(tokens.shape[1], self.inventory.hidden_size)
        run = CapturePass(self.shell, self.store, self.inventory, self.min_expert_tokens, rows)
        return run.run(tokens, keys, self._thread_count, progress)

    def quantize(
        self, key: str, hessian: Hessian | RotatedHessian | None, bits: float, codebook: Codebook, seed: str
    ) -> tuple[QuantizedLinear, QuantStats]:
        """As Engine.quantize."""
        if self.store.reference is not self.store.plain:
            load_unquantized(self.model_dir)
        weights = self.store.reference.linear(self._spec(key))
        return quantize_linear(weights.weight.T.contiguous(), hessian, bits, codebook, seed, weights.bias)

    def rfn(self, choice: Choice, keys: Iterable[str] | None = None) -> dict[str, float]:
        """As Engine.rfn."""
        source, reference = self.store.source(choice), self.store.reference
        if keys is None:
            keys = (key for group in self.store.groups.values() for key in group.tensors)
        errors = {}
        for key in keys:
            weight = reference.linear(self._spec(key)).weight
            error = source.linear(self._spec(key)).weight - weight
            errors[key] = float(error.norm() / weight.norm())
        return errors

    def _parts(self, mixes: Sequence[Mix], length: int) -> list[Sequence[Mix]]:
        """Mixes that fit together with at least one row, neighbours beside each other."""
        if self.rows_at_once(mixes, length):
            return [mixes]
        if len(mixes) == 1:
            states = peak_states(build_tree(mixes, self.inventory).layers)
            least = 4 * states * length * self.inventory.hidden_size
            raise UsageError(
                f"{self.limits.state_bytes} bytes hold no hidden states of a single mix on a row of {length} tokens",
                fix=f"Allow at least {least} bytes (`max_ram` {-(-least // 1024)}KiB), or shorter rows",
            )
        half = (len(mixes) + 1) // 2
        return self._parts(mixes[:half], length) + self._parts(mixes[half:], length)

    def _score(self, mixes: Sequence[Mix], tokens: Tensor, progress: Progress | None, workers: Workers) -> list[Score]:
        """Mixes that fit together."""
        tree = build_tree(mixes, self.inventory)
        run = ScorePass(self.shell, self.store, self.inventory, self.limits, workers, self.stats)
        sums = run.run(tree, tokens, progress)
        self.stats.distinct_mixes += len(sums)
        return scores_of(mixes, tree, sums, tokens.shape[1] - 1)

    @property
    def _thread_count(self) -> int:
        return self.threads or torch.get_num_threads()

    def _spec(self, key: str) -> LinearSpec:
        spec = self.store.specs.get(key)
        if spec is None:
            raise UsageError(f"the model has no linear {key!r}", where=str(self.model_dir))
        return spec


def _part_of(progress: Progress | None, number: int, parts: int) -> Progress | None:
    """Progress of one part among equals; the whole call's where there is one part."""
    if progress is None or parts == 1:
        return progress
    return lambda done, total, what: progress(number * total + done, parts * total, what)
