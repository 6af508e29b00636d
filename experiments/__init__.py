"""Recipes, benchmarks and comparisons: they depend on the package, never the reverse."""
