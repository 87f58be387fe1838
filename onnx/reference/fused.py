"""Compares packed and fused graphs for GPUs with padded ones: `fused.py MODEL_DIR LEAST_COSINE GRAPH.onnx...`.

The operators of the domain `seqembed`, of which these graphs are made, are written down here a second time, in numpy, without a look at
the kernels: what `onnx/README.md` says of them. The weights are those of the folded file, in 16 bits; what is computed from them is
rounded to 16 bits wherever it leaves an operator, and in FP8 to e4m3 (of ml_dtypes) in feed-forward layers. The padded graph runs in
ONNX Runtime in fp32. Needs onnx, onnxruntime, ml_dtypes and numpy.
"""

import json
import math
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from plain import LENGTHS, erf_gelu, padded, ranges, sequences


def wide(*arrays):
    return [array.astype(np.float32) for array in arrays]


def deviation(moments, width, epsilon):
    """One over the deviation of each row, and its mean, as columns."""
    total, squares = moments.sum(1).T[:, :, None]
    mean = total / width
    return 1 / np.sqrt(squares / width - mean**2 + epsilon), mean


def moments_of(rows):
    return np.stack([rows.sum(1), (rows**2).sum(1)], -1)[:, None].astype(np.float32)


class TokenRows(OpRun):
    op_domain = "seqembed"

    def _run(self, table, ids):
        return (table[ids],)


class LayerNorm(OpRun):
    op_domain = "seqembed"

    def _run(self, x, gamma, beta, epsilon=None):
        rows, gamma, beta = wide(x, gamma, beta)
        scale, mean = deviation(moments_of(rows), x.shape[1], epsilon)
        return (((rows - mean) * scale * gamma + beta).astype(x.dtype),)


class SkipLayerNorm(OpRun):
    op_domain = "seqembed"

    def _run(self, x, skip, gamma, beta, bias, epsilon=None):
        x, skip, gamma, beta, bias = wide(x, skip, gamma, beta, bias)
        total = x + skip + bias
        deviations = total - total.mean(1, keepdims=True)
        norm = deviations / np.sqrt((deviations**2).mean(1, keepdims=True) + epsilon) * gamma + beta
        half = self.onnx_node.output
        return (norm.astype(np.float16), total.astype(np.float16))[: len(half)]


class RowMoments(OpRun):
    op_domain = "seqembed"

    def _run(self, x):
        return (moments_of(x.astype(np.float32)),)


def product(x, weight):
    rows = (x @ weight.T).astype(np.float16)
    assert np.isfinite(rows).all(), "it must fit before it is divided by the deviation"
    return rows.astype(np.float32)


def norm_dense(x, moments, weight, epsilon, gain):
    return product(*wide(x, weight)) * deviation(moments, x.shape[1], epsilon)[0] * gain


class NormDense(OpRun):
    op_domain = "seqembed"

    def _run(self, x, moments, weight, epsilon=None, gain=None):
        return (norm_dense(x, moments, weight, epsilon, gain).astype(x.dtype),)


class NormDenseGelu(OpRun):
    op_domain = "seqembed"

    def _run(self, x, moments, weight, bias, epsilon=None, gain=None):
        return (erf_gelu(norm_dense(x, moments, weight, epsilon, gain) + bias).astype(x.dtype),)


class NormDenseGeglu(OpRun):
    op_domain = "seqembed"

    def _run(self, x, moments, weight, bias, epsilon=None, gain=None):
        gate, value = np.split(norm_dense(x, moments, weight, epsilon, gain) + bias, 2, axis=1)
        return ((erf_gelu(gate) * value).astype(x.dtype),)


def silu(x):
    return x / (1 + np.exp(-x))


class NormDenseSwiglu(OpRun):
    op_domain = "seqembed"

    def _run(self, x, moments, weight, bias, epsilon=None, gain=None):
        gate, value = np.split(norm_dense(x, moments, weight, epsilon, gain) + bias, 2, axis=1)
        return ((silu(gate) * value).astype(x.dtype),)


class BiasGelu(OpRun):
    op_domain = "seqembed"

    def _run(self, x, bias):
        return (erf_gelu(sum(wide(x, bias))).astype(x.dtype),)


class Geglu(OpRun):
    op_domain = "seqembed"

    def _run(self, x):
        gate, value = np.split(*wide(x), 2, axis=1)
        return ((erf_gelu(gate) * value).astype(x.dtype),)


class Swiglu(OpRun):
    op_domain = "seqembed"

    def _run(self, x):
        gate, value = np.split(*wide(x), 2, axis=1)
        return ((silu(gate) * value).astype(x.dtype),)


