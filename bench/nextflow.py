#!/usr/bin/env python3
"""Measures the cost of group sizes in the Nextflow pipeline: 200 files of 50 proteins, with one file per task, in groups, and in one task.

    python3 bench/nextflow.py PROTEINS.fasta[.gz]

The local executor, ESM-2 8M with random weights, fp32 on a CPU: target/release/seqembed and the engine of
scripts/nextflow.sh. The proteins' first 60 residues are embedded, so that there is something to see besides the model's work;
no two are alike. Prints a table in Markdown.
"""

import gzip
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES, PROTEINS, RESIDUES = 200, 50, 60
# What a task of one file gets is what a cluster would give it: one core, and as many tasks at a time as there are cores.
GROUPINGS = [("one file a task", 1, 1), ("20 files a task", 20, 1), ("all files in one task", FILES, os.cpu_count())]

# Every seqembed that a task starts adds its CPU time to a file.
WRAPPER = """#!/bin/bash
TIMEFORMAT='%U %S'
exec 3>&2
{{ time '{real}' "$@" 2>&3; }} 2>>'{log}'
"""


def proteins(path):
    """The first residues of each protein, those shorter left out, none twice."""
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else open(path)
    seen, sequence = set(), []
    with opened as lines:
        for line in [*lines, ">"]:
            if not line.startswith(">"):
                sequence.append(line.strip())
                continue
            start = "".join(sequence)[:RESIDUES]
            sequence = []
            if len(start) == RESIDUES and start not in seen:
                seen.add(start)
                yield start


def write_samples(folder, source):
    """The FASTA files and their samplesheet."""
    sequences = proteins(source)
    rows = ["sample,fasta"]
    for file in range(FILES):
        lines = [f">p{file}_{number}\n{next(sequences)}\n" for number in range(PROTEINS)]
        (folder / f"s{file}.faa").write_text("".join(lines))
        rows.append(f"s{file},s{file}.faa")
    (folder / "samples.csv").write_text("\n".join(rows) + "\n")


def run(folder, files, cpus, model):
    """Wall time, CPU time of Nextflow with all tasks, CPU time of seqembed alone, and the merged report."""
    place = folder / f"run-{files}"
    place.mkdir()
    log = place / "cpu.txt"
    command = place / "bin" / "seqembed"
    command.parent.mkdir()
    command.write_text(WRAPPER.format(real=ROOT / "target/release/seqembed", log=log))
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    environment = dict(os.environ, PATH=f"{command.parent}:{os.environ['PATH']}")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(
        [ROOT / "scripts/nextflow.sh", "-q", "run", ROOT / "nextflow", "-profile", "local"]
        + ["--input", folder / "samples.csv", "--model", model, "--group_files", str(files), "--group_tokens", "0"]
        + ["--cpus", str(cpus), "--memory", "1 GB"],
        cwd=place,
        env=environment,
        check=True,
    )
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    own = sum(float(word) for word in log.read_text().split())
    report = json.loads((place / "results/report.json").read_text())
    assert report["totals"]["records"] == FILES * PROTEINS
    return wall, cpu, own, report


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(tempfile.mkdtemp())
    try:
        write_samples(folder, Path(sys.argv[1]))
        model = folder / "model"
        export = ["export", "--random", "esm2_t6_8M_UR50D", "-o", model]
        subprocess.run([ROOT / "target/release/seqembed", *export], check=True, stderr=subprocess.DEVNULL)
        print("| | tasks | loads | loading | wall time | CPU time, Nextflow and all | CPU time, seqembed |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        for name, files, cpus in GROUPINGS:
            load = os.getloadavg()[0]
            wall, cpu, own, report = run(folder, files, cpus, model)
            loading = report["totals"]["load_seconds"]
            tasks, loads = report["tasks"], len(report["loads"])
            print(f"| {name} | {tasks} | {loads} | {loading:.1f} s | {wall:.0f} s | {cpu:.0f} s | {own:.0f} s |", flush=True)
            print(f"{name}: load average {load:.1f} before, {os.getloadavg()[0]:.1f} after", file=sys.stderr)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
