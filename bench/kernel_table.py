"""Shows where a GPU spends its time: kernels by name, from PyTorch's profiler, Nsight Compute, or a trace in Chrome's format."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path

UNITS = {"ns": 1e-6, "nsecond": 1e-6, "us": 1e-3, "usecond": 1e-3, "ms": 1.0, "msecond": 1.0, "s": 1e3, "second": 1e3}


def table(calls) -> list[dict]:
    """Kernels with their calls, milliseconds and share, the costliest first; `calls` are names and milliseconds."""
    count: dict[str, int] = defaultdict(int)
    total: dict[str, float] = defaultdict(float)
    for name, milliseconds in calls:
        count[name] += 1
        total[name] += milliseconds
    whole = sum(total.values()) or 1.0
    return [
        {"kernel": name, "calls": count[name], "milliseconds": total[name], "share": total[name] / whole}
        for name in sorted(total, key=lambda name: -total[name])
    ]


def of_profiler(profile) -> list[dict]:
    """Of torch.profiler."""
    return table((event.name, event.device_time / 1000) for event in profile.events() if event.device_type.name == "CUDA")


def of_nsight(path: Path) -> list[dict]:
    """Of `ncu --csv --page raw --metrics gpu__time_duration.sum`, or of its table with a metric a line."""
    lines = path.read_text(errors="replace").splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        raise RuntimeError(f"ncu wrote no table: {' '.join(lines[-5:])[:500]}")
    calls, unit = [], "ns"
    for row in csv.DictReader(lines[start:]):
        if "Metric Value" in row:
            value, unit = row["Metric Value"], row["Metric Unit"]
        else:
            value = row.get("gpu__time_duration.sum", "")
            # The line below the names holds the units.
            if not row.get("ID"):
                unit = value
                continue
        if value:
            calls.append((row["Kernel Name"], float(value.replace(",", "")) * UNITS[unit]))
    return table(calls)


def of_trace(path: Path) -> list[dict]:
    """Of a trace of events with `cat`, `name` and `dur` in microseconds: ONNX Runtime's or CUPTI's."""
    events = json.loads(path.read_text())
    events = events.get("traceEvents", []) if isinstance(events, dict) else events
    kernels = [event for event in events if isinstance(event, dict) and str(event.get("cat", "")).lower() in ("kernel", "gpu_memcpy")]
    if kernels:
        return table((event["name"], event.get("dur", 0) / 1000) for event in kernels)
    # Without kernels, the operators.
    nodes = [event for event in events if isinstance(event, dict) and str(event.get("name", "")).endswith("_kernel_time")]
    return table(((event.get("args") or {}).get("op_name", event["name"]), event.get("dur", 0) / 1000) for event in nodes)


def page(kernels: list[dict], most: int = 14) -> list[str]:
    """Lines of Markdown."""
    lines = ["| share | calls | ms | kernel |", "|---:|---:|---:|---|"]
    for kernel in kernels[:most]:
        name = " ".join(kernel["kernel"].replace("|", "/").split())
        name = name if len(name) <= 110 else name[:107] + "..."
        lines.append(f"| {100 * kernel['share']:.1f} % | {kernel['calls']} | {kernel['milliseconds']:.2f} | `{name}` |")
    return lines
