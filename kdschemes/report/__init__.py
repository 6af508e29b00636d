"""Reports: a study, or any runs, as one page of markdown with a picture."""

from kdschemes.report.write import report

__all__ = ["report"]
