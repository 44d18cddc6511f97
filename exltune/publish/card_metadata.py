"""The front matter by which the Hub finds, files and filters a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # exported lazily

from exltune.errors import CorruptFileError, UsageError
from exltune.schema.card import Card, License

_README = "README.md"
#: How huggingface_hub names folders of its cache.
_CACHED = "models--"
_TEXT, _IMAGE_TEXT = "text-generation", "image-text-to-text"


def front_matter(card: Card) -> str:
    """YAML between `---` lines and a line end. Source: huggingface.co/docs/hub/model-cards, "Model card metadata"."""
    other: dict[str, Any] = {"license_name": card.license.name, "license_link": card.license.link}
    data = ModelCardData(
        language=list(card.languages) or None,
        license=card.license.id,
        base_model=card.base_model,
        base_model_relation="quantized",
        quantization="exl3",
        library_name="exllamav3",
        pipeline_tag=card.pipeline_tag,
        tags=list(card.tags),
        **{key: value for key, value in other.items() if value is not None},
    )
    return f"---\n{data.to_yaml()}\n---\n"


def base_card(model: Path) -> Mapping[str, Any]:
    """Front matter of the base model's README, empty where there is none. Raises: CorruptFileError."""
    file = model / _README
    if not file.is_file():
        return {}
    try:
        return dict(ModelCard.load(file).data.to_dict())
    except (ValueError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise CorruptFileError(
            f"its front matter cannot be read ({reason})", where=str(file), fix="Mend it, or move it away"
        ) from error


def pipeline_tag(config: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """From the base model's card; else by whether the config has a vision tower."""
    stated = base.get("pipeline_tag")
    if isinstance(stated, str):
        return stated
    return _IMAGE_TEXT if "vision_config" in config else _TEXT


def tags(config: Mapping[str, Any], moe: bool) -> tuple[str, ...]:
    """Tags that people search quants by."""
    family = config.get("model_type")
    found = (
        "exl3",
        "exllamav3",
        "exltune",
        *((family,) if isinstance(family, str) else ()),
        *(("moe",) if moe else ()),
    )
    return tuple(dict.fromkeys(found))


def license_of(base: Mapping[str, Any]) -> License:
    """The base model's license, from its card. Raises: UsageError where it does not say."""
    stated = base.get("license")
    if not isinstance(stated, str):
        raise UsageError(
            "the base model's license is not known", fix="Give `license`, such as apache-2.0, mit, or other"
        )
    return License(id=stated, name=base.get("license_name"), link=base.get("license_link"))


def source_repo(model: Path) -> str:
    """The Hub's name of a model directory in its cache. Raises: UsageError for one that lies elsewhere."""
    for part in reversed(model.parts):
        if part.startswith(_CACHED):
            return part.removeprefix(_CACHED).replace("--", "/")
    raise UsageError(f"the Hub's name of {model.name} is not known", fix="Give `base_model`, such as zai-org/GLM-4.7")


def check_repo_id(repo_id: str, field: str) -> str:
    """The name itself. Raises: UsageError naming the field where the Hub would not take it."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UsageError(f"{field} {repo_id!r} is not a name on the Hub", fix="Write OWNER/NAME") from error
    if repo_id.count("/") != 1:
        raise UsageError(f"{field} {repo_id!r} has no owner", fix=f"Write OWNER/{repo_id}")
    return repo_id
