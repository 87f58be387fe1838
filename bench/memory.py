"""Measures the memory of seqembed for 10 and 1,000 files, and the time to the first embedding.

    python bench/memory.py [--size 8M] [--proteins-per-file 5] [--seqembed PATH]

- Memory: the largest resident set of one run on 10, on 100 and on 1,000 files of equally many proteins each.
- Start: from the start of the process to its end for one short protein, exported folder on disk, in parquet, the
  fastest and the median of 11 runs; and `first_embedding_seconds` of report.json.

Writes bench/results/memory-MACHINE.json and .md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path

import common
from common import esm2

FILES = [10, 100, 1000]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="8M", choices=list(esm2.SIZES))
    parser.add_argument("--files", nargs="+", type=int, default=FILES)
    parser.add_argument("--proteins-per-file", type=int, default=5)
    parser.add_argument("--cap", type=int, default=1022, help="maximum number of residues per protein; longer ones are truncated")
    parser.add_argument("--seqembed", type=Path, default=common.DEFAULT_EXECUTABLE, help="the seqembed executable (a release build)")
    parser.add_argument("--proteins-from", type=Path, help="FASTA file (default: Debian's mmseqs2-examples)")
    parser.add_argument("--work", type=Path, default=common.DEFAULT_WORK, help="weights and outputs")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    arguments = parser.parse_args()
    work, executable, each = arguments.work, arguments.seqembed, arguments.proteins_per_file
    if not executable.exists():
        raise SystemExit(f"{executable} is not there: build it (cargo build --release), or give --seqembed PATH")
    work.mkdir(parents=True, exist_ok=True)
    arguments.results.mkdir(parents=True, exist_ok=True)
    folder, _ = esm2.random_checkpoint(work, arguments.size)
    model = common.exported(work, executable, arguments.size, folder)
    out = work / "memory-out"

    def embed(files: list[Path]) -> common.Child:
        shutil.rmtree(out, ignore_errors=True)
        return common.run_child([executable, "embed", *files, "-m", model, "-o", out, "--quiet"])

    records = esm2.sample_proteins(
        arguments.proteins_from or esm2.find_example_proteins(), max(arguments.files) * each, arguments.cap
    )
    inputs = work / "memory-in"
    shutil.rmtree(inputs, ignore_errors=True)
    inputs.mkdir()
    files = []
    for number in range(max(arguments.files)):
        files.append(inputs / f"sample{number:04}.faa")
        esm2.write_fasta(files[-1], records[number * each : (number + 1) * each])
    memory = []
    for count in arguments.files:
        child = embed(files[:count])
        tokens = sum(len(sequence) + 2 for _, sequence in records[: count * each])
        peak = common.report(out)["totals"]["peak_memory_bytes"] / 2**20
        memory.append({"files": count, "tokens": tokens, "peak_mib": peak, "wall_seconds": child.wall})
        print(f"{count} files, {tokens} tokens: peak {memory[-1]['peak_mib']:.0f} MiB, {child.wall:.1f} s", flush=True)

    one = work / "one.faa"
    esm2.write_fasta(one, [(records[0][0], records[0][1][:50])])
    walls = []
    first = []
    for _ in range(11):
        walls.append(embed([one]).wall)
        first.append(common.report(out)["totals"]["first_embedding_seconds"])
    start = {
        "wall_seconds_fastest": min(walls),
        "wall_seconds_median": statistics.median(walls),
        "first_embedding_seconds_median": statistics.median(first),
    }
    print(start, flush=True)
    shutil.rmtree(out)

    machine = common.machine()
    weights = (model / "weights.bin").stat().st_size / 2**20
    results = {"machine": machine, "size": arguments.size, "weights_mib": weights, "proteins_per_file": each}
    results |= {"memory": memory, "start": start}
    lines = [
        f"# Memory and start-up of seqembed, ESM-2 {arguments.size}",
        "",
        common.describe(machine),
        "",
        f"Weights: {weights:.0f} MiB. {each} proteins a file, cut at {arguments.cap:,} residues. Made by `bench/memory.py`.",
        "",
        "| files | tokens | peak resident MiB | seconds |",
        "|---|---|---|---|",
        *(f"| {m['files']:,} | {m['tokens']:,} | {m['peak_mib']:.0f} | {m['wall_seconds']:.1f} |" for m in memory),
        "",
        f"One protein of 50 residues, process start to process end: {1000 * start['wall_seconds_fastest']:.0f} ms at best, "
        f"{1000 * start['wall_seconds_median']:.0f} ms in the median of 11.",
    ]
    lines.append(f"To the first embedding, by report.json: {1000 * start['first_embedding_seconds_median']:.0f} ms.")
    stem = arguments.results / f"memory-{common.slug(machine)}"
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print(f"written to {stem}.json and .md")


if __name__ == "__main__":
    main()
