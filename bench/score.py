"""Benchmark of masked pseudo-likelihoods (`score --method masked`, and with `--scan`) beside PyTorch.

    python bench/score.py [--device cuda:0] [--model esm2_t33_650M_UR50D] [--proteins 200] [--length 300]                 # on a GPU
    python bench/score.py --device cpu --model esm2_t6_8M_UR50D --precision fp32 --proteins 4 --length 60 --budgets 4096  # on a CPU

Random weights in the real shape, random proteins of one length; every position of every protein is masked in turn, so that there are
`proteins * length` sequences of `length + 2` tokens. ESM-2 only. What is counted:

- seqembed: the whole program, FASTA files on disk to tables on disk. Tokens per second are those of report.json over its seconds without the
  load and without finding and waking the device.
- PyTorch: batched loops in the same precision over the same masked sequences, whole layers under torch.compile, the head (of the masked rows
  alone) and the log-probability of the letter that stood there on the device: `batched`, rows beside each other with scaled_dot_product_attention,
  which need no padding here, and `varlen`, rows end to end with varlen_attn. Token ids are made beforehand, in pinned memory; timed are copying
  them, the model, and the log-probabilities back in host memory. Compilation does not count. A budget of tokens is the best of several,
  tried on an eighth of the rows. With --peer-proteins they get the first proteins only: tokens per second need no more.

What must be right: log-likelihoods of all of them against a plain PyTorch model in fp32, of a few proteins (--sample), as the largest
difference a residue; seqembed's against the peers'; and the rank correlation (Spearman) of a scan with that of fp32. A figure out of its bound ends
the program with an error, after the page is written.

Writes bench/results/score-MACHINE.json and .md after each part; a part that fails is reported and skipped.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import time
import traceback
from pathlib import Path

import common
import gpu_inputs
import gpu_ours
import gpu_page
import numpy as np
from common import esm2

BAR = 1.2
# The largest difference of a log-likelihood, divided by the residues.
BOUNDS = {"fp32": 2e-5, "fp16": 5e-3, "bf16": 5e-2}
SPEARMAN = {"fp32": 0.999999, "fp16": 0.999, "bf16": 0.99}
# The method's options and the rest, by what the page calls it.
OURS = {"masked": [], "masked, --scan": ["--scan"]}


def make_proteins(folder: Path, arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """The proteins, the same ones each time, in --files FASTA files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    letters = np.frombuffer(gpu_inputs.AMINO_ACIDS, np.uint8)
    drawn = letters[rng.integers(0, len(letters), (arguments.proteins, arguments.length))]
    records = [(f"protein_{number}", row.tobytes().decode()) for number, row in enumerate(drawn)]
    for file, part in enumerate(np.array_split(np.arange(len(records)), min(arguments.files, len(records)))):
        esm2.write_fasta(folder / f"part{file:03}.fasta", [records[i] for i in part])
    return records


def read_tables(out: Path, name: str) -> list[dict]:
    """The rows of all tables of a kind."""
    rows = []
    for path in sorted(out.glob(f"part???{name}.tsv")):
        with path.open() as file:
            rows += csv.DictReader(file, delimiter="\t")
    return rows


