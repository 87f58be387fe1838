"""Measures how fast seqembed loads a model on a GPU, from the page cache to the first embedding, and how much host memory it uses.

    python bench/gpu_load.py [--model esm2_t36_3B_UR50D] [--precision fp16] [--runs 3] [--seqembed PATH]

One protein of 300 residues, a process a run, weights that were read once before. `first_embedding_seconds` is report.json's: from
the start of the run to the end of the first batch. Peak memory is the process's largest resident set; what of it is its own
(anonymous) and what are mapped pages of files is read from /proc beside it. Writes bench/results/gpu-load-MACHINE.json.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import common
from common import esm2
from gpu_ours import Seqembed, gpu_state

# Asked of ESM-2 3B in fp16.
MOST_SECONDS, MOST_MEMORY = 2.0, 1.2


def weight_bytes(model: Path, precision: str) -> int:
    """All weights in a precision."""
    tensors = json.loads((model / "seqembed.json").read_text())["tensors"]
    each = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 2}[precision]
    # Of them, the dense layers of feed-forward layers have one byte a number in fp8.
    small = (".up.weight", ".down.weight") if precision == "fp8" else ()
    return sum(math.prod(tensor["shape"]) * (1 if tensor["name"].endswith(small) else each) for tensor in tensors)


def read_all(model: Path) -> None:
    """Brings the folder's files into the page cache."""
    for path in model.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 24):
                    pass


def measure(seqembed: Seqembed, model: Path, precision: str, runs: int) -> dict:
    """Several loads."""
    work = seqembed.work / "load"
    work.mkdir(parents=True, exist_ok=True)
    esm2.write_fasta(work / "one.fasta", [("one", "MKTAYIAKQR" * 30)])
    (work / "manifest.csv").write_text("sample,fasta\none,one.fasta\n")
    weights = weight_bytes(model, precision)
    read_all(model)
    seqembed.run(work / "manifest.csv", model, work / "out", precision)
    done = [seqembed.run(work / "manifest.csv", model, work / "out", precision) for _ in range(runs)]
    figures = {
        "weights_bytes": weights,
        "runs": [
            {
                "first_embedding_seconds": run["report"]["totals"]["first_embedding_seconds"],
                "load_seconds": run["load_seconds"],
                "wall_seconds": run["wall_seconds"],
                "peak_memory_bytes": run["report"]["totals"]["peak_memory_bytes"],
                "anonymous_bytes": run["host_memory_bytes"]["anonymous"],
                "file_bytes": run["host_memory_bytes"]["file"],
            }
            for run in done
        ],
    }
    best = min(figures["runs"], key=lambda run: run["first_embedding_seconds"])
    figures |= {key: best[key] for key in ("first_embedding_seconds", "load_seconds", "wall_seconds")}
    figures["peak_memory_bytes"] = max(run["peak_memory_bytes"] for run in figures["runs"])
    figures["anonymous_bytes"] = max(run["anonymous_bytes"] for run in figures["runs"])
    figures["memory_to_weights"] = figures["peak_memory_bytes"] / weights
    print(
        f"    load: first embedding after {figures['first_embedding_seconds']:.2f} s (load {figures['load_seconds']:.2f} s, whole process "
        f"{figures['wall_seconds']:.2f} s); host memory {figures['peak_memory_bytes'] / 2**30:.2f} GiB, {figures['memory_to_weights']:.2f} "
        f"times the weights ({figures['anonymous_bytes'] / 2**30:.2f} GiB its own)",
        flush=True,
    )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="esm2_t36_3B_UR50D", help="a known ESM-2 model")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seqembed", type=Path, default=common.DEFAULT_EXECUTABLE, help="the seqembed executable (a release build)")
    parser.add_argument("--work", type=Path, default=common.DEFAULT_WORK / "gpu", help="weights and outputs")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.results.mkdir(parents=True, exist_ok=True)
    seqembed = Seqembed(arguments.seqembed.resolve(), arguments.device, [], ["--precision", arguments.precision], arguments.work)
    folder, export = seqembed.export(arguments.model)
    if export and export.wait() != 0:
        raise SystemExit((arguments.work / f"export-{arguments.model}.log").read_text())
    machine = common.machine() | {"gpu": gpu_state()}
    figures = {"machine": machine, "model": arguments.model, "precision": arguments.precision}
    figures |= measure(seqembed, folder, arguments.precision, arguments.runs)
    path = arguments.results / f"gpu-load-{common.gpu_slug(machine)}.json"
    path.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
