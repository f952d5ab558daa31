"""The report: one self-contained HTML file from the JSON files of a run folder."""

from minnow.recipe.report.build import build_report

__all__ = ["build_report"]
