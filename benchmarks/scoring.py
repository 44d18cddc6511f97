"""Scored tokens/s of the reference engine: a batch of mixes against separate runs and against its bound.

The bound is what transformers itself needs for the layer forwards that shared prefixes leave, plus one head (final
norm, logits, metrics) for each distinct mix: every layer and the head are timed alone on the whole token set, each at
its fastest batch size, right before each run. Loading and decoding weights is in neither and reported apart.

    python benchmarks/scoring.py [--model DIR --quants DIR] [--rows 32] [--length 128] [--mixes 64]

Without a model it makes a random Glm4Moe of the demo model's shape.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from exltune.engines.reference.engine import ReferenceEngine
from exltune.engines.streaming.prefix_tree import build_tree
from exltune.metrics.logits import ReferenceLogits
from exltune.schema.inventory import Inventory
from exltune.schema.mix import REFERENCE, Mix
from exltune.testing.tiny_models import CONFIGS, make_tiny_model

DEMO_SHAPE = CONFIGS["glm4moe"] | {
    "vocab_size": 1024,
    "num_hidden_layers": 4,
    "intermediate_size": 384,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "n_routed_experts": 8,
}
#: Wall time, or the process's CPU time where other programs keep the machine busy (one thread only).
_clock = perf_counter
_LINE = "{:>24} {:>9} {:>5} {:>7} {:>7} {:>8} {:>8} {:>8} {:>13}"

Action = Callable[[], object]

BATCHES = (512, 1024, 2048, 4096, 8192)
HEAD_BATCHES = (128, 256, 512, 1024)


def main() -> None:
    global _clock
    args = _arguments()
    if args.cpu_time:
        torch.set_num_threads(1)
        _clock = process_time
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        model, quants = _model(args, Path(folder))
        engine = ReferenceEngine(model, quants, cache_bytes=4 << 30)
        tokens = torch.randint(0, engine.inventory.vocab_size, (args.rows, args.length))
        print(f"{model}: {engine.inventory.parameters:,} parameters, {engine.inventory.layers} layers")
        print(f"{tokens.numel():,} tokens in {args.rows} rows, {torch.get_num_threads()} threads\n")
        plain = _PlainModel(model, tokens)
        times = plain.times()
        print(
            f"transformers: {tokens.numel() / (sum(times.layers) + times.head):,.0f} tokens/s, layers and head (ms): ",
            end="",
        )
        print(" ".join(f"{seconds * 1e3:.1f}" for seconds in (*times.layers, times.head)) + "\n")
        print(
            _LINE.format("mixes", "forwards", "of", "load s", "run s", "of bound", "apart s", "speedup", "mix tokens/s")
        )
        for name, mixes in _batches(engine.inventory, sorted(quants), args.mixes):
            _report(name, mixes, engine, tokens, plain, args.repeats)


def _report(
    name: str, mixes: list[Mix], engine: ReferenceEngine, tokens: Tensor, plain: _PlainModel, repeats: int
) -> None:
    """One line: the first call loads and decodes; the next ones are timed, each beside transformers' own layers."""
    engine.store.drop_cache()
    engine.score(mixes, tokens)
    load, heads = engine.stats.load_seconds, engine.stats.head_forwards
    tree = build_tree(mixes, engine.inventory)
    runs, shares = [], []
    for _ in range(repeats):
        times = plain.times()
        runs.append(_timed(lambda: engine.score(mixes, tokens)))
        bound = heads * times.head
        bound += sum(len(edges) * seconds for edges, seconds in zip(tree.layers, times.layers, strict=True))
        shares.append(bound / runs[-1])
    apart = sum(_timed(lambda mix=mix: engine.score([mix], tokens)) for mix in mixes)
    run, of = median(runs), (len(mixes) + 1) * engine.inventory.layers
    cells = (f"{load:.2f}", f"{run:.2f}", f"{median(shares):.0%}", f"{apart:.2f}", f"{apart / run:.1f}x")
    print(_LINE.format(name, tree.layer_forwards, of, *cells, f"{len(mixes) * tokens.numel() / run:,.0f}"), flush=True)


