"""ESM C and Nucleotide Transformer (version 2) in PyTorch, over the weights of an exported folder, as gpu_torch.py has ESM-2.

Their blocks have feed-forward layers gated by SiLU; ESM C's also layer norms of queries and keys over all heads, and nothing but its norms
has biases. The folder holds ESM C's residual scale in the weights, and the value's bias in the attention output's.

Whole layers under torch.compile with varlen_attn; and padded SDPA, not compiled, in the manner of transformers (gpu_transformers.py), without
what that does around it.
"""

from __future__ import annotations

from functools import partial

import gpu_torch
import numpy as np
import torch
from gpu_torch import Layer, Packed, Padded, Weights, norm, rotary_table, rotate, varlen_attention
from torch.nn import functional

# Special tokens behind a sequence. One stands in front of it in both families.
BEHIND = {"esmc": 1, "nucleotidetransformer": 0}


def layer_tensors(weights: Weights, number: int) -> dict[str, torch.Tensor | None]:
    """A layer's tensors; those that the family lacks are None."""
    at = f"layer.{number}."
    names = ["attention_norm.weight", "attention_norm.bias", "qkv.weight", "query_norm.weight", "key_norm.weight"]
    names += ["attention_output.weight", "attention_output.bias", "feed_forward_norm.weight", "feed_forward_norm.bias"]
    names += ["gated.weight", "gated.bias", "down.weight", "down.bias"]
    found = {name: weights.tensors.get(at + name) for name in names}
    found["qkv.bias"] = weights.qkv_bias(number) if at + "qk.bias" in weights.tensors else None
    return found


def block(x, w, heads: int, epsilon: float, cos, sin, attention):
    """One block over [.., tokens, hidden]; `attention` takes and gives [.., tokens, heads, head]."""
    hidden = x.shape[-1]
    qkv = functional.linear(norm(x, w["attention_norm.weight"], w["attention_norm.bias"], epsilon), w["qkv.weight"], w["qkv.bias"])
    query, key, value = qkv.chunk(3, dim=-1)
    if w["query_norm.weight"] is not None:
        query, key = norm(query, w["query_norm.weight"], None, epsilon), norm(key, w["key_norm.weight"], None, epsilon)
    split = lambda part: part.reshape(*x.shape[:-1], heads, hidden // heads)  # noqa: E731
    query, key = rotate(split(query), cos, sin), rotate(split(key), cos, sin)
    attended = attention(query, key, split(value)).reshape(x.shape)
    x = x + functional.linear(attended, w["attention_output.weight"], w["attention_output.bias"])
    both = functional.linear(norm(x, w["feed_forward_norm.weight"], w["feed_forward_norm.bias"], epsilon), w["gated.weight"], w["gated.bias"])
    gate, up = both.chunk(2, dim=-1)
    return x + functional.linear(functional.silu(gate) * up, w["down.weight"], w["down.bias"])


class VarlenLayer(Layer):
    """A block over sequences end to end, [tokens, hidden]."""

    def forward(self, x, weights, cos, sin, starts, longest: int):
        def attention(query, key, value):
            if self.contiguous:
                query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
            return varlen_attention(query, key, value, starts, longest)

        return block(x, weights, self.heads, self.epsilon, cos, sin, attention)


class Gated:
    """What both ways to run such a model share."""

    def __init__(self, weights: Weights) -> None:
        self.weights, sizes = weights, weights.sizes
        self.layers = [layer_tensors(weights, number) for number in range(sizes["layers"])]
        self.heads, self.epsilon, self.behind = sizes["heads"], sizes["layer_norm_eps"], BEHIND[sizes["type"]]
        table = rotary_table(sizes["hidden"] // self.heads, sizes["rotary_base"], 4096, weights.device)
        self.cos, self.sin = (half.to(weights.dtype)[:, None] for half in table)

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.weights.device, non_blocking=True)

    def final_norm(self, x: torch.Tensor) -> torch.Tensor:
        return norm(x, self.weights["final_norm.weight"], self.weights.tensors.get("final_norm.bias"), self.epsilon).float()


class GatedVarlen(Gated):
    """Packed: varlen_attn under torch.compile."""

    budgets = (16384, 32768, 65536)
    packed = True

    def __init__(self, weights: Weights, contiguous: bool = False) -> None:
        super().__init__(weights)
        self.contiguous = contiguous
        self.layer = torch.compile(VarlenLayer(self.heads, self.epsilon, contiguous), dynamic=True)
        self.last = torch.compile(self.final_norm, dynamic=True)

    def batch(self, rows: list[np.ndarray], budget: int) -> Packed:
        return Packed(rows, self.weights.device)

    def step(self, batch: Packed) -> torch.Tensor:
        ids, positions, starts = self.put(batch.ids), self.put(batch.positions), self.put(batch.starts)
        cos, sin = self.cos[positions], self.sin[positions]
        x = self.weights["embedding"][ids]
        for layer in self.layers:
            x = self.layer(x, layer, cos, sin, starts, batch.longest)
        return gpu_torch.segment_means(self.last(x), starts, self.behind)


class GatedPadded(Gated):
    """Padded: SDPA with a mask, nothing compiled."""

    budgets = (16384, 65536)
    packed = False

    def batch(self, rows: list[np.ndarray], budget: int) -> Padded:
        return Padded(rows, self.weights.device, pad=1)

    def step(self, batch: Padded) -> torch.Tensor:
        ids, sizes = self.put(batch.ids), self.put(batch.sizes)
        length = ids.shape[1]
        mask = (torch.arange(length, device=ids.device) < sizes[:, None])[:, None, None]
        x = self.weights["embedding"][ids]
        attention = partial(padded_attention, mask=mask)
        for layer in self.layers:
            x = block(x, layer, self.heads, self.epsilon, self.cos[:length], self.sin[:length], attention)
        return gpu_torch.masked_means(self.final_norm(x), sizes, self.behind)


def padded_attention(query, key, value, mask=None):
    """PyTorch's attention over [sequences, tokens, heads, head]."""
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


@torch.inference_mode()
def reference(weights: Weights, rows: list[np.ndarray]) -> np.ndarray:
    """Mean vectors in the weights' precision, plainly: a sequence at a time, no padding, nothing compiled."""
    model, vectors = Gated(weights), []
    for row in rows:
        x = weights["embedding"][torch.from_numpy(row).to(weights.device)][None]
        for layer in model.layers:
            x = block(x, layer, model.heads, model.epsilon, model.cos[: len(row)], model.sin[: len(row)], padded_attention)
        vectors.append(model.final_norm(x)[0, 1 : len(row) - model.behind].mean(0))
    return torch.stack(vectors).float().cpu().numpy()
