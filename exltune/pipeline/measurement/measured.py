"""The model, base quants and texts that a measurement was made with."""

from __future__ import annotations

from pathlib import Path

from exltune.corpora.dealing import check_tokens
from exltune.errors import QuantMismatchError
from exltune.pipeline.common.reporter import Reporter
from exltune.pipeline.common.session import EngineOptions, Session
from exltune.schema.measurement import Measurement
from exltune.schema.tokens import DataOptions, Split
from exltune.store.quants.reference import described


def session_of(
    measurement: Measurement,
    *,
    model: Path | None = None,
    quants: Path | None = None,
    data: DataOptions | None = None,
    engine: EngineOptions | None = None,
    store: str | Path | None = None,
    reporter: Reporter | None = None,
) -> Session:
    """A session on the measurement's model, quants and data, or on those that are given instead."""
    detail = measurement.exltune
    recorded = [Path(path) for path in detail.quants.values()]
    if quants is None and all(path.is_dir() for path in recorded):
        quants = recorded[0].parent
    return Session(
        model or Path(detail.provenance.model_path),
        data or detail.data,
        quants=quants,
        engine=engine,
        store=store,
        reporter=reporter,
    )


def can_score(measurement: Measurement, session: Session, where: str = "measurement") -> bool:
    """Whether the measured model and base quants are at hand, checked to be the measured ones, and so are the texts.

    Raises: QuantMismatchError for others, DataError for other texts.
    """
    weights = any(session.model.glob("*.safetensors"))
    if weights and session.fingerprint() != measurement.exltune.provenance.model_sha256:
        raise _other_model(measurement, session)
    if session.quants_dir is None or not weights:
        return False
    _check_quants(measurement, session)
    check_tokens(session.token_sets[Split.SEARCH], measurement.exltune.provenance.tokens_sha256, where)
    return True


def _check_quants(measurement: Measurement, session: Session) -> None:
    recorded = measurement.exltune.quant_sha256
    here = {quant.choice: quant for quant in session.base_quants}
    missing = recorded.keys() - here.keys()
    if missing:
        raise QuantMismatchError(
            f"the measurement knows base quants that are not here: {', '.join(sorted(missing))} bits",
            where=str(session.quants_dir),
            fix="Give the folder that was measured with `quants`",
        )
    for choice, sha256 in recorded.items():
        if session.fingerprint(here[choice].path) != sha256:
            raise QuantMismatchError(
                "it is another quant than the one that was measured", where=str(here[choice].path), fix="Measure again"
            )


def _other_model(measurement: Measurement, session: Session) -> QuantMismatchError:
    """KL(quant‖mix) is not KL(model‖mix), though the quant was made from the model."""
    noted, here, model = measurement.exltune.provenance, session.reference, session.model
    if noted.reference is None and here is None:
        return QuantMismatchError("the measurement is of another model", where=str(model), fix="Measure this model")
    return QuantMismatchError(
        f"the measurement is against {described(noted.reference, noted.model_path)}, and this is "
        f"{described(here, model)}: KL(ref‖mix) of one says nothing of the other's",
        where=str(model),
        fix="Give the reference that was measured against with `model`, or measure against this one",
    )
