"""Records of `exltune deploy`: the plan, the files and the server's answers."""

from __future__ import annotations

from typing import Literal

from exltune.schema.base import Record
from exltune.schema.plan import Plan

DraftMode = Literal["model", "mtp", "ngram"]


class DraftSettings(Record):
    """Speculative decoding. directory: of the draft model, mode "model" alone. size_bytes: set aside by the plan.

    size_bytes counts weights and an fp16 cache of the draft model or the MTP layer; n-grams take none.
    """

    mode: DraftMode
    directory: str | None = None
    num_tokens: int | None = None
    size_bytes: int = 0


class TabbySettings(Record):
    """The keys of TabbyAPI's `model` section that follow from a plan, under TabbyAPI's names.

    cache_size: tokens, a multiple of 256. autosplit_reserve: MiB per card, or empty; gpu_split: GiB per card, or empty;
    exactly one of them is set. tool_format, reasoning: None where the family is not known.
    """

    max_seq_len: int
    cache_size: int
    cache_mode: str
    chunk_size: int
    max_batch_size: int
    tensor_parallel: bool
    autosplit_reserve: tuple[int, ...] = ()
    gpu_split: tuple[float, ...] = ()
    cpu_moe_offload_layers: int = 0
    reasoning: bool | None = None
    tool_format: str | None = None


class Deployment(Record):
    """A quant on TabbyAPI as planned. models_dir: absolute folder that holds the model's own, `model_name`.

    notes: gaps of the plan.
    """

    schema_version: Literal[1] = 1
    exltune_version: str
    tabbyapi_commit: str
    exllamav3_version: str
    models_dir: str
    model_name: str
    settings: TabbySettings
    draft: DraftSettings | None = None
    host: str
    port: int
    plan: Plan
    notes: tuple[str, ...] = ()


class Served(Record):
    """A server's answer after a load. cache_mode: as it keeps it ("fp16" for anything but k,v bits).

    text: of the completion, its reasoning where the model said nothing else yet.
    """

    url: str
    model_name: str
    max_seq_len: int
    cache_size: int
    cache_mode: str
    text: str
    prompt_tokens: int | None
    completion_tokens: int | None


class DeployReport(Record):
    """The result of `exltune deploy`. files: written, absolute; kept_tokens: whether api_tokens.yml was kept."""

    deployment: Deployment
    files: tuple[str, ...] = ()
    kept_tokens: bool = False
    served: Served | None = None
