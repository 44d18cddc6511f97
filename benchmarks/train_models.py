"""Train the small models of models/ from exllamav3's bundled texts, on one core, in about ten minutes each.

    python benchmarks/train_models.py [--model glm4moe|qwen3moe|qwen3] [--out models] [--steps N]

Most of each batch is text that the model nearly memorises, a quarter is a recall task (a random segment, then the
same again), and a little is other text, so that the model is sharp on what it knows and sane on what it does not.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
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
WARMUP = 100


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

    def _hook(self, name: str) -> Callable[..., None]:
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


class Training:
    """A model, its optimizer and where it stands; a killed training resumes from its checkpoint."""

    def __init__(self, small: SmallModel, steps: int, checkpoint: Path) -> None:
        torch.manual_seed(SEED)
        self.small, self.steps, self.checkpoint = small, steps, checkpoint
        self.tokenizer = train_tokenizer(d.text for d in bundled_pieces(Use.TRAIN))
        self.batches = Batches(self.tokenizer, small.batch)
        self.model = new_model(small)
        self.load = ExpertLoad(self.model)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=small.learning_rate, betas=(0.9, 0.95), weight_decay=0.01
        )
        self.done = 0
        self.smooth: torch.Tensor | None = None
        if checkpoint.exists():
            self._resume()

    def run(self) -> None:
        """Train to the last step, with a line every 100 steps and a checkpoint every 500."""
        started, first = time.monotonic(), self.done
        while self.done < self.steps:
            self._step()
            if self.done % 100 == 0:
                elapsed = time.monotonic() - started
                self._print(elapsed, elapsed / (self.done - first) * (self.steps - self.done))
            if self.done % 500 == 0:
                self._save()

    def _step(self) -> None:
        for group in self.optimizer.param_groups:
            decay = (self.steps - self.done) / (self.steps - WARMUP)
            group["lr"] = self.small.learning_rate * min((self.done + 1) / WARMUP, decay)
        rows = row_losses(self.model, self.batches.draw())
        loss = rows.mean() + BALANCE * self.load.take()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        kinds = kind_losses(rows.detach())
        self.smooth = kinds if self.smooth is None else 0.98 * self.smooth + 0.02 * kinds
        self.done += 1

    def _print(self, elapsed: float, left: float) -> None:
        known, recall, once = self.smooth.tolist()
        uneven = " ".join(f"{c.max() / c.sum():.2f}" for c in self.load.counts.values())
        print(
            f"{self.small.name} step {self.done}/{self.steps}: loss memorised {known:.3f}, recall {recall:.3f}, "
            f"once {once:.3f}{f'; busiest experts {uneven}' if uneven else ''}; {elapsed:.0f} s, {left:.0f} s left",
            flush=True,
        )

    def _save(self) -> None:
        state = {
            "steps": self.steps,
            "done": self.done,
            "smooth": self.smooth,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": self.batches.random.getstate(),
        }
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        if state["steps"] != self.steps:
            raise SystemExit(
                f"{self.checkpoint} is of a training of {state['steps']} steps: remove it or ask for those"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.random.setstate(state["random"])
        self.done, self.smooth = state["done"], state["smooth"]


def new_model(small: SmallModel) -> PreTrainedModel:
    """The model with fresh weights, float32; transformers leaves routers at zero, which would never spread."""
    model = AutoModelForCausalLM.from_config(small.config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith("mlp.gate.weight"):
            nn.init.normal_(parameter, std=small.config.initializer_range)
    if small.sparse:
        model.set_experts_implementation("grouped_mm")
    return model


def train(small: SmallModel, out: Path, steps: int) -> None:
    """Train one model and write it."""
    checkpoint = out / f"{small.name}.checkpoint.pt"
    training = Training(small, steps, checkpoint)
    known, everything = (sum(map(len, ids)) for ids in (training.batches.memorised, training.batches.train))
    print(f"{small.name}: {sum(p.numel() for p in training.model.parameters())} parameters, {steps} steps")
    print(f"{known} tokens to memorise, {everything} in all")
    training.run()
    save_model(training.model, training.tokenizer, out / small.name)
    checkpoint.unlink(missing_ok=True)


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