class NormDenseRotary(OpRun):
    op_domain = "seqembed"

    def _run(self, x, moments, weight, bias, angles, epsilon=None, gain=None):
        tokens, hidden = x.shape
        half = angles.shape[1] // 2
        rows = norm_dense(x, moments, weight, epsilon, gain)
        rows[:, : 2 * hidden] += bias
        heads = rows[:, : 2 * hidden].reshape(tokens, -1, 2, half)
        cos, sin = np.moveaxis(angles.reshape(tokens, 1, half, 2), -1, 0)
        left, right = heads[:, :, 0], heads[:, :, 1]
        turned = np.stack([left * cos - right * sin, right * cos + left * sin], 2)
        return (np.concatenate([turned.reshape(tokens, -1), rows[:, 2 * hidden :]], 1).astype(x.dtype),)


def residual(x, weight, bias, skip):
    x, weight, bias = wide(x, weight, bias)
    total = x @ weight.T + bias + skip
    return total, moments_of(total)


class DenseResidual(OpRun):
    op_domain = "seqembed"

    def _run(self, x, weight, bias, skip):
        total, moments = residual(x, weight, bias, skip.astype(np.float32))
        return total.astype(x.dtype), moments


class DenseResidualNorm(OpRun):
    op_domain = "seqembed"

    def _run(self, x, weight, bias, skip, moments, gamma, epsilon=None):
        skip = skip.astype(np.float32)
        scale, mean = deviation(moments, skip.shape[1], epsilon)
        total, moments = residual(x, weight, bias, (skip - mean) * scale * gamma)
        return total.astype(x.dtype), moments


def eights(array):
    """Bytes as the numbers that they are."""
    return array.view(ml_dtypes.float8_e4m3fn).astype(np.float32)


def handed_on(rows):
    """What goes from one dense layer of a feed-forward layer to the other: half as large, and each 16 columns in the order of the
    tensor cores' registers."""
    order = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]
    rows = (rows / 2).reshape(len(rows), -1, 16)[:, :, order].reshape(rows.shape)
    assert abs(rows).max() <= 448
    return rows.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)


class QuantizeRows(OpRun):
    op_domain = "seqembed"

    def _run(self, x, moments, epsilon=None):
        x = x.astype(np.float32)
        scale = 2 ** np.floor(np.log2(4 / np.sqrt((x**2).mean(1, keepdims=True))))
        factors = deviation(moments, x.shape[1], epsilon)[0] / scale
        return (x * scale).astype(ml_dtypes.float8_e4m3fn).view(np.uint8), factors[:, 0].astype(np.float32)


class NormDenseGeluFp8(OpRun):
    op_domain = "seqembed"

    def _run(self, x, factors, weight, bias, gain=None):
        return (handed_on(erf_gelu(product(eights(x), eights(weight)) * factors[:, None] * gain + bias)),)


class NormDenseSwigluFp8(OpRun):
    op_domain = "seqembed"

    def _run(self, x, factors, weight, bias, gain=None):
        both = product(eights(x), eights(weight)) * factors[:, None] * gain + bias
        gate, value = np.split(both, 2, axis=1)
        return (handed_on(silu(gate) * value),)


class DenseResidualFp8(OpRun):
    op_domain = "seqembed"

    def _run(self, x, weight, bias, skip, gain=None):
        total, moments = residual(eights(x) * gain, eights(weight), bias, skip.astype(np.float32))
        return total.astype(skip.dtype), moments


def positions(starts):
    return np.concatenate([np.arange(n) for n in np.diff(starts)])


class Positions(OpRun):
    op_domain = "seqembed"

    def _run(self, starts, _ids):
        return (positions(starts).astype(np.int64),)


def angles_of(starts, head, base):
    angles = positions(starts)[:, None] * base ** (-np.arange(0, head, 2) / head)
    return np.stack([np.cos(angles), np.sin(angles)], -1).reshape(len(angles), head).astype(np.float32)


class RotaryAngles(OpRun):
    op_domain = "seqembed"

    def _run(self, starts, _ids, head=None, rotary_base=None):
        return (angles_of(starts, head, rotary_base),)


def attention(queries, keys, values, starts, heads, slopes=None):
    out = np.empty_like(values)
    head = values.shape[1] // heads
    for first, end in zip(starts, starts[1:]):
        for number in range(heads):
            at = slice(number * head, (number + 1) * head)
            scores = queries[first:end, at] @ keys[first:end, at].T / math.sqrt(head)
            if slopes is not None:
                places = np.arange(end - first)
                scores = scores - slopes[number] * abs(places[:, None] - places)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            out[first:end, at] = weights / weights.sum(1, keepdims=True) @ values[first:end, at]
    return out


class PreRotatedAttention(OpRun):
    op_domain = "seqembed"

    def _run(self, qkv, starts, num_heads=None):
        return (attention(*np.split(*wide(qkv), 3, axis=1), starts, num_heads).astype(qkv.dtype),)


