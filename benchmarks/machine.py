"""The machine that a figure was measured on, in a line."""
import os
import platform
import re
from pathlib import Path

import torch

from tumorseg.model.inference import best_device, best_precision


def machine() -> str:
    "Processor, cores, threads, GPU, precision and torch."
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    precision = best_precision(best_device()).replace("no", "float32")
    processor = names[0] if names else platform.processor()
    return (f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {gpu}, {precision}, "
            f"torch {torch.__version__}")
