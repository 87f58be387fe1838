"""Shared code of the benchmarks: weights on disk, measuring child processes, and the description of the machine."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "onnx/reference"))
import esm2  # noqa: E402

RESULTS = ROOT / "bench/results"
DEFAULT_WORK = ROOT / ".seqembed/bench"  # ignored by git
DEFAULT_EXECUTABLE = ROOT / "target/release/seqembed"


@dataclass
class Child:
    """A finished child process."""

    wall: float
    """Seconds from its start to its end."""
    stdout: str


def run_child(command: list, threads: int | None = None) -> Child:
    """Runs a program to its end; a failure ends the benchmark with what the program said."""
    environment = dict(os.environ)
    if threads:
        environment.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)))
    start = time.perf_counter()
    with subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True, env=environment) as child:
        stdout = child.stdout.read()
        child.wait()
    wall = time.perf_counter() - start
    if child.returncode != 0:
        raise SystemExit(f"exit code {child.returncode}: {' '.join(map(str, command))}\n{stdout}")
    return Child(wall, stdout)


def exported(work: Path, executable: Path, size: str, folder: Path) -> Path:
    """The checkpoint as seqembed's exported folder, made once for each build of the executable."""
    model = work / f"seqembed-{size}"
    if not model.exists() or model.stat().st_mtime < executable.stat().st_mtime:
        run_child(["rm", "-rf", model])
        run_child([executable, "export", folder, "-o", model])
    return model


def read_vectors(path: Path) -> np.ndarray:
    """[records, hidden] of an npz file, seqembed's or a peer's."""
    with np.load(path) as arrays:
        return arrays["embeddings"].astype(np.float32)


def seqembed_output(folder: Path) -> np.ndarray:
    """The vectors of a run that embedded one file."""
    files = sorted(folder.rglob("*.npz"))
    assert len(files) == 1, files
    return read_vectors(files[0])


def report(folder: Path) -> dict:
    """report.json of a seqembed run."""
    return json.loads((folder / "report.json").read_text())


def agreement(vectors: np.ndarray, reference: np.ndarray) -> dict:
    """Largest absolute difference, smallest cosine, and the reference's root mean square."""
    assert vectors.shape == reference.shape, (vectors.shape, reference.shape)
    a, b = vectors.astype(np.float64), reference.astype(np.float64)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return {
        "max_abs_difference": float(np.abs(a - b).max()),
        "min_cosine": float(cosine.min()),
        "reference_rms": float(np.sqrt((b**2).mean())),
    }


def machine() -> dict:
    """CPU, cores, memory, system, the versions of what is measured, and how busy the machine is before it is."""
    cpu = platform.processor() or platform.machine()
    memory = None
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text()
        cpu = re.search(r"model name\s*:\s*(.*)", text).group(1).strip() if "model name" in text else cpu
        memory = int(re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text()).group(1)) // 2**20
        flags = sorted(set(re.findall(r"\b(avx2|avx512f|avx512_vnni|avx512_bf16|amx_\w+)\b", text)))
    else:
        flags = []
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in ("torch", "transformers", "fair-esm", "esm-cpp", "tokenizers", "triton", "onnxruntime", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": flags,
        "memory_gib": memory,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "load_average": os.getloadavg()[0],
        "date": datetime.date.today().isoformat(),
    }


def slug(description: dict) -> str:
    """A file name for this machine: its CPU and cores."""
    name = re.sub(r"\b(cpu|processor|with|\d+-core|@.*|\(r\)|\(tm\))", " ", description["cpu"].lower())
    return re.sub(r"[^a-z0-9]+", "-", f"{name} {description['cores']} cores").strip("-")


def gpu_slug(description: dict) -> str:
    """A file name for this machine's GPU, or for the machine where there is none."""
    name = description.get("gpu", {}).get("name")
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") if name else slug(description)


def describe(description: dict) -> str:
    """One paragraph on the machine."""
    versions = ", ".join(f"{name} {number}" for name, number in description["versions"].items())
    return (
        f"{description['cpu']}, {description['cores']} cores ({', '.join(description['instructions'])}), "
        f"{description['memory_gib']} GiB, {description['system']}; Python {description['python']}, {versions}; {description['date']}. "
        f"Load average when it began: {description['load_average']:.1f}."
    )
