"""Every test runs without the network, on one thread, and knows no workspace but its own."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
for name in ("RPT_HOME", "RPT_SOURCES", "PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
    os.environ.pop(name, None)
