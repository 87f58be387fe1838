"""Compares tools on the same records: runs take turns, each in its own process, and other tools use their best token budget."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import common

BUDGETS = [512, 1024, 2048, 4096, 8192]


def peer_run(name: str, model: Path, fasta: Path, out: Path, budget: int, threads: int) -> dict:
    """One run of a peer."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, Path(__file__).with_name("peer.py"), name, "--model", model, "--fasta", fasta]
    child = common.run_child([*command, "--out", out, "--budget", budget, "--threads", threads], threads)
    figures = json.loads(child.stdout.strip().splitlines()[-1])
    return {**figures, "wall_seconds": child.wall}


def seqembed_run(executable: Path, model: Path, fasta: Path, out: Path, threads: int, options: list[str]) -> dict:
    """One run of seqembed."""
    shutil.rmtree(out, ignore_errors=True)
    command = [executable, "embed", fasta, "-m", model, "-o", out, "--device", "cpu", "--format", "npz", "--quiet"]
    child = common.run_child([*command, "--threads", threads, *options])
    report = common.report(out)
    totals = report["totals"]
    return {
        "load_seconds": totals["load_seconds"],
        "seconds": child.wall - totals["load_seconds"],
        "wall_seconds": child.wall,
        "peak_mib": totals["peak_memory_bytes"] / 2**20,
        "tokens_in_report": totals["tokens"],
        "padding": totals["padding"],
        "stages": totals["stages"],
        "workers": report["workers"],
        "onnxruntime": report["onnxruntime"],
    }


@dataclass
class Task:
    """What all tools do."""

    fasta: Path
    tokens: int
    """Of the records, special ones counted."""
    sample: Path
    """A part of the records, for the choice of budgets."""
    sample_tokens: int
    models: dict[str, Path]
    """Each peer's weights."""
    exported: Path | None
    """seqembed's, if it takes part."""
    tuned: list[str]
    """The peers that take a token budget; they are the ones in PyTorch."""
    reference: str
    """Whose vectors the others' are compared with."""


def hold(task: Task, arguments, repeats: int) -> dict:
    """All runs of all tools, and what came of them."""
    work, threads = arguments.work, arguments.threads
    budgets: dict[str, int] = {}
    sweep: dict[str, dict[int, float]] = {}
    for name in task.tuned:
        if name in arguments.peers:
            speeds = {}
            for budget in arguments.budgets:
                figures = peer_run(name, task.models[name], task.sample, work / "out" / name, budget, threads)
                speeds[budget] = task.sample_tokens / figures["seconds"]
                print(f"  {name} at {budget} tokens a batch: {speeds[budget]:,.0f} tokens/s", flush=True)
            sweep[name] = speeds
            budgets[name] = max(speeds, key=speeds.get)

    tools = list(arguments.peers)
    if task.exported:
        tools.append("seqembed")
    runs: dict[str, list[dict]] = {name: [] for name in tools}
    outputs = {}
    for turn in range(repeats):
        for name in tools:
            if name != "seqembed" and sum(run["seconds"] for run in runs[name]) > arguments.patience:
                continue
            out = work / "out" / name
            if name == "seqembed":
                options = arguments.seqembed_options
                figures = seqembed_run(arguments.seqembed, task.exported, task.fasta, out, threads, options)
                outputs[name] = common.seqembed_output(out)
                assert figures["tokens_in_report"] == task.tokens, "the report counts other tokens than were given"
            else:
                figures = peer_run(name, task.models[name], task.fasta, out, budgets.get(name, 0), threads)
                outputs[name] = common.read_vectors(out / "vectors.npz")
            figures["tokens_per_second"] = task.tokens / figures["seconds"]
            runs[name].append(figures)
            print(f"  {turn + 1}/{repeats} {name}: {figures['tokens_per_second']:,.0f} tokens/s", flush=True)

    reference = outputs.get(task.reference, next(iter(outputs.values())))
    median = {name: statistics.median(run["tokens_per_second"] for run in runs[name]) for name in runs}
    fastest = max((median[name] for name in task.tuned if name in runs), default=None)
    return {
        "budgets_tried": sweep,
        "tools": {
            name: {
                "tokens_per_second": median[name],
                "ratio_to_fastest_pytorch": median[name] / fastest if fastest else None,
                "budget": budgets.get(name),
                "load_seconds": statistics.median(run["load_seconds"] for run in runs[name]),
                "peak_mib": max(run["peak_mib"] for run in runs[name]),
                f"against_{task.reference}": common.agreement(outputs[name], reference),
                "runs": runs[name],
            }
            for name in tools
        },
    }


def table(tools: dict, reference: str, pytorch: str) -> list[str]:
    """The tools as lines of Markdown, the slowest first. `pytorch`: what the ratio is to."""
    lines = [
        f"| | tokens/s | to {pytorch} | runs | tokens a batch | load, s | peak MiB | max difference to {reference} | min cosine |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, c in sorted(tools.items(), key=lambda item: item[1]["tokens_per_second"]):
        ratio = f"{c['ratio_to_fastest_pytorch']:.2f}" if c["ratio_to_fastest_pytorch"] else "-"
        runs = ", ".join(f"{run['tokens_per_second']:,.0f}" for run in c["runs"])
        match = c[f"against_{reference}"]
        lines.append(
            f"| {name} | {c['tokens_per_second']:,.0f} | {ratio} | {runs} | {c['budget'] or '-'} | {c['load_seconds']:.2f} "
            f"| {c['peak_mib']:,.0f} | {match['max_abs_difference']:.1e} | {match['min_cosine']:.7f} |"
        )
    paddings = [run["padding"] for c in tools.values() for run in c["runs"] if run.get("padding") is not None]
    if paddings:
        last = tools["seqembed"]["runs"][-1]
        stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in last["stages"].items())
        lines += [
            "",
            f"seqembed: ONNX Runtime {last['onnxruntime']}, {last['workers']} batches at work at a time, padding "
            f"{100 * max(paddings):.2f} % of tokens. Its stages overlap, computing is the sum over the workers: {stages}.",
        ]
    return lines


def add_arguments(parser, peers: list[str]) -> None:
    """The options of every comparison."""
    parser.add_argument("--budgets", nargs="+", type=int, default=BUDGETS, help="numbers of tokens per batch to try for the other tools")
    parser.add_argument("--peers", nargs="*", default=peers)
    parser.add_argument("--seqembed", type=Path, default=common.DEFAULT_EXECUTABLE, help="the seqembed executable (a release build)")
    parser.add_argument("--no-seqembed", dest="seqembed", action="store_const", const=None, help="run only the other tools")
    parser.add_argument("--patience", type=float, default=300, help="total seconds after which a tool gets no further runs")
    parser.add_argument("--threads", type=int, default=common.machine()["cores"])
    parser.add_argument("--work", type=Path, default=common.DEFAULT_WORK, help="weights and outputs")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    parser.add_argument("--seqembed-options", nargs="...", default=[], help="options for `seqembed embed`; must come last")


def begin(arguments) -> dict:
    """Checks the options, makes the folders, and describes the machine."""
    if arguments.seqembed and not arguments.seqembed.exists():
        raise SystemExit(f"{arguments.seqembed} is not there: build it (cargo build --release), or give --seqembed PATH")
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.results.mkdir(parents=True, exist_ok=True)
    machine = common.machine()
    if machine["load_average"] > 0.5 * machine["cores"]:
        print(f"the machine is busy (load average {machine['load_average']:.1f}): these are no figures to keep", flush=True)
    return machine
