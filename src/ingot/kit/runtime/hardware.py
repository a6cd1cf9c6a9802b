"""What a machine is, as far as it says so: what measured times have to be read with."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from ingot.core import gpu, procfs


def hardware(root: Path = Path("/")) -> dict[str, object]:
    """Processor, cores (of the machine, and those this process may use), governor, memory, load, GPUs.

    What is not known is left out. ``root`` is where ``proc`` and ``sys`` are.
    """
    found: dict[str, object] = {"system": f"{platform.system()} {platform.machine()}"}
    found |= {"cores": os.cpu_count(), "usable_cores": procfs.processors()}
    memory = procfs.available(root)[1]
    gpus = gpu.Nvml.open()
    more = {
        "processor": _processor(root),
        "governor": _text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "memory_bytes": memory or _bytes(_sysctl("hw.memsize")),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpus": [found.name for found in gpus.gpus()] if gpus is not None else None,
    }
    return found | {name: value for name, value in more.items() if value is not None and value != []}


def _processor(root: Path) -> str | None:
    text = _text(root / "proc/cpuinfo")
    named = re.search(r"^(?:model name|Hardware|Model)\s*:\s*(.+)$", text or "", re.MULTILINE)
    return named[1].strip() if named else _sysctl("machdep.cpu.brand_string")


def _sysctl(name: str) -> str | None:
    if sys.platform != "darwin":
        return None
    done = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def _bytes(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None
