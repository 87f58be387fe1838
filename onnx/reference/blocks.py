"""Blocks in every form that `onnx/src/families/blocks.rs` describes, against numpy: `blocks.py FOLDER`.

The folder has model.onnx, a padded graph, weights.bin, and blocks.json: the form of the blocks and the table of tensors. What the
blocks compute is written down here a second time, in double precision, from the papers that blocks.rs names. Needs onnxruntime and
numpy.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import onnxruntime

LENGTHS = [3, 17, 1, 9]


def main(folder):
    form = json.loads((folder / "blocks.json").read_text())
    raw = (folder / "weights.bin").read_bytes()
    weights = {
        tensor["name"]: np.frombuffer(raw, np.float32, tensor["bytes"] // 4, tensor["offset"])
        .reshape(tensor["shape"])
        .astype(np.float64)
        for tensor in form["tensors"]
    }
    heads, width, inner = form["heads"], form["head_width"], form["intermediate"]

    def normed(x, name):
        centred = x if form["rms"] else x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + form["epsilon"])
        return scaled * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0)

    def activated(x):
        return {
            "Gelu": lambda: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
            "GeluTanh": lambda: x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
            "Relu": lambda: np.maximum(x, 0),
            "Silu": lambda: x / (1 + np.exp(-x)),
        }[form["activation"]]()

    def rotated(x):
        angles = np.arange(len(x))[:, None] * form["base"] ** (-2 * np.arange(width // 2) / width)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        left, right = np.split(x.reshape(len(x), heads, width), 2, -1)
        return np.concatenate([left * cos - right * sin, right * cos + left * sin], -1)

    def attention(x, layer):
        query, key, value = np.split(x @ weights[f"{layer}.qkv.weight"].T, 3, -1)
        if f"{layer}.qk.bias" in weights:
            of_query, of_key = np.split(weights[f"{layer}.qk.bias"], 2)
            query, key = query + of_query, key + of_key
        if f"{layer}.query_norm.weight" in weights:
            query, key = normed(query, f"{layer}.query_norm"), normed(key, f"{layer}.key_norm")
        query, key = rotated(query), rotated(key)
        value = value.reshape(len(x), heads, width)
        scores = np.einsum("ihd,jhd->hij", query, key) / math.sqrt(width)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        rows = np.einsum("hij,jhd->ihd", shares, value).reshape(len(x), -1)
        out = f"{layer}.attention_output"
        return rows @ weights[f"{out}.weight"].T + weights.get(f"{out}.bias", 0)

    def feed_forward(x, layer):
        up = f"{layer}.gated" if form["gated"] else f"{layer}.up"
        x = x @ weights[f"{up}.weight"].T + weights.get(f"{up}.bias", 0)
        x = activated(x[:, :inner]) * x[:, inner:] if form["gated"] else activated(x)
        return x @ weights[f"{layer}.down.weight"].T + weights.get(f"{layer}.down.bias", 0)

    rng = np.random.default_rng(1)
    rows = [rng.integers(0, len(weights["embedding"]), length) for length in LENGTHS]
    ids = np.zeros((len(rows), max(LENGTHS)), np.int64)
    for row, its in zip(ids, rows):
        row[: len(its)] = its
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    lengths = np.array(LENGTHS, np.int32)
    ranges = np.stack([np.zeros_like(lengths), lengths], 1).astype(np.int64)
    given = {"input_ids": ids, "lengths": lengths, "pool_range": ranges}
    (found,) = session.run(["tokens"], given)
    for its, row in zip(rows, found):
        x = weights["embedding"][its]
        for number in range(form["layers"]):
            layer = f"layer.{number}"
            x = x + attention(normed(x, f"{layer}.attention_norm"), layer)
            x = x + feed_forward(normed(x, f"{layer}.feed_forward_norm"), layer)
        x = normed(x, "final_norm")
        largest = np.abs(row[: len(its)] - x).max()
        assert largest < 2e-5, (form["name"], len(its), largest)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
