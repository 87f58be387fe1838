"""Benchmark of seqembed and PyTorch on a CPU with DNABERT-2: tokens per second, from a FASTA file on disk to vectors on disk.

    python bench/cpu_dna.py [--pieces 600] [--repeats 2] [--long-check] [--seqembed PATH]

Needs bench/requirements.txt and ONNX Runtime where seqembed finds it. The Lassa virus genomes are those in PyPI's clasv 1.0.6,
which pip brings if it is not installed (it can't stand in requirements.txt: it needs an older numpy), or --genomes-from.

- DNABERT-2's true shape (12 layers of 768, 12 heads, feed-forward 3,072, vocabulary 4,096), random weights, the same for
  both; a BPE tokenizer trained on these genomes, with DNABERT-2's special ids.
- Genomes cut into pieces of 500 bases, of which a fixed seed chooses --pieces; all cores; mean without special tokens.
- The peer is DNABERT-2 in PyTorch written as transformers writes its models (bench/dnabert2.py): SDPA with an additive ALiBi
  bias, inference_mode, the `tokenizers` library, sorted by length, at the best of several token budgets, tried on a
  tenth of the pieces.
- A process a run. Loading is counted apart. For seqembed, what is left of the wall time after the load that report.json
  states is charged to it, its start and end included. Tokens include the special ones; padding does not count.
- Runs take turns; the median counts. seqembed's vectors and its count of tokens are compared with the peer's.

--long-check instead: one sequence of each length (genomes one after the other) in whole, a process each: memory and speed.

Writes bench/results/cpu-dna-MACHINE.json and .md, or dna-long-MACHINE.json and .md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import common
import compare
from common import esm2

LAYERS, HIDDEN, HEADS, INNER, VOCABULARY = 12, 768, 12, 3072, 4096
BASES = 500
LENGTHS = [500, 1000, 2000, 5000, 10_000, 20_000, 50_000]
PACKAGE, GENOMES = "clasv==1.0.6", "CLASV/raw_data/All_LASV_06_07_24.fasta"


def find_genomes(work: Path) -> Path:
    """The genomes: of the installed package, or of one that pip brings."""
    spec = importlib.util.find_spec("CLASV")
    if spec and spec.origin and (path := Path(spec.origin).parents[1] / GENOMES).exists():
        return path
    path = work / GENOMES
    if not path.exists():
        # An environment may have been made without pip.
        has_pip = importlib.util.find_spec("pip") is not None
        python = sys.executable if has_pip else os.environ.get("PYTHON", "python3")
        command = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--ignore-requires-python"]
        try:
            subprocess.run([*command, "--dest", work, PACKAGE], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"cannot get {PACKAGE} ({error}): give the genomes with --genomes-from FILE") from error
        with zipfile.ZipFile(next(work.glob("clasv-*.whl"))) as wheel:
            wheel.extract(GENOMES, work)
    return path


def read_genomes(path: Path) -> list[tuple[str, str]]:
    """Ids and sequences, in upper case."""
    return [(header.split()[0], sequence.upper()) for header, sequence in esm2.read_fasta(path)]


def cut(genomes: list[tuple[str, str]], bases: int = BASES) -> list[tuple[str, str]]:
    """Pieces of so many bases; a genome's last one may be shorter, but is no scrap."""
    return [
        (f"{name}/{at + 1}", sequence[at : at + bases])
        for name, sequence in genomes
        for at in range(0, len(sequence), bases)
        if len(sequence) - at >= bases // 10
    ]


def random_checkpoint(work: Path, pieces: list[tuple[str, str]]) -> Path:
    """Random weights in the real shape and a tokenizer as a hub folder, made once."""
    import dna

    folder = work / "dnabert2-random"
    if not (folder / "model.safetensors").exists():
        print(f"making random weights and a tokenizer in {work}", flush=True)
        common.run_child(["rm", "-rf", folder])
        # The trainer's time grows with the square of a sequence's length.
        tokenizer = dna.train_tokenizer([s for _, s in pieces if set(s) <= set("ACGT")], VOCABULARY)
        config = dna.dnabert2_config(LAYERS, HIDDEN, HEADS, INNER, VOCABULARY)
        dna.write_folder(folder, config, dna.random_dnabert2(config, 1), tokenizer, "model.safetensors")
    return folder


