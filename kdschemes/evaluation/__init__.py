"""Evaluation of trained networks: metrics, cost, latency, export."""
