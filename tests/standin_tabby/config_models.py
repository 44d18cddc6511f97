"""TabbyAPI's config keys and limits, restated; unlike the original, unknown keys are refused.

Source: TabbyAPI e632af4 (2026-08-13), common/config_models.py (NetworkConfig, ModelConfig, DraftModelConfig) and
endpoints/core/types/model.py (ModelLoadRequest, DraftModelLoadRequest).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

LegacyCache = Literal["FP16", "Q8", "Q6", "Q4"]
CacheMode = LegacyCache | Annotated[str, StringConstraints(pattern=r"^[2-8]\s*,\s*[2-8]$")]


class Strict(BaseModel):
    """Refuses what TabbyAPI would drop without a word, and text where a number belongs."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), strict=True)


class Network(Strict):
    host: str | None = None
    port: int | None = None
    disable_auth: bool | None = None
    disable_fetch_requests: bool | None = None
    send_tracebacks: bool | None = None
    api_servers: list[Literal["OAI", "oai", "Kobold", "kobold"]] | None = None
    sse_ping_interval: Annotated[int, Field(ge=0)] | None = None


class Model(Strict):
    model_dir: str = "models"
    inline_model_loading: bool | None = None
    use_dummy_models: bool | None = None
    dummy_model_names: list[str] = []
    model_name: str | None = None
    use_as_default: list[str] = []
    backend: Literal["exllamav3"] | None = None
    max_seq_len: Annotated[int, Field(ge=-1)] | None = None
    cache_size: Annotated[int, Field(multiple_of=256, gt=0)] | None = None
    cache_mode: CacheMode | None = None
    tensor_parallel: bool | None = None
    tensor_parallel_backend: Literal["native", "nccl"] | None = None
    gpu_split_auto: bool | None = None
    autosplit_reserve: list[float] = []
    gpu_split: list[float] = []
    cpu_moe_offload_layers: int | None = None
    rope_scale: float | None = None
    rope_alpha: float | Literal["auto"] | None = None
    chunk_size: Annotated[int, Field(gt=0)] | None = None
    output_chunking: bool | None = None
    max_batch_size: Annotated[int, Field(ge=1)] | None = None
    prompt_template: str | None = None
    vision: bool | None = None
    template_vars_default: dict[str, Any] = {}
    template_vars_force: dict[str, Any] = {}
    force_enable_thinking: bool = False
    reasoning: bool = False
    reasoning_start_token: str = "<think>"
    reasoning_end_token: str = "</think>"
    start_in_reasoning: Literal["auto", "always", "never"] = "auto"
    tool_calls_in_reasoning: bool = True
    reasoning_budget_tokens: int | None = None
    reasoning_budget_message: str | None = None
    tool_format: str | None = None
    harmony: bool | None = None
    muse_glimmer: bool | None = None


class DraftModel(Strict):
    draft_mode: Literal["model", "disabled", "mtp", "ngram"] | None = None
    draft_model_dir: str | None = None
    draft_model_name: str | None = None
    draft_rope_scale: float | None = None
    draft_rope_alpha: float | None = None
    draft_cache_mode: LegacyCache | None = None
    draft_gpu_split: list[float] = []
    draft_num_tokens: int | None = None
    dynamic_draft: bool | None = None
    ngram_match_min: int | None = None


class Config(Strict):
    """config.yml."""

    network: Network
    model: Model
    draft_model: DraftModel


class ModelFolderConfig(Strict):
    """tabby_config.yml, which TabbyAPI itself does not check."""

    model: Model
    draft_model: DraftModel


class DraftLoad(BaseModel):
    """draft_model of a load request."""

    draft_model_name: str
    draft_rope_scale: float | None = None
    draft_rope_alpha: float | Literal["auto"] | None = None
    draft_gpu_split: list[float] | None = []


class LoadRequest(BaseModel):
    """POST /v1/model/load: as in TabbyAPI, other keys are dropped and cache_mode is any text."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    backend: str | None = None
    max_seq_len: int | None = None
    cache_size: int | None = None
    cache_mode: str | None = None
    tensor_parallel: bool | None = None
    tensor_parallel_backend: str | None = "native"
    gpu_split_auto: bool | None = None
    autosplit_reserve: list[float] | None = None
    gpu_split: list[float] | None = []
    rope_scale: float | None = None
    rope_alpha: float | Literal["auto"] | None = None
    chunk_size: int | None = None
    output_chunking: bool | None = True
    prompt_template: str | None = None
    vision: bool | None = None
    draft_model: DraftLoad | None = None
    skip_queue: bool | None = False
