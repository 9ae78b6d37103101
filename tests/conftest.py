"""Every test runs without the network, on one thread, and knows no workspace but its own."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
for name in ("RPT_HOME", "RPT_SOURCES", "PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
    os.environ.pop(name, None)


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    """With RPT_TEST_RECORD=<file>, write what ran and how it ended as JSON (``make test-full``)."""
    target = os.environ.get("RPT_TEST_RECORD")
    if not target:
        return
    import json
    import platform
    from datetime import UTC, datetime
    from pathlib import Path

    from rpt_core.store.stage import package_versions

    outcomes = {}
    for kind in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(kind, []):
            reason = str(report.longrepr[2]) if kind == "skipped" and isinstance(report.longrepr, tuple) else ""
            outcomes[report.nodeid] = {"outcome": kind, "seconds": round(getattr(report, "duration", 0.0), 2), "reason": reason}
    counts = {kind: sum(1 for o in outcomes.values() if o["outcome"] == kind) for kind in ("passed", "failed", "error", "skipped")}
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    record = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine, "versions": package_versions(),
              "counts": counts, "tests": outcomes}
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
