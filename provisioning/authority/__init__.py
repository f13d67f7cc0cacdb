"""Founding a consortium and keeping its keys."""
