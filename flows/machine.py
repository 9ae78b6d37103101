"""A short reference measurement of this machine, so that a slow run explains itself: `python -m flows.machine` prints JSON."""

import json
import os
import platform
import time


def matmul_gflops(threads: int, seconds: float = 0.5, size: int = 1024) -> float:
    """Rate of float32 matrix products of ``size``² with so many threads, GFLOP/s (best of the calls within ``seconds``)."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.rand(size, size), torch.rand(size, size)
    torch.mm(a, b)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best / 1e9


def measure() -> dict[str, object]:
    """{cpu, cores, load, gflops_1_thread, gflops_2_threads, gpu}"""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": cpu_name(), "cores": cores, "load": round(os.getloadavg()[0], 2),
            "gflops_1_thread": round(matmul_gflops(1), 1), "gflops_2_threads": round(matmul_gflops(2), 1),
            "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""}


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    print(json.dumps(measure()))
