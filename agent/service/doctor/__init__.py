"""`seh-agent doctor`: looks at all that the agent needs, one file a check, whether the agent runs or not."""
