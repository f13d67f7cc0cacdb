"""The long-running process; the only place where parts are wired."""
