"""Benchmarks of Convexlayer against its peers: ``python -m benchmarks --help``, or ``make bench`` for all of them."""
