"""Errors, ids, clock, configuration: what every room stands on."""
