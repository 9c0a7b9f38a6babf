"""asv's benchmark_dir: the operations of the registry as asv benchmarks.

asv imports this package by its last path component, so it must not be called `asv`.
"""
