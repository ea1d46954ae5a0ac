"""Measurements of fastlog beside the embedded stores a Python program could use instead; ``python -m benchmarks``."""
