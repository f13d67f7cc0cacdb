"""Hardware keys behind one interface, and the session keys that they certify."""
