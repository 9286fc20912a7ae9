"""The machine that a figure was measured on, in a line."""
import os
import platform
import re
from pathlib import Path

import torch


def machine() -> str:
    "Processor, cores, GPU and torch."
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {gpu}, torch {torch.__version__}"
