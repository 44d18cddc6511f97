"""Tables of an explanation; every number comes from its record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from exltune.budget import format_size
from exltune.report.heat_map import folded, heat_map, layer_ranges
from exltune.report.palette import bit_colour, text_colour
from exltune.schema.explain import Change, Explanation, Prediction, RuleComparison, Step
from exltune.schema.search import FrontPoint

#: Steps shown; `--json` has them all.
_SHOWN = 12
_JUDGED = {
    "selection": "KL(ref‖mix) on the selection set",
    "search": "KL(ref‖mix) on the search set",
    "predicted": "predicted KL(ref‖mix)",
}


def headline(found: Explanation) -> str:
    """The recipe in one line."""
    cache = None if found.cache is None else f"KV cache {','.join(found.cache)}"
    parts = (
        found.architecture,
        None if found.source is None else f"from {found.source}",
        None if found.achieved_bpw is None else f"{found.achieved_bpw:.3f} bpw",
        None if found.target_bpw is None else f"target {found.target_bpw:g}",
        None if found.head_bits is None else f"head {found.head_bits:g} bits",
        cache,
        None if found.size_bytes is None else format_size(found.size_bytes),
        None if found.left_bytes is None else f"{format_size(found.left_bytes)} unused",
    )
    return f"{found.recipe}: {', '.join(part for part in parts if part is not None)}"


def explanation_tables(found: Explanation) -> Iterator[Table]:
    """The heat map, and every other table with known numbers."""
    yield heat_table(found)
    if found.bought:
        title = f"Bought the most KL(ref‖mix) per byte, from {found.bought[0].from_bits:g} bits"
        yield _steps_table(title, found.bought)
    if found.upgrades:
        yield _steps_table("Next best upgrades that did not fit", found.upgrades)
    if found.rule is not None:
        yield _rule_table(found.rule)
    if found.predictions:
        yield _predictions_table(found.predictions)
    if found.front:
        yield _front_table(found.front)


def heat_table(found: Explanation) -> Table:
    """Layers by roles; neighbouring layers with the same bits share a row."""
    roles, rows = heat_map(found.groups)
    table = Table(title="Bits by layer and role", padding=(0, 0))
    table.add_column("layer", justify="right", no_wrap=True)
    # Part over projection: at level l4 the names side by side are wider than most terminals.
    heads = [role.replace(".", "\n", 1) for role in roles]
    for head in heads:
        table.add_column(head, justify="center", no_wrap=True)
    for layers, row in folded(rows):
        table.add_row(layers, *(_cell(bits, head) for bits, head in zip(row, heads, strict=True)))
    return table


def _cell(bits: float | None, head: str) -> Text:
    """The bits on their colour, as wide as the column."""
    if bits is None:
        return Text("")
    background = bit_colour(bits)
    red, green, blue = background
    return Text(
        f"{bits:g}".center(max(map(len, head.split("\n")))),
        style=f"{text_colour(background)} on rgb({red},{green},{blue})",
    )


def _steps_table(title: str, steps: Sequence[Step]) -> Table:
    shown = steps[:_SHOWN]
    table = Table(title=title if len(shown) == len(steps) else f"{title} ({len(shown)} of {len(steps)})")
    table.add_column("group", no_wrap=True)
    names = ["bits", "KL(ref‖mix) falls by", "costs", "per MiB"]
    names += ["missing"] if any(step.missing_bytes is not None for step in steps) else []
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for step in shown:
        error = "" if step.kld_se_nats is None else f" ± {step.kld_se_nats:.4f}"
        table.add_row(
            step.id,
            f"{step.from_bits:g} -> {step.to_bits:g}",
            f"{step.kld_nats:.4f}{error}",
            format_size(step.size_bytes),
            f"{step.kld_per_mib:.3g}",
            *([] if step.missing_bytes is None else [format_size(step.missing_bytes)]),
        )
    return table


def _rule_table(rule: RuleComparison) -> Table:
    there, here = ("-" if kld is None else f"{kld:.4f}" for kld in (rule.kld_there, rule.kld_here))
    title = (
        f"Against the best hand rule, {rule.name} ({_JUDGED[rule.judged_by]}: {there} there, {here} here): "
        f"{len(rule.changes)} groups differ, +{format_size(rule.bytes_added)} -{format_size(rule.bytes_saved)}"
    )
    table = Table(title=title)
    for name in ("role", "bits there", "here", "layers", "bytes"):
        table.add_column(name, justify="right" if name == "bytes" else "left", no_wrap=name != "layers")
    alike: dict[tuple[str, float, float], list[Change]] = {}
    for change in rule.changes:
        alike.setdefault((change.role, change.bits_there, change.bits_here), []).append(change)
    for (role, bits_there, bits_here), changes in sorted(alike.items()):
        total = sum(change.size_bytes for change in changes)
        signed = f"{'+' if total >= 0 else '-'}{format_size(abs(total))}"
        layers = layer_ranges(change.layer for change in changes)
        table.add_row(role, f"{bits_there:g}", f"{bits_here:g}", layers, signed)
    return table


def _predictions_table(predictions: Sequence[Prediction]) -> Table:
    table = Table(title="Predicted against measured KL(ref‖mix), nats/token; this recipe first")
    table.add_column("mix", no_wrap=True)
    for name in ("predicted", "measured", "predicted / measured", "measured on"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in predictions:
        error = "" if one.measured_kld_se is None else f" ± {one.measured_kld_se:.4f}"
        known = one.predicted_kld is not None and one.measured_kld is not None and one.measured_kld > 0
        table.add_row(
            escape(one.name),
            "-" if one.predicted_kld is None else f"{one.predicted_kld:.4f}",
            "-" if one.measured_kld is None else f"{one.measured_kld:.4f}{error}",
            f"{(one.predicted_kld or 0.0) / (one.measured_kld or 1.0):.2f}" if known else "-",
            one.measured_on or "-",
        )
    return table


def _front_table(front: Sequence[FrontPoint]) -> Table:
    table = Table(title="Front")
    for name in ("target bpw", "bpw", "size", "KL(ref‖mix), selection set", "predicted", "from", "recipe"):
        table.add_column(name, justify="left" if name in ("from", "recipe") else "right", no_wrap=True)
    for point in front:
        error = "" if point.selection_kld_se is None else f" ± {point.selection_kld_se:.4f}"
        table.add_row(
            f"{point.target_bpw:g}",
            f"{point.bpw:.3f}",
            format_size(point.size_bytes),
            "-" if point.selection_kld is None else f"{point.selection_kld:.4f}{error}",
            "-" if point.predicted_kld is None else f"{point.predicted_kld:.4f}",
            escape(point.winner),
            escape(point.recipe or "-"),
        )
    return table
