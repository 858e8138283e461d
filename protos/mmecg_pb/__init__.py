"""Placeholder docstring: say what this package is."""
