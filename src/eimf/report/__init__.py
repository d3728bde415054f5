"""One self-contained HTML page about a run or a suite."""

from eimf.report.content import build_report

__all__ = ["build_report"]
