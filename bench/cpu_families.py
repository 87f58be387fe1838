"""Benchmark of seqembed and transformers on a CPU with the families beside ESM-2: ESM C, ESM-1b, ProtBert, ProtT5
and the Nucleotide Transformer.

    python bench/cpu_families.py [--families esmc esm1b nt ..] [--records 60] [--repeats 2] [--seqembed PATH]

Needs bench/requirements.txt, ONNX Runtime where seqembed finds it, Debian's mmseqs2-examples (or --proteins-from), and for
DNA the genomes of bench/cpu_dna.py.

- The width, heads and feed-forward layers of a published model, with six of its layers, so that it takes minutes; the same
  random weights for both, fp32 (bench/families.py).
- Proteins cut at 1,022 residues, or pieces of 3,000 bases, chosen by a fixed seed; all cores; mean without special tokens.
- transformers runs with SDPA, inference_mode, sorted by length, at the best of several token budgets, tried on a quarter of
  the records.
- A process a run. Loading is counted apart. For seqembed, what is left of the wall time after the load that report.json states
  is charged to it, its start and end included. Tokens include the special ones; padding does not count.
- Runs take turns; the median counts. seqembed's vectors and its count of tokens are compared with the peer's.

Writes bench/results/cpu-families-MACHINE.json and .md.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import common
import compare
import cpu_dna
import families
from common import esm2

CAP, BASES = 1022, 3000


def records_of(name: str, arguments) -> list[tuple[str, str]]:
    """The sequences of a family."""
    if name != "nt":
        return esm2.sample_proteins(arguments.proteins_from or esm2.find_example_proteins(), arguments.records, CAP)
    genomes = cpu_dna.read_genomes(arguments.genomes_from or cpu_dna.find_genomes(arguments.work))
    pieces = cpu_dna.cut(genomes, BASES)
    return [pieces[i] for i in sorted(random.Random(7).sample(range(len(pieces)), arguments.records))]


def bench_family(name: str, arguments) -> dict:
    """Both tools on one family."""
    work, peer = arguments.work, f"transformers-{name}"
    folder, records = families.checkpoint(work, name), records_of(name, arguments)
    encode = families.tokenizer(name).encode
    part = records[::4]
    fasta, sample = work / f"{name}-{len(records)}.fasta", work / f"{name}-{len(records)}-sample.fasta"
    esm2.write_fasta(fasta, records)
    esm2.write_fasta(sample, part)
    count = lambda chosen: sum(len(encode(sequence)) for _, sequence in chosen)  # noqa: E731
    task = compare.Task(
        fasta=fasta,
        tokens=count(records),
        sample=sample,
        sample_tokens=count(part),
        models={peer: folder},
        exported=common.exported(work, arguments.seqembed, f"{name}-{families.LAYERS}", folder) if arguments.seqembed else None,
        tuned=[peer],
        reference=peer,
    )
    print(f"{name}: {len(records)} records, {task.tokens} tokens", flush=True)
    arguments.peers = [peer]
    about = {"family": name, "records": len(records), "tokens": task.tokens, "threads": arguments.threads}
    return about | compare.hold(task, arguments, arguments.repeats)


def markdown(results: dict) -> str:
    """The results as a page."""
    lines = [
        "# Families beside ESM-2 on a CPU: seqembed and transformers",
        "",
        common.describe(results["machine"]),
        "",
        "A FASTA file on disk to mean vectors on disk, fp32, all cores; the same random weights for both, in the shapes of published models",
        f"with {families.LAYERS} of their layers; loading counted apart; medians. Made by `bench/cpu_families.py`, whose head says what is",
        "counted.",
    ]
    for one in results["families"]:
        shape = families.SHAPES[one["family"]]
        lines += [
            "",
            f"## {shape.model}, {families.LAYERS} of {shape.published_layers} layers: {one['records']:,} records, {one['tokens']:,} tokens",
            "",
            *compare.table(one["tools"], f"transformers-{one['family']}", "transformers"),
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(families.SHAPES), choices=list(families.SHAPES))
    parser.add_argument("--records", type=int, default=60, help="number of sequences")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--proteins-from", type=Path, help="FASTA file (default: Debian's mmseqs2-examples)")
    parser.add_argument("--genomes-from", type=Path, help=f"FASTA file (default: that of PyPI's {cpu_dna.PACKAGE})")
    compare.add_arguments(parser, [])
    arguments = parser.parse_args()
    machine = compare.begin(arguments)
    results = {"machine": machine, "families": []}
    for name in arguments.families:
        results["families"].append(bench_family(name, arguments))
        stem = arguments.results / f"cpu-families-{common.slug(machine)}"
        stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
        stem.with_suffix(".md").write_text(markdown(results))
    print(f"\n{markdown(results)}\nwritten to {stem}.json and .md")


if __name__ == "__main__":
    main()
