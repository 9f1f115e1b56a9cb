"""Describes the machine and the packages of a measurement, without names of hosts or people."""

from __future__ import annotations

import os
import platform
import re
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "flax", "torch", "transformers", "onnxruntime", "openvino", "keras", "keras-hub")


def threads() -> int:
    """Return how many threads this process may run at once; every peer is told to use as many."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(device: Any) -> dict[str, Any]:
    """Return processor, cores, memory and accelerator of this machine. `device` is jax's."""
    machine = {
        "processor": _processor(),
        "threads": threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
    }
    return machine if device.platform == "cpu" else machine | {"device": device.device_kind}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the peers that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def others_s() -> float:
    """Return the processor time of all other processes since the machine started, in seconds; 0 outside Linux."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, *rest = (int(ticks) for ticks in stat.read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK") - time.process_time()


def peak_memory_gib() -> float:
    """Return the peak memory of this process, in GiB; getrusage would include the size of the parent process."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**20


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    fields = (
        dict(re.findall(r"^(.+?)\s*: (.*)$", cpuinfo.read_text().split("\n\n")[0], re.M)) if cpuinfo.exists() else {}
    )
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    bfloat16 = " with bfloat16 instructions" if "avx512_bf16" in fields.get("flags", "") else ""
    return f"{fields['model name']}, family {fields.get('cpu family')}, model {fields.get('model')}{bfloat16}"
