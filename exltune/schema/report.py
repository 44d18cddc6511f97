"""The numbers of `exltune report`; unknown ones are None."""

from __future__ import annotations

from exltune.schema.base import Record
from exltune.schema.inventory import Unit
from exltune.schema.provenance import Provenance
from exltune.schema.tokens import DataOptions


class ReportProbe(Record):
    """One swap. KL(reference‖mix) of the group at this width and all else at the base, nats/token.

    ci95: interval of the mean over rows, None for a single row. relative_error: r of the codec at these bits on
    Gaussian tiles, None for the cache. law_kld: the fitted law's value for it. kld_per_mib: kld_nats over the MiB
    that the swap saves against fp16 weights, None where nothing is saved or the base is not the reference. estimated:
    not scored, but from the law of the measurement.
    """

    choice: str
    bits: float
    size_bytes: int
    kld_nats: float
    ci95: tuple[float, float] | None
    relative_error: float | None
    law_kld: float | None
    kld_per_mib: float | None
    estimated: bool = False

    @property
    def over_law(self) -> float | None:
        """Measured KL(reference‖mix) over the law's; None where either is not positive."""
        known = self.law_kld is not None and self.law_kld > 0 and self.kld_nats > 0
        return self.kld_nats / self.law_kld if known and self.law_kld is not None else None


class ReportGroup(Unit):
    """A unit with its probes ascending in bits.

    row: its row of the heat map, the role or the part's name. scale, exponent: S in nats/token and p of the law
    S * r^p of its swaps, with the law's value for every measured width in law_klds; None for head and cache.
    """

    row: str
    scale: float | None = None
    exponent: float | None = None
    law_klds: dict[float, float]
    probes: tuple[ReportProbe, ...]


class RoleLaw(Record):
    """KL(reference‖mix) = S * r^p of one role's swaps: exponent p; scale: the median S of its groups in nats/token.

    log_error: root mean square of log(measured KL / law) over its probes. mix_exponent: p of the law over whole mixes.
    """

    role: str
    groups: int
    exponent: float
    scale: float
    log_error: float
    mix_exponent: float | None


class WholeMix(Record):
    """A mix that was scored whole beside the sum of its parts, KL(reference‖mix) in nats/token.

    source: "uniform" for a base quant, "search" for a standing of the recipe's search. sum_of_parts: of the swaps of
    its parts. by_gamma: (sum of part^(1/gamma))^gamma of the swaps; by_law: the same of the values that the law over
    whole mixes gives for the parts. parts_by_law: parts without a probe, taken from the law of the swaps.
    """

    name: str
    source: str
    measured_kld: float
    measured_kld_se: float | None
    sum_of_parts: float
    by_gamma: float | None
    by_law: float | None
    parts_by_law: int


class Report(Record):
    """All that the page shows.

    widths: choices of the groups, ascending in bits. gamma: exponent from error energy to KL(reference‖mix), None where
    it is unknown. wider: the head and the halves of the cache. notes: gaps, with the reasons.
    """

    measurement: str
    architecture: str
    level: int
    base: str
    base_bpw: float
    codebook: str
    head_choice: str
    head_bits: float
    quants: dict[str, str]
    quant_sha256: dict[str, str]
    data: DataOptions
    provenance: Provenance
    widths: tuple[str, ...]
    groups: tuple[ReportGroup, ...]
    wider: tuple[ReportGroup, ...]
    laws: tuple[RoleLaw, ...]
    gamma: float | None
    mixes: tuple[WholeMix, ...]
    notes: tuple[str, ...]


class ReportResult(Record):
    """The output of `exltune report --json`: files written, and their content."""

    report: str
    report_bytes: int
    pictures: tuple[str, ...]
    content: Report
