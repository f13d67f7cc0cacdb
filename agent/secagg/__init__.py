"""Secure aggregation as a pure protocol core: messages, time and randomness in, messages out."""
