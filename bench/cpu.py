"""seqembed beside its peers on a CPU: tokens a second, from a FASTA file on disk to vectors on disk.

    python bench/cpu.py [--sizes 8M 150M] [--proteins 8M=2000 150M=100] [--repeats 8M=3 150M=2] [--seqembed PATH]

Needs bench/requirements.txt, ONNX Runtime where seqembed finds it, and Debian's mmseqs2-examples (or --proteins-from).

- The same random weights of the true shape for all, as a hub folder and as fair-esm's `.pt`; the same proteins, chosen
  by a fixed seed and cut at 1,022 residues; all cores; mean over residues.
- A process a run. Loading (the interpreter, imports, weights) is counted apart. For seqembed, what is
  left of the wall time after the load that report.json states is charged to it, its start and end included.
- Tokens are residues and the two special tokens; padding does not count.
- transformers and fair-esm run at the best of several token budgets, tried on a tenth of the proteins (a quarter of
  fewer than 200).
- Runs of the contestants take turns; the median counts. A peer whose runs took over --patience seconds together has no
  more turns. Every contestant's vectors are compared with transformers'.

Writes bench/results/cpu-MACHINE.json and .md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path

import common
from common import esm2

CAP = 1022
BUDGETS = [512, 1024, 2048, 4096, 8192]
# A protein set of 2,000 takes PyTorch hours at 150M on a few cores: the default there is a subset.
PROTEINS = {"8M": 2000, "35M": 500, "150M": 100, "650M": 20}
REPEATS = {"8M": 3, "35M": 2, "150M": 2, "650M": 1}


def peer_run(name: str, model: Path, fasta: Path, out: Path, budget: int, threads: int) -> dict:
    """One run of a peer."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, Path(__file__).with_name("peer.py"), name, "--model", model, "--fasta", fasta]
    child = common.run_child([*command, "--out", out, "--budget", budget, "--threads", threads], threads)
    figures = json.loads(child.stdout.strip().splitlines()[-1])
    return {**figures, "wall_seconds": child.wall, "peak_mib": child.rss / 2**20}


def seqembed_run(executable: Path, model: Path, fasta: Path, out: Path, threads: int, options: list[str]) -> dict:
    """One run of seqembed."""
    shutil.rmtree(out, ignore_errors=True)
    command = [executable, "embed", fasta, "-m", model, "-o", out, "--format", "npz", "--quiet"]
    child = common.run_child([*command, "--threads", threads, *options])
    report = common.report(out)
    totals = report["totals"]
    return {
        "load_seconds": totals["load_seconds"],
        "seconds": child.wall - totals["load_seconds"],
        "wall_seconds": child.wall,
        "peak_mib": child.rss / 2**20,
        "tokens_in_report": totals["tokens"],
        "padding": totals["padding"],
        "stages": totals["stages"],
        "workers": report["workers"],
        "onnxruntime": report["onnxruntime"],
    }


def bench_size(size: str, arguments, count: int, repeats: int) -> dict:
    """All contestants on one size."""
    work, threads = arguments.work, arguments.threads
    folder, pt = esm2.random_checkpoint(work, size)
    proteins = esm2.sample_proteins(arguments.proteins_from or esm2.find_example_proteins(), count, CAP)
    fasta, sample = work / f"proteins-{count}.faa", work / f"proteins-{count}-sample.faa"
    esm2.write_fasta(fasta, proteins)
    esm2.write_fasta(sample, proteins[:: 10 if count >= 200 else 4])
    tokens = sum(len(sequence) + 2 for _, sequence in proteins)
    sample_tokens = sum(len(sequence) + 2 for _, sequence in esm2.read_fasta(sample))
    print(f"{size}: {count} proteins, {tokens} tokens", flush=True)

    models = {"transformers": folder, "fair-esm": pt, "esm-cpp": folder}
    budgets: dict[str, int] = {}
    sweep: dict[str, dict[int, float]] = {}
    for name in ("transformers", "fair-esm"):
        if name in arguments.peers:
            speeds = {}
            for budget in arguments.budgets:
                figures = peer_run(name, models[name], sample, work / "out" / name, budget, threads)
                speeds[budget] = sample_tokens / figures["seconds"]
                print(f"  {name} at {budget} tokens a batch: {speeds[budget]:,.0f} tokens/s", flush=True)
            sweep[name] = speeds
            budgets[name] = max(speeds, key=speeds.get)

    contestants = list(arguments.peers)
    if arguments.seqembed:
        model = common.exported(work, arguments.seqembed, size, folder)
        contestants.append("seqembed")
    runs: dict[str, list[dict]] = {name: [] for name in contestants}
    outputs = {}
    for turn in range(repeats):
        for name in contestants:
            if name != "seqembed" and sum(run["seconds"] for run in runs[name]) > arguments.patience:
                continue
            out = work / "out" / name
            if name == "seqembed":
                figures = seqembed_run(arguments.seqembed, model, fasta, out, threads, arguments.seqembed_options)
                outputs[name] = common.seqembed_output(out)
                assert figures["tokens_in_report"] == tokens, "the report counts other tokens than were given"
            else:
                figures = peer_run(name, models[name], fasta, out, budgets.get(name, 0), threads)
                outputs[name] = common.read_vectors(out / "vectors.npz")
            figures["tokens_per_second"] = tokens / figures["seconds"]
            runs[name].append(figures)
            print(f"  {turn + 1}/{repeats} {name}: {figures['tokens_per_second']:,.0f} tokens/s", flush=True)

    reference = outputs.get("transformers", next(iter(outputs.values())))
    best = [n for n in ("transformers", "fair-esm") if n in runs]
    median = {name: statistics.median(run["tokens_per_second"] for run in runs[name]) for name in runs}
    fastest = max((median[name] for name in best), default=None)
    return {
        "size": size,
        "proteins": count,
        "tokens": tokens,
        "cut_at": CAP,
        "threads": threads,
        "budgets_tried": sweep,
        "contestants": {
            name: {
                "tokens_per_second": median[name],
                "ratio_to_fastest_pytorch": median[name] / fastest if fastest else None,
                "budget": budgets.get(name),
                "load_seconds": statistics.median(run["load_seconds"] for run in runs[name]),
                "peak_mib": max(run["peak_mib"] for run in runs[name]),
                "against_transformers": common.agreement(outputs[name], reference),
                "runs": runs[name],
            }
            for name in contestants
        },
    }


