"""Outputs, nodes and terms: what every scheme is made of."""
