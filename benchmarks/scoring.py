"""Scored tokens/s of the reference engine: a batch of mixes against separate runs and against its bound.

The bound is what transformers itself needs for the layer forwards that shared prefixes leave, plus one head (final
norm, logits, metrics) for each distinct mix: every layer and the head are timed alone on the whole token set, each at
its fastest batch size. Loading and decoding weights is in neither and reported apart.

    python benchmarks/scoring.py [--model DIR --quants DIR] [--rows 32] [--length 128] [--mixes 64]

Without a model it makes a random Glm4Moe of the demo model's shape.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter, process_time

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from exltune.engines.reference.engine import ReferenceEngine
from exltune.engines.reference.prefix_tree import build_tree
from exltune.metrics import ReferenceLogits
from exltune.schema.inventory import Inventory
from exltune.schema.mix import REFERENCE, Mix

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from tiny_models import CONFIGS, make_tiny_model

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
        plain = _PlainModel(model, tokens, args.repeats)
        print(f"transformers: {tokens.numel() / plain.seconds:,.0f} tokens/s through all layers and the head")
        print("  layers " + " ".join(f"{s * 1e3:.1f}" for s in plain.layers) + f" ms, head {plain.head * 1e3:.1f} ms\n")
        choices = sorted(quants)
        print(f"{'mixes':>24} {'forwards':>9} {'of':>6} {'load s':>7} {'run s':>7} {'bound s':>8} {'of bound':>8}", end="")
        print(f" {'64 runs s':>9} {'speedup':>8} {'mix tokens/s':>13}")
        for name, mixes in _batches(engine.inventory, choices, args.mixes):
            _report(name, mixes, engine, tokens, plain, args.repeats)


def _report(
    name: str, mixes: list[Mix], engine: ReferenceEngine, tokens: Tensor, plain: _PlainModel, repeats: int
) -> None:
    """One line: the first call loads and decodes, the fastest of the next ones is the run."""
    engine.store._cache.items.clear()
    engine.store._cache.used = 0
    engine.score(mixes, tokens)
    load = engine.stats.load_seconds
    run = min(_timed(lambda: engine.score(mixes, tokens)) for _ in range(repeats))
    separate = sum(_timed(lambda mix=mix: engine.score([mix], tokens)) for mix in mixes)
    tree = build_tree(mixes, engine.inventory)
    bound = sum(len(edges) * seconds for edges, seconds in zip(tree.layers, plain.layers, strict=True))
    bound += engine.stats.head_forwards * plain.head
    of = (len(mixes) + 1) * engine.inventory.layers
    rate = len(mixes) * tokens.numel() / run
    print(f"{name:>24} {tree.layer_forwards:>9} {of:>6} {load:>7.2f} {run:>7.2f} {bound:>8.2f} {bound / run:>8.0%}", end="")
    print(f" {separate:>9.2f} {separate / run:>7.1f}x {rate:>13,.0f}")


class _PlainModel:
    """transformers' own layers on the whole model in memory, each timed at its fastest batch size."""

    def __init__(self, path: Path, tokens: Tensor, repeats: int) -> None:
        settings = {"dtype": torch.float32, "attn_implementation": "sdpa"}
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, **settings).eval()
        if hasattr(self.model.model.layers[-1].mlp, "experts"):
            self.model.set_experts_implementation("grouped_mm")
        with torch.no_grad():
            self.layers = [min(self._layer_seconds(layer, tokens, repeats)) for layer in self.model.model.layers]
            self.head = min(self._head_seconds(tokens, repeats))
        self.seconds = sum(self.layers) + self.head

    def _layer_seconds(self, layer: torch.nn.Module, tokens: Tensor, repeats: int) -> Iterator[float]:
        rows, length = tokens.shape
        hidden = self.model.model.embed_tokens(tokens)
        positions = torch.arange(length)[None]
        embeddings = self.model.model.rotary_emb(hidden, positions)
        for batch in BATCHES:
            parts = hidden.split(max(1, batch // length))

            def run(parts: tuple[Tensor, ...] = parts) -> None:
                for part in parts:
                    layer(part, position_embeddings=embeddings, position_ids=positions, attention_mask=None)

            yield min(_timed(run) for _ in range(repeats))

    def _head_seconds(self, tokens: Tensor, repeats: int) -> Iterator[float]:
        hidden = self.model.model.embed_tokens(tokens)[:, :-1].flatten(0, 1)
        next_ids = tokens[:, 1:].flatten()
        for batch in HEAD_BATCHES:
            parts = hidden.split(batch)
            reference = [
                ReferenceLogits(self._logits(h), n) for h, n in zip(parts, next_ids.split(batch), strict=True)
            ]

            def run(parts: tuple[Tensor, ...] = parts, reference: list[ReferenceLogits] = reference) -> None:
                for part, side in zip(parts, reference, strict=True):
                    side.compare(self._logits(part))

            yield min(_timed(run) for _ in range(repeats))

    def _logits(self, hidden: Tensor) -> Tensor:
        return F.linear(self.model.model.norm(hidden), self.model.lm_head.weight)


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


def _timed(action: Callable[[], object]) -> float:
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
