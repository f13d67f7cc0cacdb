"""Joining Flower: the wire, the message loop, the rounds."""
