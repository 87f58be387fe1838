"""Formats the results of the GPU benchmark as Markdown."""

from __future__ import annotations

import common
import gpu_inputs
import gpu_load
import kernel_table

# What every sequence's vector must keep of the right one's direction.
COSINE = {"fp32": 0.999999, "fp16": 0.9999, "bf16": 0.999, "fp8": 0.999}


def describe(machine: dict) -> str:
    """One paragraph on the machine and its GPU."""
    gpu = machine["gpu"]
    text = "no NVIDIA GPU. "
    if gpu:
        text = (
            f"{gpu['name']} ({int(float(gpu['memory.total'])) / 1024:.0f} GiB, driver {gpu['driver_version']}, SM clock {gpu['clocks.sm']} MHz "
            f"idle of at most {gpu['clocks.max.sm']}, power limit {gpu['power.limit']} W). "
        )
    return text + common.describe(machine)


def fastest(peers: dict, compiled: bool) -> tuple[str, dict] | None:
    """The best of the compiled peers, or of the others."""
    some = [(name, peer) for name, peer in peers.items() if peer["compiled"] == compiled]
    return max(some, key=lambda item: item[1]["tokens_per_second"], default=None)


def verdict(value: float, bar: float | None) -> str:
    """A ratio, and whether it is where it should be."""
    if bar is None:
        return f"{value:.2f}"
    return f"{value:.2f} (bar {bar:g}: {'met' if value >= bar else 'NOT met'})"


def speeds(model: dict, name: str, precisions: list[str]) -> list[str]:
    """The table of one input."""
    entry = model["inputs"][name]
    peers, ours = entry["peers"], entry["ours"]
    counts = f": {entry['sequences']:,} sequences, {entry['tokens']:,} tokens" if "tokens" in entry else ""
    lines = [f"### {gpu_inputs.KINDS[name].text}{counts}", ""]
    lines += ["| | tokens/s | tokens a batch | seconds | worst cosine to fp32 |", "|---|---:|---:|---|---:|"]
    for peer_name, peer in sorted(peers.items(), key=lambda item: item[1]["tokens_per_second"]):
        seconds = ", ".join(f"{s:.2f}" for s in peer["passes_seconds"])
        # Taken over from an earlier run.
        when = f" ({peer['measured']})" if "measured" in peer else ""
        lines.append(f"| {peer_name}{when} | {peer['tokens_per_second']:,.0f} | {peer['budget']:,} | {seconds} | {peer['min_cosine']:.6f} |")
    for precision, run in ours.items():
        seconds = ", ".join(f"{r['seconds']:.2f}" for r in run["runs"])
        totals = run["runs"][-1]["report"]["totals"]
        each = f"{totals['tokens'] / totals['batches']:,.0f}" if totals.get("batches") else "-"
        cosine = f"{run['min_cosine']:.6f}" if "min_cosine" in run else "-"
        lines.append(f"| **seqembed {precision}** | **{run['tokens_per_second']:,.0f}** | {each} | {seconds} | {cosine} |")
    if roof := model.get("roof"):
        lines.append(f"| dense products alone | {roof['tokens_per_second']:,.0f} | 32,768 | | |")
    lines.append("")
    bars = model["bars"]
    for precision, run in ours.items():
        # The bars are for the precision that is the default on a GPU.
        first = precision == precisions[0]
        said = []
        transformers = ("transformers", peers["transformers"]) if "transformers" in peers else fastest(peers, False)
        for best, what in ((fastest(peers, True), "compiled"), (transformers, "transformers")):
            if best:
                ratio = run["tokens_per_second"] / best[1]["tokens_per_second"]
                said.append(f"{verdict(ratio, bars.get(what) if first else None)} times {best[0]}")
        if roof:
            said.append(f"{100 * run['tokens_per_second'] / roof['tokens_per_second']:.0f} % of the dense products alone")
        if not first and precisions[0] in ours:
            said.append(f"{run['tokens_per_second'] / ours[precisions[0]]['tokens_per_second']:.2f} times {precisions[0]}")
        if "min_cosine" in run:
            bound = COSINE.get(precision, 0.9999)
            right = run["min_cosine"] >= bound and not run["vectors_not_finite"]
            said.append(f"worst cosine of {run['compared']} sequences {run['min_cosine']:.6f} ({'at least' if right else 'NOT at least'} {bound})")
        for device in run["runs"][-1]["report"].get("devices", []):
            said.append(f"{device['device']} busy {100 * device['busy']:.1f} % of the time from the first batch to the last")
            if device["recomputed_batches"]:
                said.append(f"{device['recomputed_batches']} of {device['batches']} batches computed again in higher precision")
        if run["vectors_not_finite"]:
            said.append(f"{run['vectors_not_finite']} VECTORS ARE NOT FINITE")
        if "tokens_expected" in run:
            said.append(f"it counted {run['tokens']:,} tokens where {run['tokens_expected']:,} were given")
        lines.append(f"- seqembed {precision}: {'; '.join(said)}." if said else f"- seqembed {precision}: nothing to compare with.")
    return [*lines, ""]


def load(figures: dict) -> list[str]:
    """What loading took."""
    seconds, memory = figures["first_embedding_seconds"], figures["memory_to_weights"]
    bars = ["", ""]
    if figures["bar"]:
        bars[0] = f" (at most {gpu_load.MOST_SECONDS:g}: {'met' if seconds <= gpu_load.MOST_SECONDS else 'NOT met'})"
        bars[1] = f" (under {gpu_load.MOST_MEMORY:g}: {'met' if memory < gpu_load.MOST_MEMORY else 'NOT met'})"
    return [
        f"Load, from the page cache: first embedding after {seconds:.2f} s{bars[0]}, of them {figures['load_seconds']:.2f} s in loading; the "
        f"whole process with one protein {figures['wall_seconds']:.2f} s. Host memory at most {figures['peak_memory_bytes'] / 2**30:.2f} GiB, "
        f"{memory:.2f} times the weights{bars[1]}; {figures['anonymous_bytes'] / 2**30:.2f} GiB of it are its own, the rest mapped files.",
        "",
    ]


def page(results: dict) -> list[str]:
    """All of it."""
    lines = [
        "# seqembed beside its peers on a GPU" + (" (quick)" if results["quick"] else ""),
        "",
        describe(results["machine"]),
        "",
        "seqembed is the whole program, from FASTA files on disk to npz files on disk, the load counted apart; the peers start from token",
        "arrays in memory. Random weights in the real shapes, the same for all; padding does not count; the best of several passes.",
        "Made by `bench/gpu.py`, whose head says what is counted.",
        "",
    ]
    for key, model in results["models"].items():
        lines += [f"## {key}: {model['name']}", ""]
        for name in model["inputs"]:
            lines += speeds(model, name, results["precisions"])
        if roof := model.get("roof"):
            fp8 = f", in FP8 {roof['fp8_tokens_per_second']:,.0f} tokens/s" if roof["fp8_tokens_per_second"] else ""
            lines.append(
                f"Dense products alone: {roof['tflops']:.0f} TFLOP/s{fp8}; the device copies {roof['copy_bytes_per_second'] / 1e12:.2f} TB/s, "
                "read and written counted."
            )
            lines.append("")
        if "load" in model:
            lines += load(model["load"])
        for title, profile in model.get("profiles", {}).items():
            lines += [f"Kernels of {title}, {profile['tokens']:,} tokens:", "", *kernel_table.page(profile["kernels"]), ""]
        if model["failures"]:
            lines += ["Failed:", "", *(f"- {' '.join(failure.split())[:300]}" for failure in model["failures"]), ""]
    return lines[:-1]
