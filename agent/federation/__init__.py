"""Flower: the wire, the message loop and the stages of a round."""

import os

# A hospital's box never phones home; Flower reads these when it is imported.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
