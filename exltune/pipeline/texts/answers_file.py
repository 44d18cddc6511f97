"""Answers as they come in, kept beside the file that they will be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from exltune.corpora.prompts import Prompt
from exltune.engines.sampling import Task, TaskKey
from exltune.errors import OutputExistsError
from exltune.schema.generate import Answer, GenerateResult
from exltune.store.files import write_text

_NOTE = "exltune"


class AnswersFile:
    """Answers by task, a JSON line each, flushed to disk before the next part begins.

    job: the inputs of the answers. force: drop answers of another job.
    Raises: OutputExistsError where such answers wait and `force` is not given.
    """

    def __init__(self, out: Path, job: str, *, force: bool) -> None:
        self.path = out.with_name(f".{out.name}.partial")
        self.answers: dict[TaskKey, Answer] = {}
        header = json.dumps({"job": job})
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        if lines and lines[0] != header and not force:
            raise OutputExistsError(
                "answers of another trace wait here (other prompts, settings or model)",
                where=str(self.path),
                fix="Repeat that one's arguments to go on with it, give another `out`, or `force` to drop them",
            )
        kept = [header, *self._read(lines[1:] if lines and lines[0] == header else [])]
        self._text: str | None = "\n".join(kept) + "\n"

    def _read(self, lines: list[str]) -> list[str]:
        """The lines up to the one that a kill cut short."""
        kept = []
        for line in lines:
            try:
                prompt, sample, answer = json.loads(line)
            except ValueError:
                break
            self.answers[prompt, sample] = Answer.model_validate(answer)
            kept.append(line)
        return kept

    def add(self, part: list[tuple[Task, Answer]]) -> None:
        """Append answers and wait until they are on disk."""
        if self._text is not None:
            write_text(self.path, self._text)
            self._text = None
        with self.path.open("a", encoding="utf-8") as handle:
            handle.writelines(json.dumps([*task.key, answer.model_dump(mode="json")]) + "\n" for task, answer in part)
            handle.flush()
            os.fsync(handle.fileno())
        self.answers |= {task.key: answer for task, answer in part}

    def finish(self, out: Path, tasks: list[Task]) -> GenerateResult:
        """Write the file in the order of the tasks, without empty answers, and remove the files kept beside it."""
        answers = [(task, self.answers[task.key]) for task in tasks]
        rows = [_row(task, answer) for task, answer in answers if not answer.empty]
        write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self.path.unlink(missing_ok=True)
        return GenerateResult(
            out=str(out),
            prompts=len({task.key[0] for task in tasks}),
            samples=len(rows),
            tokens=sum(answer.tokens or 0 for _, answer in answers),
            cut=sum(answer.finish == "length" for _, answer in answers),
            empty=len(answers) - len(rows),
        )


def _row(task: Task, answer: Answer) -> dict[str, Any]:
    """A row that --data takes; its origin stands in a field that --data leaves alone."""
    prompt, sample = task.key
    note = {"prompt": prompt, "sample": sample, "tokens": answer.tokens, "finish": answer.finish}
    return {**_with_answer(task.prompt, answer), _NOTE: note}


def _with_answer(prompt: Prompt, answer: Answer) -> dict[str, Any]:
    row = prompt.row()
    if prompt.text is not None:
        return {"text": prompt.text + (answer.content or "")}
    content = answer.content if answer.tool_calls else answer.content or ""
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if answer.reasoning is not None:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = list(answer.tool_calls)
    return {**row, "messages": [*row["messages"], message]}
