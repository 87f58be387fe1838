"""Benchmark of seqembed and other tools on a GPU: tokens per second, with random weights in the real shapes, in one run on one machine.

    python bench/gpu.py [--models dnabert2 650M 3B] [--inputs NAME..] [--precisions fp16] [--quick] [--profile] [--seqembed PATH]

Needs PyTorch with CUDA, transformers, tokenizers, and an ONNX Runtime with the CUDA provider where seqembed finds it. About a quarter
of an hour on an H100, with --quick about 4 minutes.

- seqembed: the whole program, FASTA files on disk (a manifest of 200) to npz files on disk. Tokens a second are those of its
  report.json over its seconds without the load and without finding and waking the device, which the peers' processes have done before. The best of --runs runs, each a process of its own.
- The peers (bench/gpu_peers.py, bench/gpu_torch.py) start from token arrays in memory, which are batched beforehand:
  transformers with SDPA, sorted by length, at its best of several token budgets (DNABERT-2, which it lacks: plain PyTorch in its manner;
  ESM C and Nucleotide Transformer: both); PyTorch written by hand, whole layers under torch.compile: packed with varlen_attn (all but DNABERT-2), padded SDPA with a bias or
  flex_attention, padded or packed (DNABERT-2: the best of them is the bar). They embed as many sequences as
  take about as long as a run of seqembed, of the same lengths, once to warm up and then for the record.
- The upper limit: only the matrix products of the model.
- Precision: a sample of each input, of all lengths, against PyTorch in fp32, one sequence at a time: the worst cosine.
- All load the same weights, from the folder of `seqembed export --random`. Tokens include the special ones; padding does not count.
- --profile adds tables of kernels, of the compiled peers and (by Nsight Compute) of seqembed.

Parts that fail are reported and skipped. Writes bench/results/gpu-GPU.json and .md (gpu-quick-GPU with --quick).
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import common
import gpu_inputs
import gpu_load
import gpu_ours
import gpu_page


@dataclass(frozen=True)
class Model:
    """A model of the benchmark."""

    name: str
    """As `seqembed models` has it."""
    tokens: dict[str, int]
    """Inputs, and how many tokens of each. Where there are bars, seven to ten seconds of an H100's work, of which the first and the last
    batch are little."""
    bars: dict[str, float] = field(default_factory=dict)
    """What seqembed's speed over that of the best compiled peer, and over transformers', should be."""
    load_bar: bool = False


MODELS = {
    "dnabert2": Model("DNABERT-2", {"dna-500": 24_000_000, "dna-2-5k": 20_000_000}, {"compiled": 1.4}),
    "650M": Model("esm2_t33_650M_UR50D", {"proteins": 4_000_000, "frames": 3_000_000}, {"compiled": 1.25, "transformers": 2.2}),
    "3B": Model("esm2_t36_3B_UR50D", {"proteins": 1_000_000, "frames": 700_000}, {"compiled": 1.1, "transformers": 1.75}, True),
    "150M": Model("esm2_t30_150M_UR50D", {"proteins": 3_000_000, "frames": 3_000_000}),
    "esmc-600M": Model("ESMC-600M", {"proteins": 4_000_000, "frames": 3_000_000}, {"compiled": 1.25, "transformers": 2.0}),
    "nt-v2-500M": Model("NT-v2-500M", {"dna-6k": 4_000_000}, {"compiled": 1.25, "transformers": 2.0}),
    "8M": Model("esm2_t6_8M_UR50D", {"proteins": 10_000_000, "frames": 10_000_000}),
}
DEFAULT_MODELS = ["dnabert2", "650M", "3B"]


class Clock:
    """The time that is left."""

    def __init__(self, minutes: float) -> None:
        self.start, self.minutes = time.perf_counter(), minutes

    def left(self) -> float:
        return 60 * self.minutes - (time.perf_counter() - self.start)

    def say(self, text: str) -> None:
        print(f"[{time.perf_counter() - self.start:5.0f} s] {text}", flush=True)


def peers(arguments, clock: Clock, folder: Path, manifests: dict[str, Path], out: Path) -> list[dict]:
    """All that the peers' process found out, however far it came."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, Path(__file__).with_name("gpu_peers.py"), "--model", folder, "--out", out, "--device", arguments.device]
    command += ["--inputs", *(f"{name}={manifest}" for name, manifest in manifests.items()), "--passes", arguments.passes]
    command += ["--target", arguments.target, "--sample", arguments.sample]
    if arguments.peers is not None:
        command += ["--peers", *arguments.peers]
    if arguments.budgets:
        command += ["--budgets", *arguments.budgets]
    if arguments.profile:
        command += ["--profile"]
    try:
        done = subprocess.run([str(part) for part in command], timeout=max(30.0, clock.left()))
        if done.returncode != 0:
            clock.say(f"the peers ended with exit code {done.returncode}: see above")
    except subprocess.TimeoutExpired:
        clock.say("the peers ran out of time")
    lines = out / "peers.jsonl"
    return [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []


def ours(arguments, clock: Clock, seqembed, folder: Path, manifest: Path, precision: str, reference: Path, tokens: int | None) -> dict:
    """The runs of seqembed on one input."""
    out = seqembed.work / "out"
    runs = []
    for _ in range(arguments.runs):
        if runs and clock.left() < 2 * runs[-1]["wall_seconds"]:
            break
        runs.append(seqembed.run(manifest, folder, out, precision))
    best = max(runs, key=lambda run: run["tokens_per_second"])
    figures = {"tokens_per_second": best["tokens_per_second"], "tokens": best["report"]["totals"]["tokens"], "runs": runs}
    figures |= gpu_ours.compare(out, reference)
    if tokens and tokens != figures["tokens"]:
        figures["tokens_expected"] = tokens
    shown = f"cosine {figures['min_cosine']:.6f}" if "min_cosine" in figures else "not compared"
    took = ", ".join(f"{run['seconds']:.2f} s + load {run['load_seconds']:.2f} s of {run['wall_seconds']:.2f} s" for run in runs)
    print(
        f"    seqembed {precision}: {figures['tokens_per_second']:,.0f} tokens/s (runs {took}; {shown}; "
        f"{figures['vectors_not_finite']} not finite)",
        flush=True,
    )
    return figures


def bench(arguments, clock: Clock, seqembed, key: str, folder: Path, save) -> None:
    """All of one model; `save` keeps what is known so far."""
    model, work = MODELS[key], arguments.work
    names = [name for name in model.tokens if not arguments.inputs or name in arguments.inputs]
    manifests = {}
    for name in names:
        tokens = round(model.tokens[name] * arguments.scale)
        manifests[name] = gpu_inputs.make(work / f"inputs-{name}-{tokens}", name, tokens, arguments.files)
    clock.say(f"{key}: inputs are there")
    figures = {"name": model.name, "bars": model.bars, "inputs": {name: {"ours": {}, "peers": {}} for name in names}, "failures": []}
    save(figures)

    def fail(what: str, error: Exception) -> None:
        traceback.print_exc()
        print(f"    {what} FAILED: {error}", flush=True)
        figures["failures"].append(f"{what}: {type(error).__name__}: {str(error)[:1000]}")

    # The sequences depend on how many there are.
    peers_out = work / f"peers-{key}-{arguments.scale}"
    if arguments.with_peers:
        for record in peers(arguments, clock, folder, manifests, peers_out):
            kind = record.pop("kind")
            if kind == "peer":
                figures["inputs"][record.pop("input")]["peers"][record.pop("peer")] = record
            elif kind == "input":
                figures["inputs"][record.pop("input")] |= record
            elif kind == "profile":
                figures.setdefault("profiles", {})[f"{record['peer']}, {record['input']}"] = record
            elif kind == "roof":
                figures["roof"] = record
            else:
                figures["failures"].append(f"{record['what']}: {record['error']}")
        save(figures)
        clock.say(f"{key}: peers are done")
    for name in names if seqembed else []:
        for precision in arguments.precisions:
            try:
                reference, tokens = peers_out / f"reference-{name}.npz", figures["inputs"][name].get("tokens")
                print(f"    {name}", flush=True)
                figures["inputs"][name]["ours"][precision] = ours(
                    arguments, clock, seqembed, folder, manifests[name], precision, reference, tokens
                )
            except Exception as error:  # the next part may do
                fail(f"seqembed {precision}, {name}", error)
            save(figures)
            if arguments.profile and clock.left() > 60:
                try:
                    few = gpu_inputs.make(work / f"inputs-{name}-profile", name, arguments.profile_tokens, 1)
                    kernels = seqembed.profile(few, folder, work / "out", precision, arguments.profile_options)
                    figures.setdefault("profiles", {})[f"seqembed {precision}, {name}"] = {
                        "tokens": arguments.profile_tokens,
                        "kernels": kernels,
                    }
                except Exception as error:
                    fail(f"profile of seqembed {precision}, {name}", error)
    if seqembed and "frames" in model.tokens:
        try:
            figures["load"] = gpu_load.measure(seqembed, folder, arguments.precisions[0], 2) | {"bar": model.load_bar}
        except Exception as error:
            fail("load", error)
    save(figures)
    clock.say(f"{key}: done")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = lambda text: text.replace(",", " ").split()  # noqa: E731
    parser.add_argument("--models", type=listed, default=DEFAULT_MODELS, help=f"of {', '.join(MODELS)}, with commas")
    parser.add_argument("--inputs", type=listed, help=f"of {', '.join(gpu_inputs.KINDS)} (default: all of a model's)")
    parser.add_argument("--peers", type=listed, help="transformers, compiled-varlen, padded-sdpa, compiled-sdpa, flex-packed, flex-padded")
    parser.add_argument("--no-peers", dest="with_peers", action="store_false", help="run only seqembed, without comparison")
    parser.add_argument("--quick", action="store_true", help="shorter passes, a single token budget for the other tools, no reading frames")
    parser.add_argument("--profile", action="store_true", help="add tables of kernels")
    parser.add_argument("--profile-options", type=shlex.split, default=[], help="options (one text) with which seqembed leaves a trace, instead of ncu")
    parser.add_argument("--profile-tokens", type=int, default=32_000, help="number of tokens of the profiled run of seqembed")
    parser.add_argument("--precisions", "--precision", type=listed, default=["fp16"], help="precisions of seqembed; the first one is compared")
    parser.add_argument("--device", default="cuda:0", help="the device (cpu only for testing this program)")
    parser.add_argument("--seqembed", type=Path, default=common.DEFAULT_EXECUTABLE, help="the seqembed executable (a release build)")
    parser.add_argument("--no-seqembed", dest="seqembed", action="store_const", const=None, help="run only the other tools")
    parser.add_argument("--seqembed-options", type=shlex.split, default=[], help="one text (--seqembed-options='--x 1'), passed on to `seqembed run`")
    parser.add_argument("--export-options", type=shlex.split, default=[], help="likewise, passed on to `seqembed export`")
    parser.add_argument("--scale", type=float, help="factor on the number of tokens of each input")
    parser.add_argument("--files", type=int, default=200, help="number of files in the manifest")
    parser.add_argument("--runs", type=int, help="number of runs of seqembed")
    parser.add_argument("--passes", type=int, help="number of passes of each tool")
    parser.add_argument("--target", type=float, help="duration of a pass in seconds")
    parser.add_argument("--budgets", nargs="*", type=int, help="numbers of tokens per batch to try for the other tools")
    parser.add_argument("--sample", type=int, help="number of sequences per input whose vectors are compared")
    parser.add_argument("--minutes", type=float, default=20.0, help="time limit in minutes; parts not started by then are skipped")
    parser.add_argument("--update", type=Path, metavar="JSON", help="copy models that are not measured now from this earlier result")
    parser.add_argument("--work", type=Path, default=common.DEFAULT_WORK / "gpu", help="weights, inputs and outputs")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    arguments = parser.parse_args()
    quick = {"scale": 0.6, "runs": 2, "passes": 2, "target": 1.2, "sample": 64, "budgets": [32768]}
    # Passes about as long as seqembed's runs: at its power limit a GPU lowers its clocks within seconds.
    full = {"scale": 1.0, "runs": 3, "passes": 2, "target": 5.0, "sample": 128}
    for name, value in (quick if arguments.quick else full).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.quick and arguments.inputs is None:
        arguments.inputs = ["proteins", "dna-500", "dna-2-5k", "dna-6k"]
    if unknown := [key for key in arguments.models if key not in MODELS]:
        parser.error(f"no such model: {', '.join(unknown)}")
    if unknown := [name for name in arguments.inputs or [] if name not in gpu_inputs.KINDS]:
        parser.error(f"no such input: {', '.join(unknown)}")
    if arguments.seqembed and not arguments.seqembed.exists():
        parser.error(f"{arguments.seqembed} is not there: build it (cargo build --release), or give --seqembed PATH")
    return arguments


def main() -> None:
    arguments = options()
    clock = Clock(arguments.minutes)
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.results.mkdir(parents=True, exist_ok=True)
    machine = common.machine() | {"gpu": gpu_ours.gpu_state()}
    print(gpu_page.describe(machine), flush=True)
    executable = (arguments.seqembed or common.DEFAULT_EXECUTABLE).resolve()
    # With the weights in 16 bits beside them: else the first run makes that file.
    half = "bf16" if "bf16" in arguments.precisions else "fp16"
    arguments.export_options = ["--precision", half, *arguments.export_options] if arguments.device != "cpu" else arguments.export_options
    maker = gpu_ours.Seqembed(executable, arguments.device, arguments.seqembed_options, arguments.export_options, arguments.work)
    # The big ones take long: all begin now, and are waited for when their turn comes.
    exports = {key: maker.export(MODELS[key].name) for key in arguments.models}
    results = {"machine": machine, "quick": arguments.quick, "precisions": arguments.precisions, "models": {}}
    results["options"] = {"scale": arguments.scale, "files": arguments.files, "seqembed": arguments.seqembed_options}
    stem = arguments.results / f"{'gpu-quick' if arguments.quick else 'gpu'}-{common.gpu_slug(machine)}"

    if arguments.update and arguments.update.exists():
        earlier = json.loads(arguments.update.read_text())
        if earlier["machine"]["gpu"].get("name") != machine["gpu"].get("name"):
            raise SystemExit(f"{arguments.update} is of another GPU: {earlier['machine']['gpu'].get('name')}")
        results["models"] |= {key: figures for key, figures in earlier["models"].items() if key not in arguments.models}

    def save(key: str, figures: dict) -> None:
        results["models"][key] = figures
        results["models"] = {key: results["models"][key] for key in MODELS if key in results["models"]}
        results["gpu_after"] = gpu_ours.gpu_state()
        stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
        stem.with_suffix(".md").write_text("\n".join(gpu_page.page(results)) + "\n")

    for key in arguments.models:
        folder, export = exports[key]
        if export and export.wait() != 0:
            print(f"{key} FAILED: {(arguments.work / f'export-{MODELS[key].name}.log').read_text()[-2000:]}", flush=True)
            continue
        clock.say(f"{key}: weights are there")
        if clock.left() < 30:
            clock.say(f"{key}: no time is left for it")
            continue
        try:
            bench(arguments, clock, maker if arguments.seqembed else None, key, folder, lambda figures, key=key: save(key, figures))
        except Exception:  # the next model may do
            traceback.print_exc()
    if not results["models"]:
        raise SystemExit("nothing was measured")
    print("\n" + "\n".join(gpu_page.page(results)))
    clock.say(f"written to {stem}.json and .md")


if __name__ == "__main__":
    main()
