"""One HTML page about some runs."""

from seqgraph.report.collect import Run, collect
from seqgraph.report.page import write_report

__all__ = ["Run", "collect", "write_report"]
