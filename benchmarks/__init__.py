"""Convexlayer and its peers side by side: ``python -m benchmarks --help``, or ``make bench`` for everything."""
