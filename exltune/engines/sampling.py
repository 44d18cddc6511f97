"""Answers of a model to prompts: the protocol, and transformers' generate for models that a CPU can run."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from exltune.corpora import ModelTokenizer
from exltune.corpora.prompts import Prompt
from exltune.errors import DataError, ModelError
from exltune.schema.generate import Answer, GenerateOptions

#: Number of the prompt and of the sample, both from 1.
TaskKey = tuple[int, int]


@dataclass(frozen=True)
class Task:
    """One answer to be drawn."""

    key: TaskKey
    prompt: Prompt


class Sampler(Protocol):
    """Draws answers; the same tasks and settings give the same answers as far as the model's server allows."""

    def sample(self, tasks: Sequence[Task], done: Collection[TaskKey]) -> Iterator[list[tuple[Task, Answer]]]:
        """Answers to the tasks that are not done, in parts, each as soon as it is there; some of `done` may recur."""
        ...


class LocalSampler:
    """transformers' own generate, in fp32 on the CPU, batch by batch.

    Batches do not depend on finished work, and each has a seed of its own: a resumed run draws what an uninterrupted
    one would have drawn.
    """

    def __init__(self, model_dir: Path, tokenizer: ModelTokenizer, settings: GenerateOptions, batch: int) -> None:
        self._tokenizer, self._settings, self._batch = tokenizer, settings, batch
        self._model = _load(model_dir)
        self._stops = _stops(self._model)
        self._limit: int = getattr(self._model.config, "max_position_embeddings", None) or 1 << 30

    def sample(self, tasks: Sequence[Task], done: Collection[TaskKey]) -> Iterator[list[tuple[Task, Answer]]]:
        """As Sampler.sample. Raises: DataError naming a prompt that leaves no room for an answer."""
        prompts = [self._encoded(task.prompt) for task in tasks]
        for start in range(0, len(tasks), self._batch):
            batch = tasks[start : start + self._batch]
            if any(task.key not in done for task in batch):
                answers = self._answers(prompts[start : start + self._batch], start)
                yield list(zip(batch, answers, strict=True))

    def _encoded(self, prompt: Prompt) -> list[int]:
        ids = self._tokenizer.encode(prompt.rendered(self._tokenizer))
        if not ids:
            raise DataError("the prompt is empty", where=prompt.where, fix="Write something, or leave it out")
        if len(ids) >= self._limit:
            raise DataError(
                f"the prompt has {len(ids)} tokens, and the model's context is {self._limit}",
                where=prompt.where,
                fix="Shorten it",
            )
        return ids

    @torch.no_grad()
    def _answers(self, prompts: Sequence[Sequence[int]], start: int) -> list[Answer]:
        width = max(map(len, prompts))
        ids = torch.tensor([[self._pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        self._model.generation_config = self._generation(min(self._settings.max_new_tokens, self._limit - width))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self._settings.seed, start))
            found = self._model.generate(input_ids=ids, attention_mask=mask)
        return [self._answer(row) for row in found[:, width:].tolist()]

    @property
    def _pad(self) -> int:
        return self._stops[0] if self._stops else 0

    def _generation(self, new_tokens: int) -> Any:
        from transformers import GenerationConfig

        settings = self._settings
        drawn = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
        return GenerationConfig(
            max_new_tokens=new_tokens,
            eos_token_id=list(self._stops) or None,
            pad_token_id=self._pad,
            **(drawn if settings.temperature > 0 else {"do_sample": False}),
        )

    def _answer(self, ids: Sequence[int]) -> Answer:
        end = next((place for place, token in enumerate(ids) if token in self._stops), None)
        return Answer(
            content=self._tokenizer.decode(ids[:end]),
            tokens=len(ids) if end is None else end,
            finish="length" if end is None else "stop",
        )


def seed_of(*parts: object) -> int:
    """A seed of 31 bits that follows from all parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big") >> 1


def _load(model_dir: Path) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(model_dir), dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"transformers cannot load it ({' '.join(str(error).split())})",
            where=str(model_dir),
            fix="Serve the model and give its address with `url`",
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    return model.eval()


def _stops(model: Any) -> tuple[int, ...]:
    """Ids that end an answer; a model may have several."""
    found = model.generation_config.eos_token_id
    if found is None:
        found = model.config.eos_token_id
    return () if found is None else tuple(found) if isinstance(found, list | tuple) else (int(found),)
