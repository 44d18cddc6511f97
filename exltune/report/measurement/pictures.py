"""The figures of a report as PNG, for cards."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from exltune.report.measurement.scales import (
    COLOUR_SCALE,
    COLOURS,
    KLD,
    by_kld,
    columns_of,
    law_curve,
    least_kld,
    roles_of,
    rows_of,
)
from exltune.schema.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 120
#: Inches: a cell of the heat map at most and at least, its height, the space around a map, and a plain plot.
_CELL_WIDTH, _LEAST_CELL_WIDTH, _CELL_HEIGHT, _AROUND = 0.5, 0.11, 0.24, (2.2, 0.75)
_PLOT = (9.0, 4.8)
_MARKS = "osD^v<>P*XphH8d"
_SMALL = 7
#: Half widths of 95 % intervals in standard errors.
_HALF_WIDTH = 1.96


def drawn(report: Report) -> dict[str, bytes]:
    """Name -> PNG, of all that the report has."""
    return {name: picture for name, draw in PICTURES.items() if (picture := draw(report)) is not None}


def _heat_maps(report: Report) -> bytes:
    """One below the other, a width each, every one on its own log scale."""
    from matplotlib.colors import LogNorm

    rows, columns = rows_of(report.groups), columns_of(report.groups)
    width = max(_LEAST_CELL_WIDTH, min(_CELL_WIDTH, 9.0 / len(columns))) * len(columns) + _AROUND[0]
    height = (_CELL_HEIGHT * len(rows) + _AROUND[1]) * len(report.widths)
    figure = _figure((max(width, _PLOT[0] / 2), height))
    edge = least_kld(report.groups)
    places = {layer: x for x, layer in enumerate(columns)}
    for axes, choice in zip(figure.subplots(len(report.widths), 1, squeeze=False)[:, 0], report.widths, strict=True):
        ranked = by_kld(report, choice)
        cells = [[float("nan")] * len(columns) for _ in rows]
        for group, probe in ranked:
            cells[rows.index(group.row)][places[group.layer]] = max(probe.kld_nats, edge)
        low, high = max(ranked[-1][1].kld_nats, edge), max(ranked[0][1].kld_nats, edge)
        norm = LogNorm(low, high if high > low else low * 1.01)
        image = axes.imshow(cells, aspect="auto", cmap=COLOUR_SCALE, norm=norm, interpolation="nearest")
        figure.colorbar(image, ax=axes, pad=0.01)
        axes.set_title(f"{ranked[0][1].bits:g} bits: {KLD}", fontsize=9)
        axes.set_yticks(range(len(rows)), rows, fontsize=_SMALL)
        step = -(-len(columns) // 24)
        axes.set_xticks(range(0, len(columns), step), list(columns.values())[::step], fontsize=_SMALL)
        axes.tick_params(length=0)
    axes.set_xlabel("layer")
    return _png(figure)


def _intervals(report: Report) -> bytes:
    """At the lowest width."""
    figure = _figure(_PLOT)
    axes, choice, edge = figure.add_subplot(), report.widths[0], least_kld(report.groups)
    ranked = list(enumerate(by_kld(report, choice), 1))
    for number, role in enumerate(roles_of(report.groups)):
        for hollow in (False, True):
            some = [(rank, p) for rank, (g, p) in ranked if g.role == role and p.estimated == hollow]
            halves = [(probe.kld_nats, probe.ci95 or (probe.kld_nats, probe.kld_nats)) for _, probe in some]
            axes.errorbar(
                [rank for rank, _ in some],
                [max(probe.kld_nats, edge) for _, probe in some],
                yerr=[[max(k - low, 0.0) for k, (low, _) in halves], [max(high - k, 0.0) for k, (_, high) in halves]],
                **_style(number, hollow=hollow),
                elinewidth=0.7,
                label=None if hollow else role,
            )
    axes.set_yscale("log")
    axes.set_xlabel("groups, the largest KL(reference‖mix) first")
    _finish(axes, f"At {ranked[0][1][1].bits:g} bits, with 95 % intervals", KLD)
    return _png(figure)


def _error_law(report: Report) -> bytes:
    figure = _figure(_PLOT)
    axes, edge = figure.add_subplot(), least_kld(report.groups)
    errors = {p.relative_error: p.bits for g in report.groups for p in g.probes if p.relative_error is not None}
    laws = {law.role: law for law in report.laws}
    for number, role in enumerate(roles_of(report.groups)):
        law, style = laws.get(role), _style(number)
        label = role if law is None else f"{role}, p = {law.exponent:.2f}"
        for hollow in (False, True):
            probes = [p for g in report.groups if g.role == role for p in g.probes if p.estimated == hollow]
            axes.plot(
                [probe.relative_error or 0.0 for probe in probes],
                [max(probe.kld_nats, edge) for probe in probes],
                **_style(number, hollow=hollow),
                label=None if hollow else label,
                alpha=0.6,
            )
        if law is not None:
            curve = law_curve(group for group in report.groups if group.role == role)
            axes.plot(list(curve), list(curve.values()), color=style["color"], linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(
        list(errors), [f"{r:.3f}\n{bits:g} bits" for r, bits in errors.items()], fontsize=_SMALL, minor=False
    )
    axes.set_xticks([], minor=True)
    axes.set_xlabel("relative error r(K) of the codec, not of the tensors")
    title = "Swaps" if not laws else "Swaps, and the law S · r(K)^p at the median S of each role"
    _finish(axes, title, KLD)
    return _png(figure)


def _additivity(report: Report) -> bytes | None:
    mixes = [mix for mix in report.mixes if mix.measured_kld > 0]
    if not mixes:
        return None
    figure = _figure((_PLOT[1] * 1.25, _PLOT[1]))
    axes = figure.add_subplot()
    series = [("sum of the parts' swaps", [mix.sum_of_parts for mix in mixes])]
    if report.gamma is not None:
        series.append((f"swaps, gamma = {report.gamma:.2f}", [mix.by_gamma or 0.0 for mix in mixes]))
        series.append((f"law over mixes, gamma = {report.gamma:.2f}", [mix.by_law or 0.0 for mix in mixes]))
    measured = [mix.measured_kld for mix in mixes]
    for number, (name, values) in enumerate(series):
        xerr = [_HALF_WIDTH * (mix.measured_kld_se or 0.0) for mix in mixes]
        axes.errorbar(measured, values, xerr=xerr, **_style(number), elinewidth=0.7, label=name)
    axes.plot([min(measured), max(measured)], [min(measured), max(measured)], "--", color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(f"measured {KLD}")
    _finish(axes, "Whole mixes", "by their parts, nats/token")
    return _png(figure)


def _wider(report: Report) -> bytes | None:
    if not report.wider:
        return None
    figure = _figure((_PLOT[1] * 1.25, _PLOT[1]))
    axes, edge = figure.add_subplot(), least_kld(report.wider)
    for number, unit in enumerate(report.wider):
        klds = [max(probe.kld_nats, edge) for probe in unit.probes]
        axes.plot([probe.bits for probe in unit.probes], klds, **_style(number) | {"linestyle": "-"}, label=unit.id)
    axes.set_yscale("log")
    axes.set_xlabel("bits")
    _finish(axes, "Head and cache, each swapped alone", KLD)
    return _png(figure)


#: File name -> its drawing function; None where the report has nothing to draw.
PICTURES: dict[str, Callable[[Report], bytes | None]] = {
    "kl_heat_map.png": _heat_maps,
    "kl_intervals.png": _intervals,
    "kl_error_law.png": _error_law,
    "kl_additivity.png": _additivity,
    "kl_wider.png": _wider,
}


def _figure(size: tuple[float, float]) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=size, dpi=_DPI, layout="constrained")


def _style(number: int, *, hollow: bool = False) -> dict[str, Any]:
    return {
        "linestyle": "none",
        "marker": _MARKS[number % len(_MARKS)],
        "markersize": 4,
        "color": COLOURS[number % len(COLOURS)],
        "markerfacecolor": "none" if hollow else COLOURS[number % len(COLOURS)],
    }


def _finish(axes: Axes, title: str, y: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=_SMALL)


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
