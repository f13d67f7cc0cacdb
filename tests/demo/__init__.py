"""The demonstration: a consortium of hospitals on one machine, from nothing to a trained, scored model."""

import os
import time

BEGIN_S = time.monotonic()
"""When the command was given; loading the libraries counts."""

# Flower and the TPM library read these when they are imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("TSS2_LOG", "all+none")
