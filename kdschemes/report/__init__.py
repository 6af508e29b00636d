"""Reports: a study, or any runs, as an HTML page and the same page in Markdown, with charts."""

from kdschemes.report.write import report

__all__ = ["report"]
