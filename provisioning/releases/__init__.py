"""Releases of the software: its maker's own repository, which no consortium can change."""
