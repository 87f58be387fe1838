"""Benchmark of output per residue (`--pooling none`): tokens per second into each format, beside pooled output and a plain copy.

    python bench/residues.py [--device cuda:0] [--model esm2_t33_650M_UR50D] [--tokens 4000000] [--seqembed PATH]      # on a GPU
    python bench/residues.py --device cpu --model esm2_t6_8M_UR50D --precision fp32 --tokens 300000                    # on a CPU

Random weights in the real shape; random proteins with lengths log-normal around 324 residues; the whole program, FASTA files on disk to
output files on disk (synced). Tokens per second are those of report.json over its seconds without the load and without finding and waking
the device.

- `--files`: numbers of files that the proteins are in, each measured: many files are finished while others are computed, and of one file
  all rows that are not in it yet are saved for `--resume`.
- The plain copy: as many bytes as the residues have are read and written by as many threads, and synced, in the same folder.
- Before, as many bytes are written and removed once: the memory of a virtual machine may come from its host at first touch, which the first
  format alone would pay for.
- `--made-up` runs no model (SEQEMBED_INJECT=made-up): what is measured is the host's part alone.

Parts that fail are reported and skipped, and parts that would not end within `--minutes` are not begun. Writes
bench/results/residues-MACHINE.json and .md after each run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import threading
import time
import traceback
from pathlib import Path

import common
import gpu_inputs
import gpu_ours
import gpu_page

FORMATS = ["npy", "npz", "h5", "safetensors", "parquet"]
# Of the pooled speed, or of the copy's, whichever is less.
BARS = {"npy": 0.8, "npz": 0.8, "h5": 0.8, "safetensors": 0.8, "parquet": 0.6}
PIECE = 32 << 20


class Bench:
    """The executable, the model, and how much time is left."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.start = time.perf_counter()
        self.seqembed = gpu_ours.Seqembed(arguments.seqembed.resolve(), arguments.device, [], [], arguments.work)
        self.out = arguments.work / "out"
        self.longest = 0.0

    def left(self) -> float:
        return 60 * self.arguments.minutes - (time.perf_counter() - self.start)

    def say(self, text: str) -> None:
        print(f"[{time.perf_counter() - self.start:5.0f} s] {text}", flush=True)

    def run(self, manifest: Path, model: Path, options: list[str]) -> dict:
        """One run of seqembed, with its figures."""
        arguments = self.arguments
        shutil.rmtree(self.out, ignore_errors=True)
        os.sync()
        command = [self.seqembed.executable, "run", manifest, "-o", self.out, "-m", model, "--quiet", "--device", arguments.device]
        command += ["--precision", arguments.precision, "--output-precision", arguments.output_precision, *options]
        if arguments.threads:
            command += ["--threads", arguments.threads]
        begun = time.perf_counter()
        wall, memory = self.seqembed.call(command, max(30.0, self.left()))
        self.longest = max(self.longest, time.perf_counter() - begun)
        report = json.loads((self.out / "report.json").read_text())
        totals = report["totals"]
        if totals.get("failed_files"):
            raise RuntimeError(f"{totals['failed_files']} files failed")
        seconds = totals["seconds"] - totals["load_seconds"] - totals["start_seconds"]
        written = sum(path.stat().st_size for path in self.out.iterdir() if path.name != "report.json" and path.is_file())
        return {
            "tokens": totals["tokens"],
            "seconds": seconds,
            "wall_seconds": wall,
            "tokens_per_second": totals["tokens"] / seconds,
            "busy": min((device["busy"] for device in report["devices"]), default=None),
            "stages": totals["stages"],
            "peak_memory_bytes": totals["peak_memory_bytes"],
            "anonymous_memory_bytes": memory["anonymous"],
            "bytes": written,
            "batches": totals["batches"],
        }


