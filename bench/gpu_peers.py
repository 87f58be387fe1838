"""Runs the other tools for one model on a GPU, and measures the upper limit. gpu.py starts one process per model, so that failures are isolated.

    python bench/gpu_peers.py --model FOLDER --inputs NAME=MANIFEST.. --out FOLDER [--peers NAME..] [--device cuda:0]

Every figure is appended to OUT/peers.jsonl as soon as it is known; OUT/reference-NAME.npz gets the sample's vectors in fp32.

- Token arrays are made and batched beforehand, in pinned memory. What is timed: copying them to the device, the model, pooling, and
  the vectors back in host memory; nothing waits between batches. The first pass (compilation) does not count.
- A peer's token budget is the best of several, tried on an eighth of the sequences. Then it embeds as many sequences, of the
  same lengths, as take about --target seconds; the best of --passes passes counts.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import traceback
from pathlib import Path

import gpu_inputs
import gpu_torch
import gpu_torch_gated
import gpu_transformers
import numpy as np
import torch
from kernel_table import of_profiler

PEERS = {
    "esm2": {
        "transformers": lambda weights: gpu_transformers.Esm2Transformers(weights),
        "compiled-varlen": lambda weights: gpu_torch.Esm2Varlen(weights),
    },
    "dnabert2": {
        "padded-sdpa": lambda weights: gpu_torch.Dnabert2Sdpa(weights, compiled=False),
        "compiled-sdpa": lambda weights: gpu_torch.Dnabert2Sdpa(weights, compiled=True),
        "flex-packed": lambda weights: gpu_torch.Dnabert2FlexPacked(weights),
        "flex-padded": lambda weights: gpu_torch.Dnabert2FlexPadded(weights),
    },
}
GATED = {
    "padded-sdpa": lambda weights: gpu_torch_gated.GatedPadded(weights),
    "compiled-varlen": lambda weights: gpu_torch_gated.GatedVarlen(weights),
}
PEERS["esmc"] = {"transformers": lambda weights: gpu_transformers.EsmcTransformers(weights), **GATED}
PEERS["nucleotidetransformer"] = {"transformers": lambda weights: gpu_transformers.NucleotideTransformers(weights), **GATED}
# The ones that the bar is about; the best of them counts.
COMPILED = {"compiled-varlen", "compiled-sdpa", "flex-packed", "flex-padded"}


class Run:
    """What the peers of a model share."""

    def __init__(self, arguments) -> None:
        self.arguments, self.device = arguments, torch.device(arguments.device)
        self.family = json.loads((arguments.model / "seqembed.json").read_text())["architecture"]["type"]
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self.inputs = dict(pair.split("=", 1) for pair in arguments.inputs)
        gated = self.family in gpu_torch_gated.BEHIND
        self.reference = gpu_torch_gated.reference if gated else gpu_torch.reference
        self.rows: dict[str, list[np.ndarray]] = {}
        self.samples: dict[str, list[int]] = {}
        self.references: dict[str, np.ndarray] = {}
        self.log = (arguments.out / "peers.jsonl").open("a")

    def write(self, **record) -> None:
        self.log.write(json.dumps(record) + "\n")
        self.log.flush()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def batches(self, peer, rows: list[np.ndarray], budget: int) -> list:
        """The rows' batches, and which rows each has."""
        split = gpu_inputs.packed_batches if peer.packed else gpu_inputs.padded_batches
        return [(numbers, peer.batch([rows[i] for i in numbers], budget)) for numbers in split(rows, budget)]

    @torch.inference_mode()
    def embed(self, peer, batches: list) -> list[torch.Tensor]:
        """One pass: the vectors [sequences, hidden] of each batch, on the host."""
        out = []
        for _, batch in batches:
            pooled = peer.step(batch)
            if self.device.type == "cuda":
                host = torch.empty(pooled.shape, dtype=pooled.dtype, pin_memory=True)
                out.append(host.copy_(pooled, non_blocking=True))
            else:
                out.append(pooled)
        self.wait()
        return out

    def seconds(self, peer, batches: list) -> float:
        self.wait()
        start = time.perf_counter()
        self.embed(peer, batches)
        return time.perf_counter() - start

    def vectors(self, peer, rows: list[np.ndarray], budget: int) -> np.ndarray:
        batches = self.batches(peer, rows, budget)
        out = None
        for (numbers, _), pooled in zip(batches, self.embed(peer, batches)):
            out = np.empty((len(rows), pooled.shape[1]), np.float32) if out is None else out
            out[numbers] = pooled.float().numpy()
        return out

    def prepare(self) -> None:
        """Token ids of all inputs, and the right vectors of a sample of each."""
        weights = gpu_torch.Weights(self.arguments.model, self.device, torch.float32)
        for name, manifest in self.inputs.items():
            start = time.perf_counter()
            ids, sequences = gpu_inputs.read(Path(manifest))
            self.rows[name] = rows = gpu_inputs.token_rows(self.arguments.model, self.family, sequences)
            tokens = sum(map(len, rows))
            tokenized = time.perf_counter()
            self.samples[name] = sample = gpu_inputs.spread(rows, self.arguments.sample)
            self.references[name] = vectors = self.reference(weights, [rows[i] for i in sample])
            np.savez(self.arguments.out / f"reference-{name}.npz", ids=np.array([ids[i] for i in sample]), embeddings=vectors)
            self.write(kind="input", input=name, sequences=len(rows), tokens=tokens, sample=len(sample))
            print(
                f"    {name}: {len(rows):,} sequences, {tokens:,} tokens (read and tokenised in {tokenized - start:.1f} s; "
                f"{len(sample)} embedded in fp32 in {time.perf_counter() - tokenized:.1f} s)",
                flush=True,
            )

    def compare(self, peer, name: str, budget: int) -> dict:
        """The peer's vectors of the sample against the right ones."""
        vectors = self.vectors(peer, [self.rows[name][i] for i in self.samples[name]], budget).astype(np.float64)
        right = self.references[name].astype(np.float64)
        cosines = (vectors * right).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(right, axis=1)
        return {"min_cosine": float(cosines.min())}

    def measure(self, peer_name: str, peer, name: str) -> None:
        rows, arguments = self.rows[name], self.arguments
        began = time.perf_counter()
        part = [rows[i] for i in gpu_inputs.thinned(rows, 1 / 8)]
        tokens = sum(map(len, part))
        tried = {}
        for budget in arguments.budgets or peer.budgets:
            try:
                batches = self.batches(peer, part, budget)
                self.embed(peer, batches)
                tried[budget] = tokens / min(self.seconds(peer, batches) for _ in range(2))
            except torch.OutOfMemoryError:
                self.free()
        if not tried:
            raise RuntimeError("no budget fits the memory")
        budget = max(tried, key=tried.get)
        share = min(1.0, arguments.target * tried[budget] / sum(map(len, rows)))
        chosen = [rows[i] for i in gpu_inputs.thinned(rows, share)]
        tokens = sum(map(len, chosen))
        batches = self.batches(peer, chosen, budget)
        self.embed(peer, batches)
        passes = [self.seconds(peer, batches) for _ in range(arguments.passes)]
        speed = tokens / min(passes)
        figures = {"tokens_per_second": speed, "tokens": tokens, "sequences": len(chosen), "batches": len(batches)}
        figures |= {"budget": budget, "budgets_tried": tried, "passes_seconds": passes, "compiled": peer_name in COMPILED}
        figures |= self.compare(peer, name, budget) | compiler_counts()
        if self.device.type == "cuda":
            figures["peak_gpu_mib"] = torch.cuda.max_memory_allocated() / 2**20
        self.write(kind="peer", peer=peer_name, input=name, **figures)
        print(
            f"    {peer_name}, {name}: {speed:,.0f} tokens/s ({budget} tokens a batch, cosine {figures['min_cosine']:.6f}; "
            f"{time.perf_counter() - began:.0f} s in all)",
            flush=True,
        )
        if arguments.profile and peer_name in COMPILED:
            _, middle = batches[len(batches) // 2]
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                self.embed(peer, [(None, middle)])
            self.write(kind="profile", peer=peer_name, input=name, tokens=middle.tokens, kernels=of_profiler(profile))

    def roof(self) -> None:
        """The dense products of the model alone, in half precision and in FP8, and how fast the device copies."""
        if self.device.type != "cuda":
            return
        sizes = json.loads((self.arguments.model / "seqembed.json").read_text())["architecture"]
        hidden, inner = sizes["hidden"], sizes["intermediate"]
        up = inner if self.family == "esm2" else 2 * inner  # gated in the others
        tokens, seconds, fp8 = 32768, 0.0, 0.0
        for out, width in ((3 * hidden, hidden), (hidden, hidden), (up, hidden), (hidden, inner)):
            x = torch.randn(tokens, width, device=self.device).half()
            weight = (torch.randn(out, width, device=self.device) / width**0.5).half()
            seconds += timed(lambda x=x, weight=weight: x @ weight.T)
            try:
                a, b, one = x.to(torch.float8_e4m3fn), weight.to(torch.float8_e4m3fn), torch.ones((), device=self.device)
                product = lambda a=a, b=b, one=one: torch._scaled_mm(a, b.T, one, one, out_dtype=torch.float16, use_fast_accum=True)  # noqa: E731
                fp8 += timed(product)
            except (RuntimeError, TypeError, AttributeError) as error:
                print(f"    FP8 products: {str(error)[:200]}", flush=True)
                fp8 = float("nan")
        source = torch.empty(2**31, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        copied = 2 * source.numel() / timed(lambda: target.copy_(source))
        flops = 2 * tokens * (4 * hidden * hidden + (up + inner) * hidden)
        roof = tokens / (seconds * sizes["layers"])
        fp8_roof = tokens / (fp8 * sizes["layers"]) if fp8 == fp8 else None
        self.write(
            kind="roof", tokens_per_second=roof, tflops=flops / seconds / 1e12, fp8_tokens_per_second=fp8_roof, copy_bytes_per_second=copied
        )
        print(f"    dense products alone: {roof:,.0f} tokens/s ({flops / seconds / 1e12:.0f} TFLOP/s); FP8: {fp8_roof or 0:,.0f}", flush=True)


def timed(function, warm: int = 3, repeats: int = 20) -> float:
    """Seconds of one call on the device."""
    for _ in range(warm):
        function()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / repeats


def compiler_counts() -> dict:
    """How often torch.compile gave up or compiled again: both should stay small."""
    from torch._dynamo.utils import counters

    return {"graph_breaks": sum(counters["graph_break"].values()), "graphs": counters["stats"].get("unique_graphs", 0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--inputs", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--peers", nargs="*", help="(default: all of the model's)")
    parser.add_argument("--budgets", nargs="*", type=int)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--target", type=float, default=2.5, help="duration of a pass in seconds")
    parser.add_argument("--sample", type=int, default=128, help="number of sequences also embedded in fp32")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    # fp32 is fp32.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch._dynamo.config.recompile_limit = 64
    run = Run(arguments)
    if run.device.type == "cpu":
        gpu_torch.add_cpu_kernel()
    failed = False

    def attempt(what: str, function) -> bool:
        """Runs a part; a failure is told and written, and the next part goes on."""
        nonlocal failed
        try:
            function()
            return True
        except Exception as error:  # whatever it is: one peer must not cost the others
            failed = True
            traceback.print_exc()
            print(f"    {what} FAILED: {type(error).__name__}: {str(error)[:500]}", flush=True)
            run.write(kind="failure", what=what, error=f"{type(error).__name__}: {error}"[:2000])
            return False
        finally:
            run.free()

    if not attempt("inputs and fp32 vectors", run.prepare):
        sys.exit(1)
    attempt("roof", run.roof)
    weights = gpu_torch.Weights(arguments.model, run.device, run.dtype)
    names = arguments.peers if arguments.peers is not None else list(PEERS[run.family])
    for peer_name in names:
        if peer_name not in PEERS[run.family]:
            continue
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        made = []
        # Releases of transformers before 5.24 have no ESM C.
        if not attempt(peer_name, lambda: made.append(PEERS[run.family][peer_name](weights))):  # noqa: B023
            continue
        peer = made.pop()
        for name in run.inputs:
            done = attempt(f"{peer_name}, {name}", lambda name=name: run.measure(peer_name, peer, name))
            if not done and peer_name == "compiled-varlen" and not peer.contiguous:
                # Views into the product are what should work; copies are what is sure to.
                peer = type(peer)(weights, contiguous=True)
                attempt(f"{peer_name} with copies, {name}", lambda name=name: run.measure(peer_name, peer, name))
        del peer
        run.free()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
