"""Signed releases: staged, tried, committed or rolled back."""
