"""Logs, trackers, progress and pictures of a run."""
