"""Compares graphs for ONNX Runtime's CUDA provider with padded ones: `plain.py MODEL_DIR PLAIN.onnx...`.

A CPU has no PackedMultiHeadAttention, so a plain graph is evaluated operator by operator: those of `com.microsoft` by their
documentation, in numpy, the others by onnx's own reference implementation. The padded graph runs in ONNX Runtime. A plain
graph's inputs are made here from its description, too. Needs onnx, onnxruntime and numpy.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

# Special tokens included. The last one ends in the second half of a power of two, for the maximum's two stretches.
LENGTHS = [3, 17, 70, 1, 33]


def erf_gelu(x):
    wide = x.astype(np.float32)
    return (wide * 0.5 * (1 + np.vectorize(math.erf)(wide / math.sqrt(2)))).astype(x.dtype)


class Gelu(OpRun):
    op_domain = "com.microsoft"

    def _run(self, x, approximate=None):
        assert approximate in (None, "none")
        return (erf_gelu(x),)


class BiasGelu(OpRun):
    op_domain = "com.microsoft"

    def _run(self, x, bias):
        return (erf_gelu(x + bias),)


class FastGelu(OpRun):
    op_domain = "com.microsoft"

    def _run(self, x):
        wide = x.astype(np.float32)
        return ((wide * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))).astype(x.dtype),)


class QuickGelu(OpRun):
    op_domain = "com.microsoft"

    def _run(self, x, alpha=None):
        wide = x.astype(np.float32)
        return ((wide / (1 + np.exp(-alpha * wide))).astype(x.dtype),)


class SkipLayerNormalization(OpRun):
    op_domain = "com.microsoft"

    def _run(self, x, skip, gamma, beta=None, bias=None, epsilon=None):
        # Some families have norms or dense layers without a bias.
        total = x.astype(np.float32) + skip + (0 if bias is None else bias)
        beta = 0 if beta is None else beta
        mean = total.mean(-1, keepdims=True)
        variance = ((total - mean) ** 2).mean(-1, keepdims=True)
        norm = (total - mean) / np.sqrt(variance + epsilon) * gamma + beta
        outputs = (norm, mean, 1 / np.sqrt(variance + epsilon), total)
        return tuple(output.astype(x.dtype) for output in outputs[: len(self.onnx_node.output)])


def rms_norm(x, gamma, epsilon):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * gamma


class SimplifiedLayerNormalization(OpRun):
    # ONNX Runtime has it here, though ONNX does not know it.
    op_domain = ""

    def _run(self, x, gamma, axis=None, epsilon=None, stash_type=None):
        assert axis in (None, -1, x.ndim - 1)
        return (rms_norm(x.astype(np.float32), gamma, epsilon).astype(x.dtype),)


class SkipSimplifiedLayerNormalization(OpRun):
    op_domain = "com.microsoft"

    def _run(self, x, skip, gamma, bias=None, epsilon=None):
        total = x.astype(np.float32) + skip + (0 if bias is None else bias)
        norm = rms_norm(total, gamma, epsilon)
        outputs = (norm, norm, norm, total)
        return tuple(output.astype(x.dtype) for output in outputs[: len(self.onnx_node.output)])


class RotaryEmbedding(OpRun):
    op_domain = "com.microsoft"

    def _run(self, x, position_ids, cos_cache, sin_cache, interleaved=None, num_heads=None, rotary_embedding_dim=None):
        assert interleaved == 1 and not rotary_embedding_dim
        batch, length, hidden = x.shape
        assert position_ids.shape == (batch, length)
        assert length <= len(cos_cache), "the operator refuses this"
        assert hidden == num_heads * 2 * cos_cache.shape[1]
        heads = x.astype(np.float32).reshape(batch, length, num_heads, -1, 2)
        cos, sin = (cache.astype(np.float32)[position_ids][:, :, None] for cache in (cos_cache, sin_cache))
        left, right = heads[..., 0], heads[..., 1]
        rotated = np.stack([left * cos - right * sin, right * cos + left * sin], -1)
        return (rotated.reshape(x.shape).astype(x.dtype),)


class PackedMultiHeadAttention(OpRun):
    op_domain = "com.microsoft"

    def _run(self, query, key, value, _bias, token_offset, starts, added=None, num_heads=None, scale=None):
        kind = query.dtype
        tokens, hidden = query.shape
        batch, length = token_offset.shape
        places = token_offset.reshape(-1)[:tokens]
        assert len(starts) == batch + 1 and starts[-1] == tokens
        padded = []
        for part in (query, key, value):
            rows = np.zeros((batch * length, hidden), np.float32)
            rows[places] = part
            padded.append(rows.reshape(batch, length, num_heads, -1).transpose(0, 2, 1, 3))
        query, key, value = padded
        scores = query @ key.swapaxes(-1, -2) * (scale or 1 / math.sqrt(hidden // num_heads))
        if added is not None:
            assert added.shape == (1, num_heads, length, length) and length % 16 == 0
            scores = scores + added
        beyond = np.arange(length) >= np.diff(starts)[:, None]
        scores = np.where(beyond[:, None, None], -np.inf, scores)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        rows = (weights @ value).transpose(0, 2, 1, 3).reshape(-1, hidden)
        return (rows[places].astype(kind),)


OPERATORS = [
    FastGelu,
    QuickGelu,
    Gelu,
    BiasGelu,
    SkipLayerNormalization,
    SimplifiedLayerNormalization,
    SkipSimplifiedLayerNormalization,
    RotaryEmbedding,
    PackedMultiHeadAttention,
]


def sequences(vocabulary):
    numbers = np.random.default_rng(7)
    return [numbers.integers(0, vocabulary, length) for length in LENGTHS]


def ranges():
    """All but the ends, where there is anything between."""
    return np.array([[min(1, length - 1), max(length - 1, 1)] for length in LENGTHS])


def padded(folder, all_ids):
    ids = np.zeros((len(all_ids), max(LENGTHS)), np.int64)
    for row, sequence in zip(ids, all_ids):
        row[: len(sequence)] = sequence
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    mean, most, tokens = session.run(
        ["mean", "max", "tokens"],
        {"input_ids": ids, "lengths": np.array(LENGTHS, np.int32), "pool_range": ranges()},
    )
    return {"mean": mean, "max": most, "tokens": np.concatenate([row[:n] for row, n in zip(tokens, LENGTHS)])}


def plain_inputs(all_ids):
    total = sum(LENGTHS)
    # Filled up to a multiple of 64 tokens with sequences of which nothing is wanted.
    filler = -total % 64
    lengths = LENGTHS + [filler] * (filler > 0)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    length = max(64, -(-max(lengths) // 16) * 16)
    grid = np.arange(len(lengths) * length).reshape(len(lengths), length)
    real = np.arange(length) < np.array(lengths)[:, None]
    return {
        "input_ids": np.concatenate([*all_ids, np.zeros(filler, int)]).astype(np.int64),
        "position_ids": np.concatenate([np.arange(n) for n in lengths]).astype(np.int64),
        "all_positions": np.arange(length, dtype=np.float32),
        "all_tokens": np.arange(total + filler, dtype=np.int32),
        "token_offset": np.concatenate([grid[real], grid[~real]]).reshape(grid.shape).astype(np.int32),
        "cumulative_sequence_length": starts,
        "pool_range": (ranges() + starts[: len(LENGTHS), None]).astype(np.int32),
    }


def main(folder, graphs):
    folder = Path(folder)
    architecture = json.loads((folder / "seqembed.json").read_text())["architecture"]
    all_ids = sequences(architecture["vocabulary"])
    expected = padded(folder, all_ids)
    given = plain_inputs(all_ids)
    for path in graphs:
        model = onnx.load(path)
        if not any(node.op_type == "SimplifiedLayerNormalization" for node in model.graph.node):
            onnx.checker.check_model(path, full_check=True)
        try:
            onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            raise AssertionError("a CPU has PackedMultiHeadAttention now: use it here")
        except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented as error:
            # All types and shapes were accepted before this.
            assert "PackedMultiHeadAttention" in str(error), error
        kind = next(w.data_type for w in model.graph.initializer if w.name == "embedding")
        half = kind == onnx.TensorProto.FLOAT16
        evaluator = ReferenceEvaluator(model, new_ops=OPERATORS)
        names = [output.name for output in model.graph.output]
        wanted = {entry.name for entry in model.graph.input}
        assert wanted <= set(given), wanted
        found = dict(zip(names, evaluator.run(names, {name: given[name] for name in wanted})))
        for name, value in found.items():
            right = expected[name]
            value = value[: len(right)].astype(np.float32)
            assert value.shape == right.shape, (name, value.shape, right.shape)
            norms = np.linalg.norm(value, axis=1) * np.linalg.norm(right, axis=1)
            cosine = ((value * right).sum(1) / norms).min()
            largest = np.abs(value - right).max()
            print(f"{Path(path).name} {name}: cosine {cosine:.7f}, largest difference {largest:.1e}")
            assert cosine > (0.9999 if half else 0.999999), (path, name, cosine)
            assert largest < (3e-2 if half else 2e-5), (path, name, largest)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
