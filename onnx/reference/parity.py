"""Compares seqembed with transformers and fair-esm at the real sizes of ESM-2, in fp32, with random weights: `make parity`.

    python onnx/reference/parity.py [--sizes 8M 35M 150M 650M] [--seqembed target/release/seqembed]

Needs the packages in requirements.txt in this folder, ONNX Runtime where seqembed finds it, Debian's mmseqs2-examples (or --proteins-from),
and for 650M about 9 GB of disk and 8 GB of memory.

The same 200 proteins for every size, chosen by a fixed seed, cut at 1,022 residues. For the larger sizes, where PyTorch would
take an hour on two cores, all but a few are cut shorter; the page says how many, and how short. Both packages run one protein at a time,
without padding; seqembed makes its own batches. Compared are mean vectors over residues (its kernels, and the portable graph) and every
residue's vector.

Writes bench/results/parity-cpu.json and .md, size by size.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import sys
import time
from pathlib import Path

import esm2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
import common  # noqa: E402

COUNT, CAP = 200, 1022
# How many of the 200 keep their length, and how many residues of the others are left.
WHOLE = {"8M": 200, "35M": 20, "150M": 20, "650M": 2}
SHORT = {"8M": CAP, "35M": 100, "150M": 100, "650M": 25}


def proteins(source: Path, whole: int, short: int) -> list[tuple[str, str]]:
    """The 200, all but the first `whole` cut short."""
    chosen = esm2.sample_proteins(source, COUNT, CAP)
    return [(header, sequence if i < whole else sequence[:short]) for i, (header, sequence) in enumerate(chosen)]


def by_package(
    name: str, checkpoint: Path, records: list[tuple[str, str]], last: int, kept: Path, reuse: bool
) -> tuple[list[np.ndarray], float]:
    """Residue vectors of the last layer, a protein at a time, and the seconds it took. They are left in the file `kept`."""
    if reuse and kept.exists() and kept.stat().st_mtime > checkpoint.stat().st_mtime:
        with np.load(kept) as arrays:
            ends = np.cumsum([len(sequence) for _, sequence in records])
            assert len(arrays["vectors"]) == ends[-1], f"{kept} is of other proteins: delete it"
            return np.split(arrays["vectors"], ends[:-1]), float(arrays["seconds"])
    load, run = {
        "transformers": (esm2.load_transformers, esm2.hidden_transformers),
        "fair-esm": (esm2.load_fair_esm, esm2.hidden_fair_esm),
    }[name]
    model = load(checkpoint)
    start = time.perf_counter()
    # Copied, since a view would keep all layers of all proteins in memory.
    vectors = [run(model, [esm2.token_ids(sequence)], [last])[0][0][1:-1].copy() for _, sequence in records]
    seconds = time.perf_counter() - start
    del model
    gc.collect()
    np.savez(kept, vectors=np.concatenate(vectors), seconds=seconds)
    return vectors, seconds


def by_seqembed(executable: Path, model: Path, fasta: Path, out: Path, options: list[str]) -> tuple[np.ndarray, float]:
    """The array that seqembed writes, and the seconds it took."""
    shutil.rmtree(out, ignore_errors=True)
    child = common.run_child([executable, "embed", fasta, "-m", model, "-o", out, "--format", "npz", "--quiet", *options])
    return common.seqembed_output(out), child.wall


def compare(size: str, arguments) -> dict:
    """One size."""
    layers, hidden, heads = esm2.SIZES[size]
    work = arguments.work
    records = proteins(arguments.proteins_from or esm2.find_example_proteins(), WHOLE[size], SHORT[size])
    lengths = [len(sequence) for _, sequence in records]
    fasta = work / f"parity-{size}.faa"
    esm2.write_fasta(fasta, records)
    folder, pt = esm2.random_checkpoint(work, size)
    model = common.exported(work, arguments.seqembed, size, folder)
    print(f"{size}: {COUNT} proteins, {sum(lengths)} residues", flush=True)

    result = {"size": size, "layers": layers, "hidden": hidden, "heads": heads, "proteins": COUNT, "residues": sum(lengths)}
    result |= {"longest": max(lengths), "cut_short": COUNT - WHOLE[size], "short": SHORT[size], "comparisons": []}

    def note(ours: str, theirs: str, what: str, a: np.ndarray, b: np.ndarray) -> None:
        figures = common.agreement(a, b)
        result["comparisons"].append({"what": what, "of": ours, "against": theirs, **figures})
        print(f"  {what}: {ours} against {theirs}: {figures}", flush=True)

    means = lambda vectors: np.stack([v.mean(0, dtype=np.float64) for v in vectors]).astype(np.float32)  # noqa: E731
    seconds = {}
    kept = lambda name: work / f"parity-{size}-{name}.npz"  # noqa: E731
    reference, seconds["transformers"] = by_package(
        "transformers", folder, records, layers, kept("transformers"), arguments.reuse
    )
    fair, seconds["fair-esm"] = by_package("fair-esm", pt, records, layers, kept("fair-esm"), arguments.reuse)
    note("fair-esm", "transformers", "mean", means(fair), means(reference))
    note("fair-esm", "transformers", "per residue", np.concatenate(fair), np.concatenate(reference))
    for label, options in {"seqembed": [], "seqembed, portable graph": ["--kernels", "portable"]}.items():
        ours, seconds[label] = by_seqembed(arguments.seqembed, model, fasta, work / "parity-out", options)
        note(label, "transformers", "mean", ours, means(reference))
        note(label, "fair-esm", "mean", ours, means(fair))
    ours, seconds["seqembed, per residue"] = by_seqembed(
        arguments.seqembed, model, fasta, work / "parity-out", ["--pooling", "none"]
    )
    note("seqembed", "transformers", "per residue", ours, np.concatenate(reference))
    note("seqembed", "fair-esm", "per residue", ours, np.concatenate(fair))
    shutil.rmtree(work / "parity-out")
    return {**result, "seconds": seconds}


def markdown(results: dict) -> str:
    """The results as a page."""
    lines = [
        "# ESM-2 at its true sizes: the same numbers as transformers and fair-esm",
        "",
        common.describe(results["machine"]),
        "",
        f"Random weights in the real shapes, fp32, last layer; {COUNT} proteins of mmseqs2-examples chosen by a fixed seed, cut at {CAP:,}",
        "residues, and where it says so most of them shorter. Made by `onnx/reference/parity.py`.",
    ]
    for one in results["sizes"]:
        cut = f", all but {COUNT - one['cut_short']} of them cut at {one['short']} residues" if one["cut_short"] else ""
        lines += [
            "",
            f"## {one['size']} ({one['layers']} x {one['hidden']}, {one['heads']} heads)",
            "",
            f"{one['residues']:,} residues in {one['proteins']} proteins{cut}; the longest has {one['longest']:,}.",
            "",
            "| | of | against | max difference | min cosine | reference's RMS |",
            "|---|---|---|---|---|---|",
        ]
        for c in one["comparisons"]:
            lines.append(
                f"| {c['what']} | {c['of']} | {c['against']} | {c['max_abs_difference']:.1e} | {c['min_cosine']:.9f} | {c['reference_rms']:.3f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(esm2.SIZES), choices=list(esm2.SIZES))
    parser.add_argument("--seqembed", type=Path, default=common.DEFAULT_EXECUTABLE, help="the seqembed executable (a release build)")
    parser.add_argument("--proteins-from", type=Path, help="FASTA file (default: Debian's mmseqs2-examples)")
    parser.add_argument("--work", type=Path, default=common.DEFAULT_WORK, help="weights and outputs")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    parser.add_argument("--reuse", action="store_true", help="take the packages' vectors from an earlier run, where kept")
    parser.add_argument("--keep", action="store_true", help="keep the weights of 650M")
    arguments = parser.parse_args()
    if not arguments.seqembed.exists():
        raise SystemExit(f"{arguments.seqembed} is not there: build it (cargo build --release), or give --seqembed PATH")
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.results.mkdir(parents=True, exist_ok=True)
    results = {"machine": common.machine(), "sizes": []}
    stem = arguments.results / "parity-cpu"
    for size in arguments.sizes:
        results["sizes"].append(compare(size, arguments))
        stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
        stem.with_suffix(".md").write_text(markdown(results))
        if size == "650M" and not arguments.keep:
            for path in arguments.work.glob("*650M*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(f"\n{markdown(results)}\nwritten to {stem}.json and .md")


if __name__ == "__main__":
    main()
