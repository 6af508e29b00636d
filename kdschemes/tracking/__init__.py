"""Logs, trackers, progress and plots of a run."""
