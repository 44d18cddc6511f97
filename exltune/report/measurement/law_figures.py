"""Interactive figures: KL(reference‖mix) by error, by the sum of parts, and with the bits of head and cache."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from exltune.report.measurement.figures import HOVER, Chart, Hovers, error_bars, layout, log_axis, mark, short
from exltune.report.measurement.scales import KLD, law_curve, least_kld, readable, roles_of
from exltune.schema.report import Report, ReportGroup, ReportProbe, RoleLaw, WholeMix

_COLUMNS, _PANEL_HEIGHT, _PANEL_GAP, _AROUND = 3, 230, 60, 90
_PLOT_HEIGHT = 440
_TITLES_SIZE = 13
#: Half widths of 95 % intervals in standard errors.
_HALF_WIDTH = 1.96


def error_law(report: Report, hovers: Hovers) -> Chart:
    """A panel by role: KL(reference‖mix) against the codec's r(K), and the law at the role's median S."""
    roles = roles_of(report.groups)
    laws = {law.role: law for law in report.laws}
    columns = min(_COLUMNS, len(roles))
    lines = -(-len(roles) // columns)
    titles = [_panel_title(role, laws.get(role)) for role in roles]
    gap = _PANEL_GAP / (_PANEL_HEIGHT * lines)
    axes = {"shared_xaxes": "all", "shared_yaxes": "all", "vertical_spacing": gap, "horizontal_spacing": 0.04}
    figure = make_subplots(lines, columns, subplot_titles=titles, **axes)
    errors = _errors(report.groups)
    low = least_kld(report.groups)
    for number, role in enumerate(roles):
        place = {"row": number // columns + 1, "col": number % columns + 1}
        groups = [group for group in report.groups if group.role == role]
        figure.add_trace(_swaps(groups, number, low, hovers), **place)
        if role in laws:
            figure.add_trace(_line(laws[role], groups), **place)
    figure.update_layout(showlegend=False, **layout(_PANEL_HEIGHT * lines + _AROUND))
    figure.update_annotations(font_size=_TITLES_SIZE)
    bits = [f"{width:g}" for width in errors.values()]
    figure.update_xaxes(type="log", tickvals=list(errors), ticktext=bits, showticklabels=True)
    figure.update_xaxes(title_text="r(K), log scale; ticks: K, bits", row=lines)
    figure.update_yaxes(**log_axis([low, *(probe.kld_nats for group in report.groups for probe in group.probes)]))
    figure.update_yaxes(title_text=KLD, col=1)
    return Chart(figure)


def law_misfit(report: Report, hovers: Hovers) -> Chart:
    """Measured KL(reference‖mix) over the law's, against the law's."""
    figure = go.Figure()
    seen = [probe for group in report.groups for probe in group.probes if probe.over_law is not None]
    for number, role in enumerate(roles_of(report.groups)):
        groups = [group for group in report.groups if group.role == role]
        pairs = [(group, probe) for group in groups for probe in group.probes if probe.over_law is not None]
        figure.add_trace(
            go.Scatter(
                x=[short(probe.law_kld or 0.0) for _, probe in pairs],
                y=[short(probe.over_law or 0.0) for _, probe in pairs],
                mode="markers",
                marker=mark(number, [probe for _, probe in pairs]),
                name=escape(role, quote=False),
                customdata=[hovers.number(*pair) for pair in pairs],
                hovertemplate=HOVER,
            )
        )
    figure.add_hline(y=1, line={"color": "#767676", "dash": "dash"})
    figure.update_layout(legend_title_text="role", **layout(_PLOT_HEIGHT))
    figure.update_xaxes(
        title_text="KL(reference‖mix) by the law S · r(K)^p, nats/token",
        **log_axis(probe.law_kld or 0.0 for probe in seen),
    )
    figure.update_yaxes(
        title_text="measured KL(reference‖mix) over the law's", **log_axis(probe.over_law or 0.0 for probe in seen)
    )
    return Chart(figure)


def additivity(report: Report) -> Chart:
    """KL(reference‖mix) of whole mixes: by their parts, against measured."""
    figure = go.Figure()
    mixes = [mix for mix in report.mixes if mix.measured_kld > 0]
    series = [("sum of the parts' swaps", [mix.sum_of_parts for mix in mixes])]
    if report.gamma is not None:
        series.append((f"swaps, gamma = {report.gamma:.2f}", [mix.by_gamma or 0.0 for mix in mixes]))
        series.append((f"law over mixes, gamma = {report.gamma:.2f}", [mix.by_law or 0.0 for mix in mixes]))
    for number, (name, values) in enumerate(series):
        figure.add_trace(_wholes(mixes, values, name, number))
    everything = [value for _, values in series for value in values if value > 0] + [mix.measured_kld for mix in mixes]
    ends = [0.8 * min(everything), 1.25 * max(everything)]
    figure.add_trace(
        go.Scatter(
            x=ends, y=ends, mode="lines", line={"color": "#767676", "dash": "dash"}, name="equal", hoverinfo="skip"
        )
    )
    figure.update_layout(**layout(_PLOT_HEIGHT))
    figure.update_xaxes(title_text=f"measured {KLD}", **log_axis(ends))
    figure.update_yaxes(title_text="by its parts, nats/token", **log_axis(ends))
    return Chart(figure)


def wider(report: Report, hovers: Hovers) -> Chart:
    """The head and the halves of the cache, each swapped alone."""
    figure = go.Figure()
    low = least_kld(report.wider)
    for number, unit in enumerate(report.wider):
        figure.add_trace(
            go.Scatter(
                x=[probe.bits for probe in unit.probes],
                y=[short(max(probe.kld_nats, low)) for probe in unit.probes],
                error_y=error_bars(unit.probes),
                mode="lines+markers",
                marker=mark(number, unit.probes),
                line={"width": 1.5},
                name=escape(unit.id, quote=False),
                customdata=[hovers.number(unit, probe) for probe in unit.probes],
                hovertemplate=HOVER,
            )
        )
    figure.update_layout(**layout(_PLOT_HEIGHT))
    figure.update_layout(showlegend=True)
    figure.update_xaxes(title_text="bits", dtick=1)
    klds = [max(probe.kld_nats, low) for unit in report.wider for probe in unit.probes]
    figure.update_yaxes(title_text=KLD, **log_axis(klds))
    return Chart(figure)


def _panel_title(role: str, law: RoleLaw | None) -> str:
    name = escape(role, quote=False)
    return name if law is None else f"{name}: p = {law.exponent:.2f}"


def _errors(groups: Sequence[ReportGroup]) -> dict[float, float]:
    """r -> bits, the largest r first."""
    found = {p.relative_error: p.bits for group in groups for p in group.probes if p.relative_error is not None}
    return dict(sorted(found.items(), reverse=True))


def _swaps(groups: Sequence[ReportGroup], number: int, low: float, hovers: Hovers) -> Any:
    pairs: list[tuple[ReportGroup, ReportProbe]] = [(group, probe) for group in groups for probe in group.probes]
    return go.Scatter(
        x=[short(probe.relative_error or 0.0) for _, probe in pairs],
        y=[short(max(probe.kld_nats, low)) for _, probe in pairs],
        mode="markers",
        marker=mark(number, [probe for _, probe in pairs]) | {"opacity": 0.6},
        customdata=[hovers.number(*pair) for pair in pairs],
        hovertemplate=HOVER,
    )


def _line(law: RoleLaw, groups: Sequence[ReportGroup]) -> Any:
    curve = law_curve(groups)
    return go.Scatter(
        x=list(curve),
        y=list(curve.values()),
        mode="lines",
        line={"color": "#1a1a1a", "width": 1.5},
        hovertemplate=f"median S = {readable(law.scale)}, p = {law.exponent:.2f}<extra></extra>",
    )


def _wholes(mixes: Sequence[WholeMix], values: Sequence[float], name: str, number: int) -> Any:
    texts = [
        f"<b>{escape(mix.name, quote=False)}</b><br>measured {readable(mix.measured_kld)} nats/token"
        f"<br>{name}: {readable(value)}, {value / mix.measured_kld:.2f} times"
        for mix, value in zip(mixes, values, strict=True)
    ]
    return go.Scatter(
        x=[mix.measured_kld for mix in mixes],
        y=[value if value > 0 else None for value in values],
        error_x={"array": [_HALF_WIDTH * (mix.measured_kld_se or 0.0) for mix in mixes], "thickness": 1, "width": 2},
        mode="markers",
        marker=mark(number),
        name=name,
        hovertext=texts,
        hovertemplate=HOVER,
    )