class Ours:
    """Runs of seqembed."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        precision = ["--precision", arguments.precision] if arguments.precision in ("fp16", "bf16") else []
        self.seqembed = gpu_ours.Seqembed(arguments.seqembed.resolve(), arguments.device, [], precision, arguments.work)
        self.out = arguments.work / "out"

    def export(self) -> Path:
        if Path(self.arguments.model).exists():
            return Path(self.arguments.model)
        model, exporting = self.seqembed.export(self.arguments.model)
        if exporting and exporting.wait() != 0:
            raise SystemExit(f"the model was not exported: see {self.arguments.work}/export-*.log")
        return model

    def run(self, folder: Path, model: Path, options: list[str]) -> dict:
        """One run, with its figures."""
        arguments = self.arguments
        shutil.rmtree(self.out, ignore_errors=True)
        command = [self.seqembed.executable, "score", *sorted(folder.glob("*.fasta")), "-m", model, "-o", self.out, "--quiet"]
        command += ["--method", "masked", "--format", "tsv", "--device", arguments.device, "--precision", arguments.precision, *options]
        if arguments.batch_tokens:
            command += ["--batch-tokens", arguments.batch_tokens]
        if arguments.threads:
            command += ["--threads", arguments.threads]
        wall, _ = self.seqembed.call(command, 600)
        report = json.loads((self.out / "report.json").read_text())
        totals = report["totals"]
        if totals.get("failed_files"):
            raise RuntimeError(f"{totals['failed_files']} files failed")
        seconds = totals["seconds"] - totals["load_seconds"] - totals["start_seconds"]
        return {
            "tokens": totals["tokens"],
            "seconds": seconds,
            "wall_seconds": wall,
            "load_seconds": totals["load_seconds"],
            "tokens_per_second": totals["tokens"] / seconds,
            "busy": min((device["busy"] for device in report["devices"]), default=None),
            "batches": totals["batches"],
            "peak_memory_bytes": totals["peak_memory_bytes"],
        }

    def log_likelihoods(self) -> dict[str, float]:
        return {row["id"]: float(row["log_likelihood"]) for row in read_tables(self.out, "")}

    def scan(self) -> dict[str, np.ndarray]:
        """Scores [length, 20] by the proteins' ids."""
        columns = gpu_inputs.AMINO_ACIDS.decode()
        scores: dict[str, list] = {}
        for row in read_tables(self.out, ".scan"):
            scores.setdefault(row["id"], []).append([float(row[letter]) for letter in columns])
        return {name: np.array(rows) for name, rows in scores.items()}


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, of equal values their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(ranks(one.ravel()), ranks(other.ravel()))[0, 1])


