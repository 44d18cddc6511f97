"""The base quants that a measurement was made with."""

from __future__ import annotations

from pathlib import Path

from exltune.errors import QuantMismatchError
from exltune.inventory import model_fingerprint
from exltune.pipeline.common.reference import described, reference_quant
from exltune.pipeline.quants.base_quants import BaseQuant, find_base_quants
from exltune.schema.measurement import Measurement


def quants_at_hand(measurement: Measurement, folder: Path | None, model: Path) -> list[BaseQuant]:
    """The measured base quants, or none where their directories are gone. Raises: QuantMismatchError."""
    recorded = {choice: Path(path) for choice, path in measurement.exltune.quants.items()}
    weights = any(model.glob("*.safetensors"))
    if weights and model_fingerprint(model) != measurement.exltune.provenance.model_sha256:
        raise _other_model(measurement, model)
    if folder is None:
        if not all(path.is_dir() for path in recorded.values()) or not weights:
            return []
        folder = next(iter(recorded.values())).parent
    quants = [quant for quant in find_base_quants(folder, model) if quant.choice in recorded]
    missing = recorded.keys() - {quant.choice for quant in quants}
    if missing:
        raise QuantMismatchError(
            f"the measurement knows base quants that are not here: {', '.join(sorted(missing))} bits",
            where=str(folder),
            fix="Give the folder that was measured with `quants`",
        )
    for quant in quants:
        if model_fingerprint(quant.path) != measurement.exltune.quant_sha256[quant.choice]:
            raise QuantMismatchError(
                "it is another quant than the one that was measured", where=str(quant.path), fix="Measure again"
            )
    return quants


def _other_model(measurement: Measurement, model: Path) -> QuantMismatchError:
    """KL against a quant is none against the model that it was made from, though both are of one model."""
    noted, here = measurement.exltune.provenance, reference_quant(model)
    if noted.reference is None and here is None:
        return QuantMismatchError("the measurement is of another model", where=str(model), fix="Measure this model")
    return QuantMismatchError(
        f"the measurement is against {described(noted.reference, noted.model_path)}, and this is "
        f"{described(here, model)}: KL against one says nothing of KL against the other",
        where=str(model),
        fix="Give the reference that was measured against with `model`, or measure against this one",
    )
