"""Checks that memory and open files are bounded for many files and many short sequences, with the smallest model.

Runs `seqembed run` on manifests of growing size, watches the process (resident memory, open files, saved rows on disk) and
then runs each again with `--resume`, which has to find every file finished. Then, with one file of many sequences, what
saving costs: the same run with rows saved every five seconds and never.

Writes bench/results/scale-MACHINE.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import threading
import time
from pathlib import Path

import common

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
CHECKPOINT = common.ROOT / "tests/fixtures/esm2/checkpoints/hub-safetensors"


class Watch(threading.Thread):
    """The most that a process held at a time, looked at every 50 ms."""

    def __init__(self, pid: int, out: Path) -> None:
        super().__init__(daemon=True)
        self.pid, self.out = pid, out
        self.files = self.memory = self.saved = 0
        self.memory_over_time: list[float] = []

    def run(self) -> None:
        try:
            while True:
                self.files = max(self.files, len(os.listdir(f"/proc/{self.pid}/fd")))
                resident = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                self.memory = max(self.memory, resident)
                self.memory_over_time.append(resident)
                saved = sum(shard.stat().st_size for shard in self.out.glob(".seqembed/rows-*"))
                self.saved = max(self.saved, saved)
                time.sleep(0.05)
        except (OSError, IndexError):
            pass  # It has ended.

    def quarters(self) -> list[float]:
        """The most resident MiB in each quarter of the run."""
        count = len(self.memory_over_time)
        parts = [self.memory_over_time[count * q // 4 : count * (q + 1) // 4] for q in range(4)]
        return [max(part, default=0) / 2**20 for part in parts]


def run(command: list, out: Path) -> dict:
    start = time.perf_counter()
    child = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True)
    watch = Watch(child.pid, out)
    watch.start()
    said = child.stderr.read()
    code = child.wait()
    watch.join()
    if code != 0:
        raise SystemExit(f"exit code {code}: {said[-2000:]}")
    totals = common.report(out)["totals"]
    return {
        "seconds": time.perf_counter() - start,
        "open_files": watch.files,
        "peak_mib": (totals["peak_memory_bytes"] or watch.memory) / 2**20,
        "peak_mib_by_quarter": watch.quarters(),
        "saved_mib": watch.saved / 2**20,
        "records": totals["records"],
        "tokens": totals["tokens"],
        "kept_files": totals["kept_files"],
    }


def write_inputs(folder: Path, files: int, each: int, chance: random.Random) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lines = ["sample,fasta"]
    for number in range(files):
        peptides = ("".join(chance.choices(LETTERS, k=chance.randint(7, 15))) for _ in range(each))
        text = "".join(f">f{number}_{at}\n{peptide}\n" for at, peptide in enumerate(peptides))
        (folder / f"f{number}.faa").write_text(text)
        lines.append(f"f{number},f{number}.faa")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="+", type=int, default=[100, 1000, 10_000])
    parser.add_argument("--sequences", type=int, default=200, help="number of sequences per file")
    parser.add_argument("--one-file", type=int, default=200_000, help="number of sequences in the file that measures the cost of saving")
    parser.add_argument("--seqembed", type=Path, default=common.DEFAULT_EXECUTABLE, help="the seqembed executable (a release build)")
    parser.add_argument("--model", type=Path, help="a checkpoint or a model (default: the tests' ESM-2, 3 layers of 48)")
    parser.add_argument("--work", type=Path, default=common.DEFAULT_WORK, help="inputs and outputs")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    arguments = parser.parse_args()
    work = arguments.work / "scale"
    work.mkdir(parents=True, exist_ok=True)
    arguments.results.mkdir(parents=True, exist_ok=True)
    machine = common.machine()
    model = work / "model"
    common.run_child([arguments.seqembed, "export", arguments.model or CHECKPOINT, "-o", model, "--force"])
    chance = random.Random(0)
    base = [arguments.seqembed, "run"]
    rows = []
    for files in arguments.files:
        manifest = write_inputs(work / "in", files, arguments.sequences, chance)
        out = work / "out"
        shutil.rmtree(out, ignore_errors=True)
        options = [manifest, "-m", model, "-o", out, "--quiet"]
        first = run([*base, *options], out)
        again = run([*base, *options, "--resume"], out)
        assert again["kept_files"] == files, again
        rows.append({"files": files, "first": first, "again": again})
        print(json.dumps(rows[-1]), flush=True)
    manifest = write_inputs(work / "in", 1, arguments.one_file, chance)
    saving = []
    for turn in range(3):
        for every in (5, 1_000_000):
            shutil.rmtree(out, ignore_errors=True)
            options = [manifest, "-m", model, "-o", out, "--quiet", "--save-every", every]
            saving.append({"every": every} | run([*base, *options], out))
            print(json.dumps(saving[-1]), flush=True)
    shutil.rmtree(work)

    results = {"machine": machine, "sequences": arguments.sequences, "manifests": rows, "saving": saving}
    lines = [
        "# Many files of short sequences",
        "",
        common.describe(machine),
        "",
        f"Files of {arguments.sequences} peptides of 7 to 15 residues, an ESM-2 of 3 layers of 48. Made by `bench/scale.py`.",
        "",
        "| files | sequences | seconds | peak resident MiB | in each quarter of the run | open files | with --resume, seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        first = row["first"]
        quarters = ", ".join(f"{mib:.0f}" for mib in first["peak_mib_by_quarter"])
        lines.append(
            f"| {row['files']:,} | {first['records']:,} | {first['seconds']:.1f} | {first['peak_mib']:.0f} | {quarters} "
            f"| {first['open_files']} | {row['again']['seconds']:.1f} |"
        )
    best = {every: min(s["seconds"] for s in saving if s["every"] == every) for every in (5, 1_000_000)}
    cost = 100 * (best[5] / best[1_000_000] - 1)
    lines += [
        "",
        f"One file of {arguments.one_file:,} sequences, the fastest of three runs: {best[5]:.1f} s when rows are saved every five "
        f"seconds, {best[1_000_000]:.1f} s when they never are ({cost:+.1f} %).",
    ]
    stem = arguments.results / f"scale-{common.slug(machine)}"
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print(f"written to {stem}.json and .md")


if __name__ == "__main__":
    main()
