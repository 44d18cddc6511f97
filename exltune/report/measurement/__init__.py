"""`exltune report`: a measurement as a page that one can look at."""

from exltune.report.measurement.write import report

__all__ = ["report"]
