"""A whole consortium on loopback, from one command."""
