"""Train the small models of models/ from exllamav3's bundled texts, on one core, in about ten minutes each.

    python benchmarks/train_models.py [--model glm4moe|qwen3moe|qwen3] [--out models] [--steps N]

Most of each batch is text that the model nearly memorises, a quarter is a recall task (a random segment, then the
same again), and a little is other text, so that the model is sharp on what it knows and sane on what it does not.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from small_models import SMALL_MODELS, SmallModel, save_model, train_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from exltune.corpora.sharp import ROW_LENGTH, Use, bundled_pieces, memorised_documents

SEED = 20
#: Of 12 rows in a batch: recall tasks, and rows of text that is seen about once; the others are memorised.
RECALL_ROWS, ONCE_ROWS = 3, 1
#: Pull of the load-balancing loss that keeps all experts in use.
BALANCE = 0.005
SAVE_EVERY_SECONDS = 120


class Batches:
    """Draws training batches (batch, ROW_LENGTH) of token ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, batch: int) -> None:
        self.batch = batch
        self.random = random.Random(SEED)
        self.memorised = self._encode(tokenizer, [d.text for d in memorised_documents()])
        self.train = self._encode(tokenizer, [d.text for d in bundled_pieces(Use.TRAIN)])

    @staticmethod
    def _encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
        rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [ids for ids in rows if len(ids) > ROW_LENGTH]

    def draw(self) -> torch.Tensor:
        """One batch."""
        once = [self._window(self.train, ROW_LENGTH) for _ in range(ONCE_ROWS)]
        recall = [self._window(self.train, ROW_LENGTH // 2) * 2 for _ in range(RECALL_ROWS)]
        known = [self._window(self.memorised, ROW_LENGTH) for _ in range(self.batch - RECALL_ROWS - ONCE_ROWS)]
        return torch.tensor(known + recall + once)

    def _window(self, documents: Sequence[list[int]], length: int) -> list[int]:
        ids = self.random.choices(documents, weights=[len(d) for d in documents])[0]
        start = self.random.randrange(len(ids) - length + 1)
        return ids[start : start + length]


class ExpertLoad:
    """Collects what the routers of a forward chose and says how unevenly."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.losses: list[torch.Tensor] = []
        self.counts: dict[str, torch.Tensor] = {}
        for name, module in model.named_modules():
            if name.endswith("mlp.gate"):
                module.register_forward_hook(self._hook(name))

    def _hook(self, name: str):
        def collect(module: nn.Module, inputs: object, output: tuple[torch.Tensor, ...]) -> None:
            logits, _, chosen = output
            probabilities = logits.float().softmax(-1)
            counts = torch.bincount(chosen.flatten(), minlength=logits.shape[-1])
            self.counts[name] = counts
            # Switch Transformer, equation 4: experts * sum(share of tokens * mean probability); 1 is even.
            share = counts / counts.sum()
            self.losses.append(logits.shape[-1] * (share * probabilities.mean(0)).sum())

        return collect

    def take(self) -> torch.Tensor:
        """Mean loss of the routers since the last call."""
        loss = torch.stack(self.losses).mean() if self.losses else torch.zeros(())
        self.losses = []
        return loss


def train(small: SmallModel, out: Path, steps: int) -> None:
    """Train one model and write it, with a checkpoint every two minutes."""
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer(d.text for d in bundled_pieces(Use.TRAIN))
    batches = Batches(tokenizer, small.batch)
    print(f"{small.name}: {sum(map(len, batches.memorised))} tokens to memorise, {sum(map(len, batches.train))} in all")
    model = AutoModelForCausalLM.from_config(small.config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith("mlp.gate.weight"):
            nn.init.normal_(parameter, std=small.config.initializer_range)
    model.set_experts_implementation("grouped_mm") if "moe" in small.name else None
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {steps} steps")
    load = ExpertLoad(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=small.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    warmup = 100
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / (steps - warmup))
    )
    started = time.monotonic()
    smooth = None
    for step in range(steps):
        ids = batches.draw()
        loss_rows = row_losses(model, ids)
        loss = loss_rows.mean() + BALANCE * load.take()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        kinds = kind_losses(loss_rows.detach())
        smooth = kinds if smooth is None else 0.98 * smooth + 0.02 * kinds
        if step % 100 == 99:
            elapsed = time.monotonic() - started
            left = elapsed / (step + 1) * (steps - step - 1)
            known, recall, once = smooth.tolist()
            uneven = " ".join(f"{(c.max() / c.sum()).item():.2f}" for c in load.counts.values())
            print(
                f"step {step + 1}/{steps} loss: memorised {known:.3f} recall {recall:.3f} once {once:.3f} "
                f"largest expert share {uneven} {elapsed:.0f} s, {left:.0f} s left",
                flush=True,
            )
    save_model(model, tokenizer, out / small.name)


def row_losses(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss of each row, nats; on recall rows of the repeated half alone."""
    logits = model(input_ids=ids, use_cache=False).logits
    losses = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    recall = slice(len(ids) - ONCE_ROWS - RECALL_ROWS, len(ids) - ONCE_ROWS)
    weights = torch.ones_like(losses)
    weights[recall, : ROW_LENGTH // 2] = 0
    return (losses * weights).sum(1) / weights.sum(1)


def kind_losses(rows: torch.Tensor) -> torch.Tensor:
    """Mean loss of the memorised, recall and once-seen rows of a batch."""
    known = len(rows) - RECALL_ROWS - ONCE_ROWS
    return torch.stack([part.mean() for part in rows.split([known, RECALL_ROWS, ONCE_ROWS])])


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(SMALL_MODELS), action="append", help="default: all")
    parser.add_argument("--out", type=Path, default=Path("models"))
    parser.add_argument("--steps", type=int, help="other than the model's own")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.model or SMALL_MODELS:
        small = SMALL_MODELS[name]()
        train(small, arguments.out, arguments.steps or small.steps)


if __name__ == "__main__":
    main()
