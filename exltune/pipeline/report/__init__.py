"""`exltune report`: a measurement as a page that one can look at."""

from exltune.pipeline.report.write import report

__all__ = ["report"]
