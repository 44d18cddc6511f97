"""Prompts for a model that writes its own data, and their results."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from exltune.schema.base import Record


class GenerateOptions(Record):
    """How answers are drawn. temperature 0 takes the likeliest token; top_p keeps that share of the probability.

    per_prompt: answers to each prompt. max_new_tokens: of one answer.
    """

    per_prompt: int = Field(default=1, ge=1)
    max_new_tokens: int = Field(default=1024, ge=1)
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = 0


class Answer(Record):
    """One answer. finish: stop where the model ended it, length where it was cut; tokens: its length."""

    content: str | None
    reasoning: str | None = None
    tool_calls: tuple[dict[str, object], ...] = ()
    tokens: int | None = None
    finish: Literal["stop", "length"]

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it, not even a thought."""
        return not (self.content or "").strip() and not (self.reasoning or "").strip() and not self.tool_calls


class GenerateResult(Record):
    """A finished file. cut: answers that reached the most tokens; empty: answers left out because nothing came.

    tokens: of all answers, as far as the model's server tells.
    """

    out: str
    prompts: int
    samples: int
    tokens: int
    cut: int
    empty: int
