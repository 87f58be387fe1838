"""Runs seqembed for the GPU benchmark: the whole program, from FASTA files on disk to output files on disk."""

from __future__ import annotations

import glob
import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import kernel_table
import numpy as np


@dataclass
class Seqembed:
    """The executable, and what every run of it is given."""

    executable: Path
    device: str
    options: list[str]
    export_options: list[str]
    work: Path

    def call(self, command: list, timeout: float) -> tuple[float, dict]:
        """Runs it to its end: wall seconds, and the most host memory by kind in bytes."""
        log = self.work / "seqembed.log"
        memory = {"anonymous": 0, "file": 0}
        start = time.perf_counter()
        with log.open("w") as said, subprocess.Popen([str(part) for part in command], stdout=said, stderr=said) as child:
            status = Path(f"/proc/{child.pid}/status")
            while child.poll() is None:
                if time.perf_counter() - start > timeout:
                    child.kill()
                    raise RuntimeError(f"not done after {timeout:.0f} s: {' '.join(map(str, command))}\n{tail(log)}")
                for kind, key in (("anonymous", "RssAnon:"), ("file", "RssFile:")):
                    try:
                        lines = [line for line in status.read_text().splitlines() if line.startswith(key)]
                    except OSError:
                        lines = []
                    if lines:
                        memory[kind] = max(memory[kind], 1024 * int(lines[0].split()[1]))
                time.sleep(0.01)
            wall = time.perf_counter() - start
        if child.returncode != 0:
            raise RuntimeError(f"exit code {child.returncode}: {' '.join(map(str, command))}\n{tail(log)}")
        return wall, memory

    def export(self, name: str) -> tuple[Path, subprocess.Popen | None]:
        """A model's folder with random weights; made in a process of its own unless this executable has made it already."""
        folder = self.work / f"model-{name}"
        built = self.executable.stat()
        stamp, text = self.work / f"model-{name}.txt", f"{built.st_size} {built.st_mtime_ns} {self.export_options}"
        if (folder / "seqembed.json").exists() and stamp.exists() and stamp.read_text() == text:
            return folder, None
        stamp.write_text(text)
        command = [self.executable, "export", "--random", name, "--force", "-o", folder, *self.export_options]
        log = (self.work / f"export-{name}.log").open("w")
        return folder, subprocess.Popen([str(part) for part in command], stdout=log, stderr=log)

    def command(self, manifest: Path, model: Path, out: Path, precision: str) -> list:
        shutil.rmtree(out, ignore_errors=True)
        command = [self.executable, "run", manifest, "-o", out, "-m", model, "--format", "npz", "--quiet"]
        return [*command, "--device", self.device, "--precision", precision, *self.options]

    def run(self, manifest: Path, model: Path, out: Path, precision: str, timeout: float = 240) -> dict:
        """One run, with the figures of its report."""
        wall, memory = self.call(self.command(manifest, model, out, precision), timeout)
        report = json.loads((out / "report.json").read_text())
        totals = report["totals"]
        if totals.get("failed_files"):
            raise RuntimeError(f"{totals['failed_files']} files failed, the first: {[f['error'] for f in report['files'] if f['error']][0]}")
        seconds = totals["seconds"] - totals["load_seconds"] - totals["start_seconds"]
        return {
            "seconds": seconds,
            "tokens_per_second": totals["tokens"] / seconds,
            "load_seconds": totals["load_seconds"],
            "wall_seconds": wall,
            "host_memory_bytes": memory,
            "onnxruntime": report.get("onnxruntime"),
            # All else that the report says but for its files: batches, stages, what was computed again.
            "report": {key: value for key, value in report.items() if key != "files"},
        }

    def profile(self, manifest: Path, model: Path, out: Path, precision: str, options: list[str]) -> list[dict]:
        """Kernels of one run: by Nsight Compute where it is there, or from a trace that the run leaves in its folder."""
        command = self.command(manifest, model, out, precision) + options
        ncu = find_ncu()
        if ncu and not options:
            table = self.work / "ncu.csv"
            # Clocks as they are; one pass, as only the time is asked for.
            wrap = [ncu, "--csv", "--page", "raw", "--metrics", "gpu__time_duration.sum", "--clock-control", "none"]
            self.call([*wrap, "--target-processes", "all", "--log-file", table, "-f", *command], 150)
            return kernel_table.of_nsight(table)
        self.call(command, 150)
        traces = [path for path in out.rglob("*.json") if path.name != "report.json"]
        if not traces:
            raise RuntimeError("no profile: neither is Nsight Compute (ncu) here, nor did the run leave a trace (--profile-options)")
        return kernel_table.of_trace(max(traces, key=lambda path: path.stat().st_size))


def tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]


def find_ncu() -> str | None:
    """Nsight Compute's program."""
    places = glob.glob("/usr/local/cuda*/bin/ncu") + glob.glob("/opt/nvidia/nsight-compute/*/ncu")
    return shutil.which("ncu") or next((place for place in places if os.access(place, os.X_OK)), None)


def compare(out: Path, reference: Path) -> dict:
    """The vectors of a run: how many, whether all are numbers, and the sample's cosines to the right ones."""
    found: dict[str, np.ndarray] = {}
    not_finite = 0
    for path in sorted(out.rglob("*.npz")):
        with np.load(path) as arrays:
            ids, vectors = arrays["ids"], arrays["embeddings"].astype(np.float64)
        not_finite += int((~np.isfinite(vectors).all(1)).sum())
        found.update(zip(map(str, ids), vectors))
    figures = {"vectors": len(found), "vectors_not_finite": not_finite}
    if reference.exists():
        with np.load(reference) as arrays:
            ids, right = [str(name) for name in arrays["ids"]], arrays["embeddings"].astype(np.float64)
        ours = np.stack([found[name] for name in ids])
        cosines = (ours * right).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(right, axis=1)
        worst = float(cosines.min()) if np.isfinite(cosines).all() else float("nan")
        figures |= {"compared": len(ids), "min_cosine": worst, "mean_cosine": float(cosines.mean())}
        figures["max_abs_difference"] = float(np.abs(ours - right).max())
    return figures


def gpu_state() -> dict:
    """What nvidia-smi says of the first GPU; nothing where there is none."""
    keys = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
    try:
        command = ["nvidia-smi", f"--query-gpu={keys}", "--format=csv,noheader,nounits"]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return {}
    return dict(zip(keys.split(","), (value.strip() for value in said.split(","))))
