"""`exltune deploy tabby`: from a quant and a plan to TabbyAPI's files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from exltune import __version__
from exltune.budget import Limits, parse_cache
from exltune.budget.memory.cache import PAGE_TOKENS
from exltune.errors import BudgetError, OutputExistsError, QuantMismatchError, UsageError
from exltune.exl3.tensors import TensorFiles, read_json
from exltune.inventory import read_config
from exltune.pipeline.deployment.draft import DraftOptions, draft_settings
from exltune.pipeline.deployment.plan import PlanOptions
from exltune.pipeline.deployment.plan import plan as plan_fit
from exltune.pipeline.optimization.recipe_model import config_of_recipe
from exltune.publish.tabby_family import Family, family_of
from exltune.publish.tabby_fields import TABBYAPI_COMMIT, TOOL_FORMATS
from exltune.publish.tabby_files import (
    COMPOSE,
    CONFIG,
    DOCKERFILE,
    MODEL_CONFIG,
    compose_text,
    config_text,
    dockerfile,
    model_config_text,
)
from exltune.publish.tabby_tokens import TOKENS, copy_tokens, write_new_tokens
from exltune.requirements import lowest
from exltune.schema.defaults import DEFAULT_CHUNK, DEFAULT_SLOTS
from exltune.schema.deploy import Deployment, DeployReport, DraftSettings, TabbySettings
from exltune.schema.hardware import FP16_CACHE, CacheBits, Hardware, Overheads, SizeUnit, Use
from exltune.schema.plan import Plan
from exltune.store.files import new_directory, write_text
from exltune.store.names import RECIPE
from exltune.store.records import read_recipe, read_record, write_record

#: The plan; marks a directory that --force may replace.
DEPLOYMENT = "deployment.json"
_MIB = 1 << 20
_RECIPES = (".yaml", ".yml")


@dataclass(frozen=True)
class Split:
    """How the model lies on cards; manual limits each card to its given size instead of leaving it to autosplit."""

    tensor_parallel: bool = False
    manual: bool = False


@dataclass(frozen=True)
class DeployOptions:
    """Options of a deployment. context: None for the largest that fits. cache: None for the recipe's.

    bits: of a config's quant to come. models_dir, model_name: where the model of a recipe or config will lie; a
    directory says both itself. tool_format, reasoning: None for those of the chat template.
    """

    gpus: tuple[int, ...]
    context: int | None = None
    cache: CacheBits | None = None
    chunk: int = DEFAULT_CHUNK
    slots: int = DEFAULT_SLOTS
    split: Split = Split()
    offload_layers: int = 0
    draft: DraftOptions | None = None
    bits: float | None = None
    model: Path | None = None
    readings: Path | None = None
    models_dir: Path | None = None
    model_name: str | None = None
    tool_format: str | None = None
    reasoning: bool | None = None
    host: str = "127.0.0.1"
    port: int = 5000
    unit: SizeUnit = "GiB"


def plan_deployment(source: Path, options: DeployOptions) -> Deployment:
    """Plan a quant directory, or a recipe or config of one that is yet to come, on TabbyAPI.

    Raises: BudgetError in the planner's words where it does not fit, UsageError, and all that planning raises.
    """
    _check(options)
    models_dir, name = _place(source, options)
    config = _config(source, options.model)
    use = Use(
        context=options.context,
        cache=options.cache or _noted_cache(source),
        chunk=options.chunk,
        slots=options.slots,
        tensor_parallel=options.split.tensor_parallel,
        offload_layers=options.offload_layers,
    )
    tokens = _context(source, options, use)
    draft = None if options.draft is None else draft_settings(options.draft, source, tokens, use)
    plan = _plan(source, options, use.model_copy(update={"context": tokens}), draft)
    _check_fits(plan)
    family = family_of(config, source if source.is_dir() else None)
    return Deployment(
        exltune_version=__version__,
        tabbyapi_commit=TABBYAPI_COMMIT,
        exllamav3_version=lowest("exllamav3"),
        models_dir=str(models_dir),
        model_name=name,
        settings=_settings(plan, use, options, family),
        draft=draft,
        host=options.host,
        port=options.port,
        plan=plan,
        notes=_notes(options, family, draft, plan),
    )


def write_deployment(deployment: Deployment, out: Path, *, force: bool = False) -> DeployReport:
    """Write TabbyAPI's files to `out`, and tabby_config.yml into the model's folder where that is there.

    force: replace an earlier deployment; its keys stay, so that clients go on: remove api_tokens.yml for fresh ones.
    Raises: OutputExistsError, DataError for keys that cannot be taken over.
    """
    folder = Path(deployment.models_dir) / deployment.model_name
    model_config = folder / MODEL_CONFIG if folder.is_dir() else out / MODEL_CONFIG
    text = model_config_text(deployment)
    if folder.is_dir() and model_config.exists() and not force and not _same(model_config, text):
        raise OutputExistsError(
            "the model's folder holds one that says otherwise",
            where=str(model_config),
            fix="Move it away, or replace it with `force`",
        )
    kept = force and (out / TOKENS).is_file()
    with new_directory(out, force=force, replaces=DEPLOYMENT) as partial:
        if kept:
            copy_tokens(out, partial)
        else:
            write_new_tokens(partial)
        write_text(partial / CONFIG, config_text(deployment))
        write_text(partial / COMPOSE, compose_text(deployment))
        write_text(partial / DOCKERFILE, dockerfile())
        write_record(partial / DEPLOYMENT, deployment)
        write_text(partial / MODEL_CONFIG if model_config.parent == out else model_config, text)
    written = [out / name for name in (CONFIG, TOKENS, COMPOSE, DOCKERFILE, DEPLOYMENT)]
    files = tuple(str(path.resolve()) for path in (*written, model_config))
    return DeployReport(deployment=deployment, files=files, kept_tokens=kept)


def _same(file: Path, text: str) -> bool:
    return file.is_file() and file.read_bytes() == text.encode("utf-8")


def read_deployment(out: Path) -> Deployment:
    """The plan of an earlier `deploy`. Raises: UsageError where `out` holds none, DataError."""
    if not (out / DEPLOYMENT).is_file():
        raise UsageError(
            f"{out} holds no {DEPLOYMENT}, so there is no plan to load",
            fix="Give the `out` of an earlier deploy tabby, or OUT with `gpus`",
        )
    return read_record(out / DEPLOYMENT, Deployment)


def _check(options: DeployOptions) -> None:
    if options.chunk % PAGE_TOKENS:
        raise UsageError(
            f"`chunk` {options.chunk} is not a multiple of {PAGE_TOKENS}, and TabbyAPI would round it up past the plan",
            fix=f"Give {max(options.chunk // PAGE_TOKENS, 1) * PAGE_TOKENS}",
        )
    if options.tool_format is not None and options.tool_format not in TOOL_FORMATS:
        raise UsageError(
            f"TabbyAPI knows no tool format {options.tool_format!r}", fix=f"Known: {', '.join(sorted(TOOL_FORMATS))}"
        )
    if not 0 < options.port < 1 << 16:
        raise UsageError(f"`port` {options.port} does not exist", fix="Give 1 to 65535")
    try:
        ip_address(options.host)
    except ValueError as error:
        # Docker publishes ports on addresses alone, not on names.
        raise UsageError(
            f"`host` {options.host!r} is not an IP address",
            fix="Give 127.0.0.1 for this machine alone, 0.0.0.0 for all",
        ) from error


def _place(source: Path, options: DeployOptions) -> tuple[Path, str]:
    """models_dir and model_name. A directory must be an EXL3 quant: the plan is for nothing else."""
    if source.is_dir() and any(source.glob("*.safetensors")):
        if not any(name.endswith(".trellis") for name in TensorFiles(source).entries):
            raise QuantMismatchError(
                "it holds no EXL3 tensors", where=str(source), fix="Give an EXL3 directory of exltune build or tune"
            )
        if options.models_dir is not None:
            raise UsageError("`models` belongs to a recipe or config", fix="Leave it out: the quant lies where it is")
        return source.resolve().parent, source.resolve().name
    if options.models_dir is None or options.model_name is None:
        raise UsageError(
            f"{source} is not a quant, so it is not known where the model will lie",
            fix="Give the directory of an EXL3 quant, or `models` FOLDER and `model_name` NAME",
        )
    if source.suffix.lower() not in _RECIPES and options.bits is None:
        raise UsageError(f"{source} is not a quant, and its bits are not known", fix="Give `bits`")
    if Path(options.model_name).name != options.model_name or options.model_name in (".", ".."):
        raise UsageError(f"`model_name` {options.model_name!r} is not a name of a folder", fix="Give a name without /")
    return options.models_dir.resolve(), options.model_name


def _config(source: Path, model: Path | None) -> Mapping[str, Any]:
    if source.suffix.lower() in _RECIPES and not source.is_dir():
        found = config_of_recipe(read_recipe(source), source, model)
        return {} if found is None else found[0]
    return read_json(source) if source.is_file() else read_config(source)


def _noted_cache(source: Path) -> CacheBits:
    """The bits that the recipe was chosen with; fp16 where it notes none."""
    recipe = source / RECIPE if source.is_dir() else source
    if recipe.suffix.lower() not in _RECIPES or not recipe.is_file():
        return FP16_CACHE
    noted = read_recipe(recipe).exltune
    return FP16_CACHE if noted is None or noted.cache is None else parse_cache(noted.cache, f"{recipe}: exltune.cache")


def _context(source: Path, options: DeployOptions, use: Use) -> int:
    if options.context is not None:
        return options.context
    largest = _plan(source, options, use, None).max_context
    if not largest:
        raise BudgetError("the weights leave no room for any context", fix="Give more or larger `gpus`, or fewer bits")
    if options.draft is not None and options.draft.mode != "ngram":
        raise UsageError("a draft model takes cache too, so the largest context is not known", fix="Give `context`")
    return largest


def _plan(source: Path, options: DeployOptions, use: Use, draft: DraftSettings | None) -> Plan:
    """The plan of all cards; a draft model is loaded first, onto the first card."""
    gpus = options.gpus
    if draft is not None and draft.size_bytes:
        if draft.size_bytes >= gpus[0]:
            raise BudgetError("the draft model alone does not fit on the first GPU", fix="Take a smaller draft model")
        gpus = (gpus[0] - draft.size_bytes, *gpus[1:])
    limits = Limits(Hardware(gpus=gpus))
    return plan_fit(
        source,
        limits,
        use,
        options=PlanOptions(options.bits),
        model=options.model,
        readings=options.readings,
        unit=options.unit,
    )


def _check_fits(plan: Plan) -> None:
    if plan.fits:
        return
    field = f"`{plan.binding}`"
    fixes = "; ".join(remedy.text for remedy in plan.remedies)
    raise BudgetError(
        f"it does not fit: {field} is exceeded, with {plan.bpw:.3f} bpw and {plan.context} tokens at {plan.cache}",
        fix=f"Any one of these makes it fit: {fixes}" if fixes else "Take fewer bits or more memory",
    )


def _settings(plan: Plan, use: Use, options: DeployOptions, family: Family | None) -> TabbySettings:
    context = plan.context or 0
    manual = options.split.manual or options.split.tensor_parallel
    changed = {constant.name: constant.after for constant in plan.recalibrated}
    standard = Overheads()
    reserve = changed.get("reserve_bytes", standard.reserve_bytes)
    kept = reserve + changed.get("context_bytes", standard.context_bytes)
    reasoning = None if family is None else family.reasoning
    return TabbySettings(
        max_seq_len=context,
        cache_size=-(-context // PAGE_TOKENS) * PAGE_TOKENS,
        cache_mode=str(use.cache) if use.cache.quantized else "FP16",
        chunk_size=use.chunk,
        max_batch_size=use.slots,
        tensor_parallel=use.tensor_parallel,
        autosplit_reserve=() if manual else tuple(-(-int(reserve) // _MIB) for _ in plan.per_gpu),
        gpu_split=tuple(_gib(card.capacity_bytes - kept) for card in plan.per_gpu) if manual else (),
        cpu_moe_offload_layers=use.offload_layers,
        reasoning=reasoning if options.reasoning is None else options.reasoning,
        tool_format=options.tool_format or (None if family is None else family.tool_format),
    )


def _gib(size_bytes: float) -> float:
    """Rounded down to hundredths, so that a card is never promised more than it has."""
    return int(size_bytes / (1 << 30) * 100) / 100


def _notes(options: DeployOptions, family: Family | None, draft: DraftSettings | None, plan: Plan) -> tuple[str, ...]:
    notes = []
    if family is None and (options.tool_format is None or options.reasoning is None):
        notes.append("How this model thinks and calls tools is not known: `tool_format` and `reasoning` say so")
    if draft is not None and plan.kv_bytes > (plan.context or 0) * plan.kv_bytes_per_token + _page_rest(plan):
        notes.append("Drafts lengthen the states of linear and sliding layers, which the plan does not count")
    return tuple(notes)


def _page_rest(plan: Plan) -> int:
    return -(plan.context or 0) % PAGE_TOKENS * plan.kv_bytes_per_token