def counter(folder: Path):
    """Counts a sequence's tokens, special ones too."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda sequences: sum(len(encoded.ids) for encoded in tokenizer.encode_batch(list(sequences)))


def beside_peer(arguments, machine: dict) -> tuple[str, dict, list[str]]:
    """The comparison: name, figures, and the page."""
    work, count = arguments.work, arguments.pieces
    pieces = cut(read_genomes(arguments.genomes_from or find_genomes(work)))
    folder = random_checkpoint(work, pieces)
    chosen = [pieces[i] for i in sorted(random.Random(7).sample(range(len(pieces)), count))]
    part = chosen[:: 10 if count >= 200 else 4]
    fasta, sample = work / f"pieces-{count}.fna", work / f"pieces-{count}-sample.fna"
    esm2.write_fasta(fasta, chosen)
    esm2.write_fasta(sample, part)
    tokens_of = counter(folder)
    tokens, bases = tokens_of(s for _, s in chosen), sum(len(s) for _, s in chosen)
    print(f"{count} pieces, {bases} bases, {tokens} tokens", flush=True)
    task = compare.Task(
        fasta=fasta,
        tokens=tokens,
        sample=sample,
        sample_tokens=tokens_of(s for _, s in part),
        models={"dnabert2": folder},
        exported=common.exported(work, arguments.seqembed, "dnabert2", folder) if arguments.seqembed else None,
        tuned=["dnabert2"],
        reference="dnabert2",
    )
    figures = {"machine": machine, "pieces": count, "bases": bases, "tokens": tokens, "threads": arguments.threads}
    figures |= compare.hold(task, arguments, arguments.repeats)
    page = [
        "# DNABERT-2 on a CPU: seqembed beside PyTorch",
        "",
        common.describe(machine),
        "",
        f"{count:,} of {len(pieces):,} pieces of Lassa virus genomes ({BASES} bases each, chosen by a fixed seed): {bases:,} bases, "
        f"{tokens:,} tokens.",
        "A FASTA file on disk to mean vectors on disk, fp32, all cores; the same random weights in the real shape for both; loading",
        "counted apart; medians. `dnabert2` is DNABERT-2 in PyTorch as transformers would run it. Made by `bench/cpu_dna.py`, whose",
        "head says what is counted.",
        "",
        *compare.table(figures["tools"], "dnabert2", "dnabert2 in PyTorch"),
    ]
    return "cpu-dna", figures, page


def by_length(arguments, machine: dict) -> tuple[str, dict, list[str]]:
    """Memory and speed by the length of one sequence: name, figures, and the page."""
    work = arguments.work
    genomes = read_genomes(arguments.genomes_from or find_genomes(work))
    folder = random_checkpoint(work, cut(genomes))
    model = common.exported(work, arguments.seqembed, "dnabert2", folder)
    tokens_of = counter(folder)
    whole = "".join(sequence for _, sequence in genomes if set(sequence) <= set("ACGT"))
    rows = []
    for bases in arguments.lengths:
        sequence = whole[:bases]
        assert len(sequence) == bases, f"the genomes have {len(sequence)} bases together"
        fasta = work / "long.fna"
        esm2.write_fasta(fasta, [(f"first-{bases}", sequence)])
        options = ["--max-length", str(bases), *arguments.seqembed_options]
        runs = [
            compare.seqembed_run(arguments.seqembed, model, fasta, work / "out/long", arguments.threads, options)
            for _ in range(arguments.repeats)
        ]
        tokens = tokens_of([sequence])
        run = min(runs, key=lambda run: run["stages"]["computing"])
        assert run["tokens_in_report"] == tokens, "the report counts other tokens than were given"
        # One sequence is one batch, which one worker computes with all threads.
        seconds = run["stages"]["computing"]
        row = {"bases": bases, "tokens": tokens, "peak_mib": max(r["peak_mib"] for r in runs), "seconds": seconds}
        rows.append(row | {"tokens_per_second": tokens / seconds})
        print(f"  {bases:,} bases: {row['peak_mib']:,.0f} MiB, {tokens / seconds:,.0f} tokens/s", flush=True)
    page = [
        "# DNABERT-2 on a CPU by the length of a sequence",
        "",
        common.describe(machine),
        "",
        f"One sequence (Lassa virus genomes one after the other), not cut, {arguments.threads} threads, fp32, random weights of the true "
        f"shape ({(model / 'weights.bin').stat().st_size / 2**20:,.0f} MiB); the model's own time, of",
        f"{arguments.repeats} run{'s' if arguments.repeats > 1 else ''} the fastest. Made by `bench/cpu_dna.py --long-check`.",
        "",
        "| bases | tokens | peak resident MiB | seconds | tokens/s |",
        "|---|---|---|---|---|",
        *(
            f"| {r['bases']:,} | {r['tokens']:,} | {r['peak_mib']:,.0f} | {r['seconds']:.2f} | {r['tokens_per_second']:,.0f} |"
            for r in rows
        ),
    ]
    return "dna-long", {"machine": machine, "threads": arguments.threads, "lengths": rows}, page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pieces", type=int, default=600, help="number of pieces of 500 bases")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--genomes-from", type=Path, help=f"FASTA file (default: that of PyPI's {PACKAGE})")
    parser.add_argument("--long-check", action="store_true", help="measure seqembed's memory and speed by sequence length")
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS, help="sequence lengths for --long-check, in bases")
    compare.add_arguments(parser, ["dnabert2"])
    arguments = parser.parse_args()
    if arguments.long_check and not arguments.seqembed:
        parser.error("--long-check is of seqembed alone")
    machine = compare.begin(arguments)
    name, figures, page = (by_length if arguments.long_check else beside_peer)(arguments, machine)
    stem = arguments.results / f"{name}-{common.slug(machine)}"
    stem.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    stem.with_suffix(".md").write_text("\n".join(page) + "\n")
    print("\n" + "\n".join(page) + f"\nwritten to {stem}.json and .md")


if __name__ == "__main__":
    main()
