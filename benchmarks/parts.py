"""Parts of the benchmark; a module without imports, because libraries read the number of threads when imported."""

__all__ = ["PARTS"]

PARTS = ("suite", "large", "overhead", "memory", "scaling")
"""Names of the parts; the first two alone are run if problems are selected."""
