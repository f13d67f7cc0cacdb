"""A Flower app that the benchmarks compare with; its inner package is what SuperLink and SuperNodes run."""
