"""The report as one HTML file that needs no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from exltune.budget import format_size
from exltune.report.measurement.figures import Chart, Hovers, heat_map, intervals
from exltune.report.measurement.law_figures import additivity, error_law, law_misfit, wider
from exltune.report.measurement.scales import by_kld, columns_of, readable, shown_kld
from exltune.schema.report import Report, ReportGroup, ReportProbe

_TEMPLATE = "report.html.j2"
#: Rows of a table of the top or bottom groups.
_TABLE_ROWS = 15
#: Pixels of a cell of the heat map at most, and of the space beside the cells.
_CELL_WIDTH, _BESIDE = 74, 260


@dataclass(frozen=True)
class Ranking:
    """The top and bottom groups at one width, by KL(reference‖mix) and, with known bytes, by that per MiB saved."""

    choice: str
    bits: float
    tables: tuple[tuple[str, list[tuple[ReportGroup, ReportProbe]]], ...]


def report_page(report: Report) -> str:
    """The page. Names in it come from strangers' models and are escaped."""
    environment = Environment(
        loader=PackageLoader("exltune.report.measurement"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"kld": readable, "shown": shown_kld, "size": lambda size: format_size(size, "GiB")}
    hovers = Hovers(report)
    charts = _charts(report, hovers)
    return environment.get_template(_TEMPLATE).render(
        report=report,
        data={"charts": _as_json(charts), "hovers": hovers.texts},
        # The library is not a stranger's, and its own text holds no closing tag of a script.
        plotly=Markup(get_plotlyjs()),
        rankings=[_ranking(report, choice) for choice in report.widths],
        map_width=_CELL_WIDTH * len(columns_of(report.groups)) + _BESIDE,
    )


def _charts(report: Report, hovers: Hovers) -> dict[str, Chart]:
    charts = {
        "heat_map": heat_map(report, hovers),
        "intervals": intervals(report, hovers),
        "error_law": error_law(report, hovers),
    }
    if report.laws:
        charts["law_misfit"] = law_misfit(report, hovers)
    if report.mixes:
        charts["additivity"] = additivity(report)
    if report.wider:
        charts["wider"] = wider(report, hovers)
    return charts


def _as_json(charts: Mapping[str, Chart]) -> dict[str, Any]:
    return {
        name: {"figure": json.loads(chart.figure.to_json()), "patches": chart.patches} for name, chart in charts.items()
    }


def _ranking(report: Report, choice: str) -> Ranking:
    ranked = by_kld(report, choice)
    tables = [("Largest KL(ref‖mix)", ranked), ("Smallest KL(ref‖mix)", ranked[::-1])]
    priced = [(probe.kld_per_mib, group, probe) for group, probe in ranked if probe.kld_per_mib is not None]
    if priced:
        dear = [(group, probe) for _, group, probe in sorted(priced, key=lambda one: -one[0])]
        tables += [
            ("Most KL(ref‖mix) per MiB saved: raise first", dear),
            ("Least KL(ref‖mix) per MiB saved: lower first", dear[::-1]),
        ]
    return Ranking(choice, ranked[0][1].bits, tuple((title, rows[:_TABLE_ROWS]) for title, rows in tables))