@dataclass(frozen=True)
class Times:
    """Seconds of each layer and of the head on the whole token set."""

    layers: tuple[float, ...]
    head: float


class _PlainModel:
    """transformers' own layers on the whole model in memory, each at the batch size that was fastest for it."""

    def __init__(self, path: Path, tokens: Tensor) -> None:
        settings = {"dtype": torch.float32, "attn_implementation": "sdpa"}
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, **settings).eval()
        if hasattr(self.model.model.layers[-1].mlp, "experts"):
            self.model.set_experts_implementation("grouped_mm")
        self.tokens = tokens
        with torch.no_grad():
            self.hidden = self.model.model.embed_tokens(tokens)
            self.positions = torch.arange(tokens.shape[1])[None]
            self.embeddings = self.model.model.rotary_emb(self.hidden, self.positions)
            self.layers = [
                _fastest(self._layer(layer, batch) for batch in BATCHES) for layer in self.model.model.layers
            ]
            self.head = _fastest(self._head(batch) for batch in HEAD_BATCHES)

    @torch.no_grad()
    def times(self) -> Times:
        """Means of three passes over everything."""
        passes = [[_timed(part) for part in (*self.layers, self.head)] for _ in range(3)]
        *layers, head = (sum(seconds) / len(seconds) for seconds in zip(*passes, strict=True))
        return Times(tuple(layers), head)

    def _layer(self, layer: torch.nn.Module, batch: int) -> Action:
        parts = self.hidden.split(max(1, batch // self.tokens.shape[1]))

        def run() -> None:
            for part in parts:
                layer(part, position_embeddings=self.embeddings, position_ids=self.positions, attention_mask=None)

        return run

    def _head(self, batch: int) -> Action:
        parts = self.hidden[:, :-1].flatten(0, 1).split(batch)
        next_ids = self.tokens[:, 1:].flatten().split(batch)
        reference = [ReferenceLogits(self._logits(part), ids) for part, ids in zip(parts, next_ids, strict=True)]

        def run() -> None:
            for part, side in zip(parts, reference, strict=True):
                side.compare(self._logits(part))

        return run

    def _logits(self, hidden: Tensor) -> Tensor:
        return F.linear(self.model.model.norm(hidden), self.model.lm_head.weight)


def _fastest(actions: Iterable[Action]) -> Action:
    return min(actions, key=lambda action: min(_timed(action) for _ in range(3)))


def _batches(inventory: Inventory, choices: list[str], count: int) -> Iterator[tuple[str, list[Mix]]]:
    ids = [group.id for group in (*inventory.groups, inventory.head)]
    draw = random.Random(0)
    swaps = [(id_, choice) for id_ in ids for choice in (*choices, REFERENCE)]
    for base in (REFERENCE, choices[0]):
        singles = [pair for pair in swaps if pair[1] != base]
        picked = sorted(draw.sample(singles, min(count, len(singles))))
        named = f"{len(picked)} single swaps on {base}"
        yield named, [Mix(name=f"{i}@{c}", choices=dict.fromkeys(ids, base) | {i: c}) for i, c in picked]
    mixes = [Mix(name=str(n), choices={id_: draw.choice(choices) for id_ in ids}) for n in range(count)]
    yield f"{count} random", mixes


def _timed(action: Action) -> float:
    start = _clock()
    action()
    return _clock() - start


def _model(args: argparse.Namespace, folder: Path) -> tuple[Path, dict[str, Path]]:
    if args.model is None:
        made = make_tiny_model(folder / "random", DEMO_SHAPE)
        return made.path, dict(made.quants)
    found = {path.name.split("bpw")[0]: path for path in sorted(args.quants.glob("*bpw_H*"))}
    return args.model, found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--quants", type=Path, help="directory with 2bpw_H6, 3bpw_H6, ...")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--mixes", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true", help="one thread, CPU seconds: for a busy machine")
    return parser.parse_args()


if __name__ == "__main__":
    main()
