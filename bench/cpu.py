"""Benchmark of seqembed and other tools on a CPU: tokens per second, from a FASTA file on disk to vectors on disk.

    python bench/cpu.py [--sizes 8M 150M] [--proteins 8M=2000 150M=100] [--repeats 8M=3 150M=2] [--seqembed PATH]

Needs bench/requirements.txt, ONNX Runtime where seqembed finds it, and Debian's mmseqs2-examples (or --proteins-from).

- The same random weights in the real shape for all, as a hub folder and as fair-esm's `.pt`; the same proteins, chosen
  by a fixed seed and cut at 1,022 residues; all cores; mean over residues.
- Each run is a separate process. Loading (interpreter, imports, weights) is not counted. For seqembed, everything except the load time in
  report.json is counted, including the start and end of the process.
- Tokens are residues and the two special tokens; padding is not counted.
- transformers and fair-esm run at the best of several token budgets, tried on a tenth of the proteins (a quarter of
  fewer than 200).
- Runs of the tools take turns, and the median counts. A tool whose runs took more than --patience seconds in total gets no more
  turns. The vectors of every tool are compared with those of transformers.

Writes bench/results/cpu-MACHINE.json and .md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import common
import compare
from common import esm2

CAP = 1022
# A protein set of 2,000 takes PyTorch hours at 150M on a few cores: the default there is a subset.
PROTEINS = {"8M": 2000, "35M": 500, "150M": 100, "650M": 20}
REPEATS = {"8M": 3, "35M": 2, "150M": 2, "650M": 1}


def bench_size(size: str, arguments, count: int, repeats: int) -> dict:
    """All tools on one size."""
    work = arguments.work
    folder, pt = esm2.random_checkpoint(work, size)
    proteins = esm2.sample_proteins(arguments.proteins_from or esm2.find_example_proteins(), count, CAP)
    fasta, sample = work / f"proteins-{count}.faa", work / f"proteins-{count}-sample.faa"
    esm2.write_fasta(fasta, proteins)
    esm2.write_fasta(sample, proteins[:: 10 if count >= 200 else 4])
    tokens = sum(len(sequence) + 2 for _, sequence in proteins)
    print(f"{size}: {count} proteins, {tokens} tokens", flush=True)

    task = compare.Task(
        fasta=fasta,
        tokens=tokens,
        sample=sample,
        sample_tokens=sum(len(sequence) + 2 for _, sequence in esm2.read_fasta(sample)),
        models={"transformers": folder, "fair-esm": pt, "esm-cpp": folder},
        exported=common.exported(work, arguments.seqembed, size, folder) if arguments.seqembed else None,
        tuned=["transformers", "fair-esm"],
        reference="transformers",
    )
    about = {"size": size, "proteins": count, "tokens": tokens, "cut_at": CAP, "threads": arguments.threads}
    return about | compare.hold(task, arguments, repeats)


def markdown(results: dict) -> str:
    """The results as a page."""
    lines = [
        "# ESM-2 on a CPU: seqembed beside its peers",
        "",
        common.describe(results["machine"]),
        "",
        "A FASTA file on disk to mean vectors on disk, fp32, all cores; the same random weights in the real shapes for all; proteins of",
        f"mmseqs2-examples chosen by a fixed seed, cut at {CAP:,} residues; loading counted apart; medians. Made by `bench/cpu.py`,",
        "whose head says what is counted.",
    ]
    for one in results["sizes"]:
        lines += ["", f"## {one['size']}: {one['proteins']:,} proteins, {one['tokens']:,} tokens", ""]
        if one["proteins"] < 2000:
            lines += [f"A subset of {one['proteins']:,} proteins (of the 2,000 asked for), so that every peer ends in bounded time.", ""]
        lines += compare.table(one["tools"], "transformers", "the faster of transformers and fair-esm")
    return "\n".join(lines) + "\n"


def pairs(text: list[str], defaults: dict[str, int]) -> dict[str, int]:
    """SIZE=N options over the defaults."""
    return {**defaults, **{size: int(number) for size, number in (item.split("=") for item in text)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["8M", "150M"], choices=list(esm2.SIZES))
    parser.add_argument("--proteins", nargs="+", default=[], metavar="SIZE=N", help=f"default {PROTEINS}")
    parser.add_argument("--repeats", nargs="+", default=[], metavar="SIZE=N", help=f"default {REPEATS}")
    parser.add_argument("--proteins-from", type=Path, help="FASTA file (default: Debian's mmseqs2-examples)")
    compare.add_arguments(parser, ["transformers", "fair-esm", "esm-cpp"])
    arguments = parser.parse_args()
    machine = compare.begin(arguments)
    counts, repeats = pairs(arguments.proteins, PROTEINS), pairs(arguments.repeats, REPEATS)
    results = {"machine": machine, "sizes": []}
    for size in arguments.sizes:
        results["sizes"].append(bench_size(size, arguments, counts[size], repeats[size]))
        stem = arguments.results / f"cpu-{common.slug(machine)}"
        stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
        stem.with_suffix(".md").write_text(markdown(results))
    print(f"\n{markdown(results)}\nwritten to {stem}.json and .md")


if __name__ == "__main__":
    main()