class SplitAttention(OpRun):
    op_domain = "seqembed"

    def _run(self, queries_keys, qkv, starts, num_heads=None):
        queries, keys = np.split(*wide(queries_keys), 2, axis=1)
        values = np.split(*wide(qkv), 3, axis=1)[2]
        return (attention(queries, keys, values, starts, num_heads).astype(qkv.dtype),)


def with_bias(qkv, bias):
    queries, keys, values = np.split(*wide(qkv), 3, axis=1)
    query_bias, key_bias = np.split(*wide(bias), 2)
    return queries + query_bias, keys + key_bias, values


class Attention(OpRun):
    op_domain = "seqembed"

    # `onnx` hands over the attributes of its own operator of this name, too.
    def _run(self, qkv, bias, starts, num_heads=None, **_others):
        return (attention(*with_bias(qkv, bias), starts, num_heads).astype(qkv.dtype),)


class AlibiAttention(OpRun):
    op_domain = "seqembed"

    def _run(self, qkv, bias, slopes, starts, num_heads=None):
        return (attention(*with_bias(qkv, bias), starts, num_heads, slopes).astype(qkv.dtype),)


class RotaryAttention(OpRun):
    op_domain = "seqembed"

    def _run(self, qkv, bias, starts, num_heads=None, rotary_base=None):
        queries, keys, values = with_bias(qkv, bias)
        head = queries.shape[1] // num_heads
        cos, sin = np.moveaxis(angles_of(starts, head, rotary_base).reshape(-1, 1, head // 2, 2), -1, 0)

        def turn(rows):
            left, right = np.moveaxis(rows.reshape(len(rows), num_heads, 2, -1), 2, 0)
            return np.stack([left * cos - right * sin, right * cos + left * sin], 2).reshape(rows.shape)

        out = attention(turn(queries), turn(keys), values, starts, num_heads).astype(qkv.dtype)
        return (out, out[:0])[: len(self.onnx_node.output)]


class QueryKeyNormRotary(OpRun):
    op_domain = "seqembed"

    def _run(self, qkv, bias, query_gamma, key_gamma, angles, epsilon=None):
        both = with_bias(qkv, bias)[:2]
        half = angles.shape[1] // 2
        cos, sin = np.moveaxis(angles.reshape(len(qkv), 1, half, 2), -1, 0)
        out = []
        for rows, gamma in zip(both, wide(query_gamma, key_gamma)):
            rows = rows - rows.mean(1, keepdims=True)
            rows = rows / np.sqrt((rows**2).mean(1, keepdims=True) + epsilon) * gamma
            left, right = np.moveaxis(rows.reshape(len(rows), -1, 2, half), 2, 0)
            out.append(np.stack([left * cos - right * sin, right * cos + left * sin], 2).reshape(rows.shape))
        return (np.concatenate(out, 1).astype(qkv.dtype),)


class PoolMean(OpRun):
    op_domain = "seqembed"

    def _run(self, tokens, bounds):
        return (np.stack([tokens[a:b].astype(np.float32).mean(0) for a, b in bounds]),)


class PoolMax(OpRun):
    op_domain = "seqembed"

    def _run(self, tokens, bounds):
        return (np.stack([tokens[a:b].astype(np.float32).max(0) for a, b in bounds]),)


OPERATORS = [
    operator
    for operator in list(globals().values())
    if isinstance(operator, type) and getattr(operator, "op_domain", None) == "seqembed"
]


def main(folder, least, graphs):
    folder = Path(folder)
    architecture = json.loads((folder / "seqembed.json").read_text())["architecture"]
    all_ids = sequences(architecture["vocabulary"])
    expected = padded(folder, all_ids)
    starts = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int32)
    given = {
        "input_ids": np.concatenate(all_ids).astype(np.int64),
        "sequence_starts": starts,
        "pool_range": (ranges() + starts[:-1, None]).astype(np.int32),
    }
    for path in graphs:
        model = onnx.load(path)
        evaluator = ReferenceEvaluator(model, new_ops=OPERATORS)
        names = [output.name for output in model.graph.output]
        for name, value in zip(names, evaluator.run(names, given)):
            right = expected[name]
            value = value.astype(np.float32)
            assert value.shape == right.shape, (name, value.shape, right.shape)
            norms = np.linalg.norm(value, axis=1) * np.linalg.norm(right, axis=1)
            cosine = ((value * right).sum(1) / norms).min()
            largest = np.abs(value - right).max()
            print(f"{Path(path).name} {name}: cosine {cosine:.7f}, largest difference {largest:.1e}")
            # 8 bits leave noise in single tokens, of which pooling takes most.
            assert cosine > (least if name != "tokens" or least > 0.999 else 0.99), (path, name, cosine)
            # In 16 bits the last digits alone differ.
            assert least < 0.9999 or largest < 3e-2, (path, name, largest)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3:])
