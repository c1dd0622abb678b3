"""Benchmarks: ours beside its peers in one run, ratios first. ``python -m bench``."""
