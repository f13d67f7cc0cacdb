"""The demonstration: a consortium of hospitals on one machine, from nothing to a trained, scored model."""