def copy(folder: Path, threads: int) -> dict:
    """Copies all files of a folder piece by piece with so many threads, and syncs them."""
    target = folder.with_name("copy")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    os.sync()
    pieces, files, total = [], [], 0
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        size = path.stat().st_size
        source, sink = os.open(path, os.O_RDONLY), os.open(target / path.name, os.O_WRONLY | os.O_CREAT)
        files.append((source, sink))
        pieces += [(source, sink, at, min(PIECE, size - at)) for at in range(0, size, PIECE)]
        total += size
    lock, errors = threading.Lock(), []
    pieces.reverse()

    def work() -> None:
        try:
            while True:
                with lock:
                    if not pieces:
                        return
                    source, sink, at, size = pieces.pop()
                os.pwrite(sink, os.pread(source, size, at), at)
        except OSError as error:
            errors.append(error)

    start = time.perf_counter()
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    written = time.perf_counter() - start
    for _, sink in files:
        os.fsync(sink)
    seconds = time.perf_counter() - start
    for source, sink in files:
        os.close(source)
        os.close(sink)
    shutil.rmtree(target)
    if errors:
        raise errors[0]
    return {"bytes": total, "threads": threads, "seconds": seconds, "seconds_before_sync": written, "bytes_per_second": total / seconds}


def touch(folder: Path, size: int) -> None:
    """Has the system get the memory that so many bytes in its page cache take, and frees it."""
    path, piece = folder / "touched", bytes(PIECE)
    with path.open("wb") as file:
        for _ in range(-(-size // PIECE)):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    path.unlink()


def measure(bench: Bench, model: Path, files: int, results: dict, save) -> None:
    """All formats with the proteins in so many files."""
    arguments = bench.arguments
    manifest = gpu_inputs.make(arguments.work / f"proteins-{arguments.tokens}-{files}", "proteins", arguments.tokens, files)
    entry = results["files"].setdefault(str(files), {"residues": {}, "failures": []})

    def part(name: str, work) -> dict | None:
        if bench.left() < 1.5 * bench.longest + 15:
            entry["failures"].append(f"{name}: no time was left")
            bench.say(f"{name}: no time is left")
            return None
        try:
            figures = work()
        except Exception as error:  # the next part may do
            traceback.print_exc()
            entry["failures"].append(f"{name}: {type(error).__name__}: {str(error)[:1000]}")
            return None
        finally:
            save()
        return figures

    def told(name: str, run: dict) -> None:
        bench.say(
            f"{files} files, {name}: {run['tokens_per_second']:,.0f} tokens/s, busy {run['busy']}, {run['bytes'] / 2**30:.2f} GiB, "
            f"peak {run['peak_memory_bytes'] / 2**20:,.0f} MiB, stages {run['stages']}"
        )

    if run := part("pooled", lambda: bench.run(manifest, model, ["--format", "npz"])):
        entry["pooled"] = run
        told("pooled", run)
    for name in arguments.formats:
        if run := part(name, lambda name=name: bench.run(manifest, model, ["--pooling", "none", "--format", name])):
            entry["residues"][name] = run
            told(name, run)
            threads = arguments.threads or len(os.sched_getaffinity(0))
            if "copy" not in entry and (figures := part("copy", lambda: copy(bench.out, threads))):
                figures["tokens_per_second"] = run["tokens"] / figures["seconds"]
                entry["copy"] = figures
                bench.say(f"copy: {figures['bytes_per_second'] / 1e9:.2f} GB/s, as {figures['tokens_per_second']:,.0f} tokens/s")
        shutil.rmtree(bench.out, ignore_errors=True)
        save()


def markdown(results: dict) -> str:
    machine = results["machine"]
    lines = ["# One vector per residue", "", gpu_page.describe(machine), ""]
    lines += [
        f"{results['model']}, {results['precision']}, random weights; proteins of lengths log-normal around 324 residues; "
        f"`--output-precision {results['output_precision']}`; files on disk to synced files on disk. Made by `bench/residues.py`, whose head "
        "says what is counted.",
    ]
    if results["made_up"]:
        lines += ["", "**No model was run**: what is measured is the host's part alone (`--made-up`)."]
    for files, entry in results["files"].items():
        pooled, plain = entry.get("pooled"), entry.get("copy")
        lines += ["", f"## {files} file{'s' if files != '1' else ''}", ""]
        lines += ["| | tokens/s | of pooled | of pooled or the copy | device busy | GiB | peak memory, MiB | of these anonymous |"]
        lines += ["|---|---:|---:|---:|---:|---:|---:|---:|"]
        rows = ([("pooled, npz", pooled)] if pooled else []) + list(entry["residues"].items())
        for name, run in rows:
            share = least = "-"
            if name in BARS and pooled:
                ratio = run["tokens_per_second"] / pooled["tokens_per_second"]
                share = f"{ratio:.2f}"
                most = min(pooled["tokens_per_second"], plain["tokens_per_second"]) if plain else pooled["tokens_per_second"]
                ratio = run["tokens_per_second"] / most
                least = f"{ratio:.2f} (bar {BARS[name]}: {'met' if ratio >= BARS[name] else 'NOT met'})"
            busy = f"{run['busy']:.2f}" if run["busy"] is not None else "-"
            lines.append(
                f"| {name} | {run['tokens_per_second']:,.0f} | {share} | {least} | {busy} | {run['bytes'] / 2**30:.2f} "
                f"| {run['peak_memory_bytes'] / 2**20:,.0f} | {run['anonymous_memory_bytes'] / 2**20:,.0f} |"
            )
        if plain:
            lines.append(
                f"| plain copy, {plain['threads']} threads | {plain['tokens_per_second']:,.0f} | | | | {plain['bytes'] / 2**30:.2f} | | |"
            )
            lines += ["", f"The copy: {plain['bytes_per_second'] / 1e9:.2f} GB/s, {plain['seconds_before_sync']:.1f} s before its sync, "]
            lines[-1] += f"{plain['seconds']:.1f} s in all."
        lines += [f"\n{failure}" for failure in entry["failures"]]
    return "\n".join(lines) + "\n"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = lambda text: text.replace(",", " ").split()  # noqa: E731
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--model", default="esm2_t33_650M_UR50D", help="as `seqembed models` has it, or an exported folder")
    parser.add_argument("--precision", default="fp16", help="of the model")
    parser.add_argument("--output-precision", default="fp16")
    parser.add_argument("--tokens", type=int, default=4_000_000)
    parser.add_argument("--files", nargs="+", type=int, default=[200, 1], help="numbers of files")
    parser.add_argument("--formats", type=listed, default=FORMATS, help=f"of {', '.join(FORMATS)}, with commas")
    parser.add_argument("--threads", type=int, help="threads of seqembed and of the copy (default: all cores)")
    parser.add_argument("--made-up", action="store_true", help="run no model")
    parser.add_argument("--minutes", type=float, default=8.5, help="time limit; what would not end by then is not begun")
    parser.add_argument("--seqembed", type=Path, default=common.DEFAULT_EXECUTABLE, help="the seqembed executable (a release build)")
    parser.add_argument("--work", type=Path, default=common.DEFAULT_WORK / "residues", help="weights, inputs and outputs")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    arguments = parser.parse_args()
    if not arguments.seqembed.exists():
        parser.error(f"{arguments.seqembed} is not there: build it (cargo build --release), or give --seqembed PATH")
    return arguments


def main() -> None:
    arguments = options()
    for folder in (arguments.work, arguments.results):
        folder.mkdir(parents=True, exist_ok=True)
    if arguments.made_up:
        os.environ["SEQEMBED_INJECT"] = "made-up"
    bench = Bench(arguments)
    machine = common.machine() | {"gpu": gpu_ours.gpu_state() if arguments.device != "cpu" else {}}
    results = {"machine": machine, "files": {}, "tokens": arguments.tokens}
    results |= {name: getattr(arguments, name) for name in ("model", "device", "precision", "output_precision", "made_up")}
    kind = "host-residues" if arguments.made_up else "residues"
    stem = arguments.results / f"{kind}-{common.gpu_slug(machine)}"

    def save() -> None:
        stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
        stem.with_suffix(".md").write_text(markdown(results))

    model, exporting = Path(arguments.model), None
    if not model.exists():
        # With the weights in 16 bits beside them: else the first run makes that file.
        bench.seqembed.export_options = ["--precision", arguments.precision] if arguments.precision in ("fp16", "bf16") else []
        model, exporting = bench.seqembed.export(arguments.model)
    few = gpu_inputs.make(arguments.work / "proteins-few", "proteins", min(100_000, arguments.tokens // 10), 2)
    if exporting and exporting.wait() != 0:
        raise SystemExit(f"the model was not exported: see {arguments.work}/export-*.log")
    bench.say("the model is there")
    # Kernels are compiled, and the weights are in the page cache.
    bench.run(few, model, ["--format", "npz"])
    residues = bench.run(few, model, ["--pooling", "none", "--format", "npy"])
    touch(arguments.work, residues["bytes"] * arguments.tokens // residues["tokens"])
    bench.longest = 0.0
    bench.say("warm")
    for files in arguments.files:
        measure(bench, model, files, results, save)
    print(f"\n{markdown(results)}\nwritten to {stem}.json and .md")


if __name__ == "__main__":
    main()
