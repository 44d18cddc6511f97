"""Shared by all pictures of a report: the order of rows, colours and marks of roles, and where log scales end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from exltune.schema.inventory import Role
from exltune.schema.report import Report, ReportGroup, ReportProbe
from exltune.search.law.costs import nmse

#: Okabe and Ito's colours, which the colour-blind can tell apart, without yellow; a mark of its own for each role.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#999933")
#: Perceptually even, also for the colour-blind; few nats are dark.
COLOUR_SCALE = "cividis"

KLD = "KL(reference‖mix), nats/token"

#: A log scale needs a lower edge for zeros: this share of the least positive value.
_EDGE = 0.5
_NOTHING = 1e-9

_PLACE = {name: place for place, role in reversed(list(enumerate(Role))) for name in (role.value, role.pair)}
_PART_PLACE = {role.part: place for place, role in reversed(list(enumerate(Role)))}


def role_order(name: str) -> tuple[int, str]:
    """Sorts roles and parts of a layer in the order in which a layer computes them."""
    return _PLACE.get(name, _PART_PLACE.get(name.partition(".")[0], len(_PLACE))), name


def rows_of(groups: Iterable[ReportGroup]) -> list[str]:
    """Rows of the heat map."""
    return sorted({group.row for group in groups}, key=role_order)


def roles_of(groups: Iterable[ReportGroup]) -> list[str]:
    """Roles in order."""
    return sorted({group.role for group in groups}, key=role_order)


def columns_of(groups: Iterable[ReportGroup]) -> dict[int | None, str]:
    """Columns of the heat map: layers, ascending, then groups in none."""
    layers = sorted({group.layer for group in groups}, key=lambda layer: (layer is None, layer or 0))
    return {layer: "-" if layer is None else str(layer) for layer in layers}


def least_kld(groups: Sequence[ReportGroup]) -> float:
    """The place of zero and below on log scales: below every positive KL(reference‖mix); nats/token."""
    positive = [probe.kld_nats for group in groups for probe in group.probes if probe.kld_nats > 0]
    return _EDGE * min(positive) if positive else _NOTHING


def at(group: ReportGroup, choice: str) -> ReportProbe | None:
    """The group's probe at a choice."""
    return next((probe for probe in group.probes if probe.choice == choice), None)


def law_curve(groups: Iterable[ReportGroup]) -> dict[float, float]:
    """r -> the median over groups of their law there, nats/token; r ascending."""
    klds: dict[float, list[float]] = {}
    for group in groups:
        for bits, kld in group.law_klds.items():
            klds.setdefault(float(np.sqrt(nmse(bits))), []).append(kld)
    return {error: float(np.median(found)) for error, found in sorted(klds.items())}


def by_kld(report: Report, choice: str) -> list[tuple[ReportGroup, ReportProbe]]:
    """Groups with a probe at a choice, the largest KL(reference‖mix) first."""
    found = [(group, probe) for group in report.groups if (probe := at(group, choice)) is not None]
    return sorted(found, key=lambda pair: -pair[1].kld_nats)


def readable(kld: float) -> str:
    """Three digits: 0.0123, 1.23e-05."""
    return f"{kld:.3g}"


def shown_kld(probe: ReportProbe) -> str:
    """A probe's KL(reference‖mix); with a ~ where it is estimated."""
    return f"~{readable(probe.kld_nats)}" if probe.estimated else readable(probe.kld_nats)


def ticks(low: float, high: float, steps: Sequence[int] = (1, 2, 5)) -> list[float]:
    """1, 2 and 5 times powers of ten around two positive numbers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**power for power in powers for step in steps]
