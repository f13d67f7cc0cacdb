"""Stock Flower SecAgg+, as its own documentation sets it up."""