def markdown(results: dict) -> str:
    """The results as a page."""
    lines = [
        "# ESM-2 on a CPU: seqembed beside its peers",
        "",
        common.describe(results["machine"]),
        "",
        "A FASTA file on disk to mean vectors on disk, fp32, all cores; the same random weights of the true shapes for all; proteins of",
        f"mmseqs2-examples chosen by a fixed seed, cut at {CAP:,} residues; loading counted apart; medians. Made by `bench/cpu.py`,",
        "whose head says what is counted.",
    ]
    for one in results["sizes"]:
        lines += ["", f"## {one['size']}: {one['proteins']:,} proteins, {one['tokens']:,} tokens", ""]
        if one["proteins"] < 2000:
            lines += [f"A subset of {one['proteins']:,} proteins (of the 2,000 asked for), so that every peer ends in bounded time.", ""]
        lines += [
            "| | tokens/s | to the faster of transformers and fair-esm | runs | tokens a batch | load, s | peak MiB | max difference to transformers | min cosine |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for name, c in sorted(one["contestants"].items(), key=lambda item: item[1]["tokens_per_second"]):
            ratio = f"{c['ratio_to_fastest_pytorch']:.2f}" if c["ratio_to_fastest_pytorch"] else "-"
            runs = ", ".join(f"{run['tokens_per_second']:,.0f}" for run in c["runs"])
            match = c["against_transformers"]
            lines.append(
                f"| {name} | {c['tokens_per_second']:,.0f} | {ratio} | {runs} | {c['budget'] or '-'} | {c['load_seconds']:.2f} "
                f"| {c['peak_mib']:,.0f} | {match['max_abs_difference']:.1e} | {match['min_cosine']:.7f} |"
            )
        paddings = [run["padding"] for c in one["contestants"].values() for run in c["runs"] if run.get("padding") is not None]
        if paddings:
            last = one["contestants"]["seqembed"]["runs"][-1]
            stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in last["stages"].items())
            lines += [
                "",
                f"seqembed: ONNX Runtime {last['onnxruntime']}, {last['workers']} batches at work at a time, padding "
                f"{100 * max(paddings):.2f} % of tokens. Its stages overlap, computing is the sum over the workers: {stages}.",
            ]
    return "\n".join(lines) + "\n"


def pairs(text: list[str], defaults: dict[str, int]) -> dict[str, int]:
    """SIZE=N options over the defaults."""
    return {**defaults, **{size: int(number) for size, number in (item.split("=") for item in text)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["8M", "150M"], choices=list(esm2.SIZES))
    parser.add_argument("--proteins", nargs="+", default=[], metavar="SIZE=N", help=f"default {PROTEINS}")
    parser.add_argument("--repeats", nargs="+", default=[], metavar="SIZE=N", help=f"default {REPEATS}")
    parser.add_argument("--budgets", nargs="+", type=int, default=BUDGETS, help="tokens a batch to try with the peers")
    parser.add_argument("--peers", nargs="*", default=["transformers", "fair-esm", "esm-cpp"])
    parser.add_argument("--seqembed", type=Path, default=common.DEFAULT_EXECUTABLE, help="the release build")
    parser.add_argument("--seqembed-options", nargs=argparse.REMAINDER, default=[], help="last: passed on to `seqembed embed`")
    parser.add_argument("--no-seqembed", dest="seqembed", action="store_const", const=None, help="the peers alone")
    parser.add_argument("--patience", type=float, default=300, help="seconds of runs after which a peer gets no further turn")
    parser.add_argument("--threads", type=int, default=common.machine()["cores"])
    parser.add_argument("--proteins-from", type=Path, help="FASTA file (default: Debian's mmseqs2-examples)")
    parser.add_argument("--work", type=Path, default=common.DEFAULT_WORK, help="weights and outputs")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    arguments = parser.parse_args()
    if arguments.seqembed and not arguments.seqembed.exists():
        raise SystemExit(f"{arguments.seqembed} is not there: build it (cargo build --release), or give --seqembed PATH")
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.results.mkdir(parents=True, exist_ok=True)

    counts, repeats = pairs(arguments.proteins, PROTEINS), pairs(arguments.repeats, REPEATS)
    machine = common.machine()
    if machine["load_average"] > 0.5 * machine["cores"]:
        print(f"the machine is busy (load average {machine['load_average']:.1f}): these are no figures to keep", flush=True)
    results = {"machine": machine, "sizes": []}
    for size in arguments.sizes:
        results["sizes"].append(bench_size(size, arguments, counts[size], repeats[size]))
        stem = arguments.results / f"cpu-{common.slug(machine)}"
        stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
        stem.with_suffix(".md").write_text(markdown(results))
    print(f"\n{markdown(results)}\nwritten to {stem}.json and .md")


if __name__ == "__main__":
    main()
