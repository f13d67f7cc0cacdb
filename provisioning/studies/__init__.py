"""A study from its first draft to its signed result, for whoever asks it."""
