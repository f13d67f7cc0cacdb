"""Benchmarks: every figure that the project promises, measured beside its target and, where there is one, a peer."""