class Peers:
    """PyTorch's loops; made when seqembed is done, as they hold the device's memory."""

    def __init__(self, model: Path, arguments: argparse.Namespace) -> None:
        import gpu_torch
        import score_torch
        import torch

        self.torch, self.arguments, self.model = torch, arguments, model
        self.device = torch.device(arguments.device)
        if self.device.type == "cpu":
            gpu_torch.add_cpu_kernel()
            if arguments.threads:
                torch.set_num_threads(arguments.threads)
        self.dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[arguments.precision]
        self.kinds = {"batched": score_torch.Batched, "varlen": score_torch.Varlen}
        self.masked, self.plain = score_torch.Masked, score_torch.plain
        self.weights = score_torch.HeadWeights

    def right(self, rows: list[np.ndarray]) -> list[np.ndarray]:
        """Log-probabilities [length, vocabulary] at the masked positions, in fp32."""
        return self.plain(self.weights(self.model, self.device, self.torch.float32), rows)

    def make(self, name: str):
        return self.kinds[name](self.weights(self.model, self.device, self.dtype))

    def wait(self) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def run(self, peer, batches: list) -> tuple[float, np.ndarray]:
        """Seconds of a pass, and the log-probability of each masked letter."""
        with self.torch.inference_mode():
            self.wait()
            start, out = time.perf_counter(), []
            for batch in batches:
                values = peer.step(batch)
                if self.device.type == "cuda":
                    host = self.torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
                    values = host.copy_(values, non_blocking=True)
                out.append(values)
            self.wait()
            seconds = time.perf_counter() - start
        return seconds, self.torch.cat(out).numpy()

    def batches(self, rows: list[np.ndarray], budget: int) -> list:
        """All masked copies of the rows, in order."""
        tokens = len(rows[0])
        each = max(1, budget // tokens)
        pairs = [(row, at) for row in range(len(rows)) for at in range(1, tokens - 1)]
        return [self.masked(rows, pairs[first : first + each], self.device) for first in range(0, len(pairs), each)]

    def measure(self, name: str, rows: list[np.ndarray]) -> tuple[dict, np.ndarray]:
        """A peer's figures, and the log-likelihood of each row."""
        peer, tried = self.make(name), {}
        few = rows[: max(1, len(rows) // 8)]
        for budget in self.arguments.budgets:
            try:
                batches = self.batches(few, budget)
                self.run(peer, batches)
                tried[budget] = min(self.run(peer, batches)[0] for _ in range(2))
            except self.torch.OutOfMemoryError:
                self.torch.cuda.empty_cache()
        budget = min(tried, key=tried.get)
        batches = self.batches(rows, budget)
        self.run(peer, batches)
        passes = [self.run(peer, batches) for _ in range(self.arguments.runs)]
        seconds = [of for of, _ in passes]
        length = len(rows[0]) - 2
        tokens = len(rows) * length * len(rows[0])
        figures = {
            "tokens": tokens,
            "budget": budget,
            "tried_seconds": tried,
            "passes_seconds": seconds,
            "tokens_per_second": tokens / min(seconds),
        }
        return figures, passes[-1][1].astype(np.float64).reshape(len(rows), length).sum(1)


def compare(results: dict, sums: dict, scans: dict, rows: dict[str, np.ndarray], peers: Peers | None, arguments: argparse.Namespace) -> None:
    """Everything against fp32 by plain PyTorch, and seqembed against the peers."""
    checks, length = results["checks"], arguments.length
    largest = lambda one, other, names: max(abs(one[name] - other[name]) for name in names) / length  # noqa: E731
    for peer in results["peers"]:
        for ours in OURS:
            if ours in sums:
                checks[f"{ours}: seqembed to {peer}"] = largest(sums[ours], sums[peer], sums[peer])
    if peers is None:
        return
    sample = list(rows)[: arguments.sample]
    right = dict(zip(sample, peers.right([rows[name] for name in sample])))
    own = lambda name: right[name][np.arange(length), rows[name][1:-1]]  # noqa: E731
    exact = {name: float(own(name).astype(np.float64).sum()) for name in sample}
    for name, found in sums.items():
        checks[f"{name} to fp32"] = largest(found, exact, [one for one in sample if one in found])
    if scans:
        letters = [esm2.LETTERS[letter] for letter in gpu_inputs.AMINO_ACIDS.decode()]
        theirs = np.stack([right[name][:, letters] - own(name)[:, None] for name in sample])
        results["spearman"] = spearman(np.stack([scans[name] for name in sample]), theirs)


def failures(results: dict) -> list[str]:
    """What is out of its bound."""
    precision = results["precision"]
    # Two computations in this precision may each be off.
    bound = lambda name: (1 if name.endswith("fp32") else 2) * BOUNDS[precision]  # noqa: E731
    wrong = [f"{name}: {value:.2e} a residue" for name, value in results["checks"].items() if not value <= bound(name)]
    if not results.get("spearman", 1.0) >= SPEARMAN[precision]:
        wrong.append(f"Spearman's correlation of the scan is {results['spearman']:.6f}")
    return wrong


def markdown(results: dict) -> str:
    lines = ["# Masked pseudo-likelihoods", "", gpu_page.describe(results["machine"]), ""]
    lines += [
        f"{results['model']}, {results['precision']}, random weights; {results['proteins']} proteins of {results['length']} residues, each position "
        "masked in turn. Made by `bench/score.py`, whose head says what is counted.",
        "",
        "| | tokens/s | seconds of each run | tokens a batch | of the fastest PyTorch loop | device busy |",
        "|---|---:|---|---:|---:|---:|",
    ]
    fastest = max((peer["tokens_per_second"] for peer in results["peers"].values()), default=None)
    for name, peer in results["peers"].items():
        seconds = ", ".join(f"{s:.2f}" for s in peer["passes_seconds"])
        lines.append(f"| PyTorch, compiled, {name} ({peer['tokens']:,} tokens) | {peer['tokens_per_second']:,.0f} | {seconds} | {peer['budget']:,} | | |")
    for name, runs in results["ours"].items():
        best = max(runs, key=lambda run: run["tokens_per_second"])
        seconds = ", ".join(f"{run['seconds']:.2f}" for run in runs)
        ratio = gpu_page.verdict(best["tokens_per_second"] / fastest, BAR) if fastest else "-"
        busy = f"{best['busy']:.2f}" if best["busy"] is not None else "-"
        lines.append(
            f"| **seqembed, {name}** ({best['tokens']:,} tokens) | **{best['tokens_per_second']:,.0f}** | {seconds} "
            f"| {best['tokens'] / best['batches']:,.0f} | {ratio} | {busy} |"
        )
    if results["checks"]:
        lines += ["", f"Largest difference of a log-likelihood, divided by its {results['length']} residues:", "", "| | |", "|---|---:|"]
        lines += [f"| {name} | {value:.1e} |" for name, value in results["checks"].items()]
    if "spearman" in results:
        lines += ["", f"Spearman's correlation of the scan with that of fp32: {results['spearman']:.6f}."]
    lines += [f"\nOut of its bound: {text}." for text in failures(results)] + [f"\n{failure}" for failure in results["failures"]]
    return "\n".join(lines) + "\n"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--model", default="esm2_t33_650M_UR50D", help="an ESM-2 as `seqembed models` has it, or an exported folder")
    parser.add_argument("--precision", default="fp16", choices=BOUNDS, help="of seqembed and of the loops")
    parser.add_argument("--proteins", type=int, default=200)
    parser.add_argument("--length", type=int, default=300, help="residues of each protein")
    parser.add_argument("--files", type=int, default=1, help="FASTA files that they are in")
    parser.add_argument("--peers", nargs="*", default=["batched", "varlen"], help="loops to run: batched, varlen; nothing: none")
    parser.add_argument("--peer-proteins", type=int, help="the loops get so many proteins (default: a quarter)")
    parser.add_argument("--budgets", nargs="+", type=int, default=[16384, 32768, 65536], help="tokens a batch of the loops, to try")
    parser.add_argument("--batch-tokens", type=int, help="of seqembed (default: its own choice)")
    parser.add_argument("--runs", type=int, default=2, help="the best one counts")
    parser.add_argument("--sample", type=int, default=4, help="proteins that fp32 is computed of")
    parser.add_argument("--threads", type=int, help="threads of seqembed and, on a CPU, of PyTorch (default: all cores)")
    parser.add_argument("--seqembed", type=Path, default=common.DEFAULT_EXECUTABLE, help="the seqembed executable (a release build)")
    parser.add_argument("--work", type=Path, default=common.DEFAULT_WORK / "score", help="weights, inputs and outputs")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    arguments = parser.parse_args()
    if not arguments.seqembed.exists():
        parser.error(f"{arguments.seqembed} is not there: build it (cargo build --release), or give --seqembed PATH")
    arguments.peer_proteins = min(arguments.proteins, arguments.peer_proteins or -(-arguments.proteins // 4))
    arguments.sample = min(arguments.sample, arguments.peer_proteins)
    return arguments


def main() -> None:
    arguments = options()
    for folder in (arguments.work, arguments.results):
        folder.mkdir(parents=True, exist_ok=True)
    machine = common.machine() | {"gpu": gpu_ours.gpu_state() if arguments.device != "cpu" else {}}
    results = {"machine": machine, "ours": {}, "peers": {}, "checks": {}, "failures": []}
    results |= {name: getattr(arguments, name) for name in ("model", "device", "precision", "proteins", "length", "files")}
    stem = arguments.results / f"score-{common.gpu_slug(machine)}"
    start = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start:5.0f} s] {text}", flush=True)

    def save() -> None:
        stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
        stem.with_suffix(".md").write_text(markdown(results))

    ours = Ours(arguments)
    model = ours.export()
    records = make_proteins(arguments.work / "proteins", arguments)
    few = argparse.Namespace(proteins=2, length=arguments.length, files=1)
    make_proteins(arguments.work / "few", few)
    say("the model is there")
    # Kernels are compiled, and the weights are in the page cache.
    ours.run(arguments.work / "few", model, [])
    say("warm")
    sums, scans = {}, {}
    for name, more in OURS.items():
        for _ in range(arguments.runs):
            try:
                run = ours.run(arguments.work / "proteins", model, more)
            except Exception as error:  # the next part may do
                traceback.print_exc()
                results["failures"].append(f"{name}: {type(error).__name__}: {str(error)[:1000]}")
                break
            results["ours"].setdefault(name, []).append(run)
            say(f"{name}: {run['tokens_per_second']:,.0f} tokens/s, {run['seconds']:.2f} s, busy {run['busy']}")
            save()
        else:
            sums[name] = ours.log_likelihoods()
            scans = ours.scan() if "--scan" in more else scans
    rows = dict(zip([name for name, _ in records], gpu_inputs.token_rows(model, "esm2", [sequence for _, sequence in records])))
    some = list(rows)[: arguments.peer_proteins]
    peers = Peers(model, arguments) if arguments.peers else None
    for name in arguments.peers:
        try:
            results["peers"][name], found = peers.measure(name, [rows[one] for one in some])
            sums[name] = dict(zip(some, found))
            say(f"{name}: {results['peers'][name]['tokens_per_second']:,.0f} tokens/s")
        except Exception as error:  # the next one may do
            traceback.print_exc()
            results["peers"].pop(name, None)
            results["failures"].append(f"{name}: {type(error).__name__}: {str(error)[:1000]}")
        save()
    compare(results, sums, scans, rows, peers, arguments)
    save()
    print(f"\n{markdown(results)}\nwritten to {stem}.json and .md")
    if wrong := failures(results):
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
