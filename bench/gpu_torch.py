"""ESM-2 and DNABERT-2 in PyTorch (gpu_torch_gated.py: ESM C and Nucleotide Transformer), as functions over the weights of an exported folder.

Written for the benchmark as the peers that seqembed must beat on a GPU, so as fast as PyTorch's own parts allow: whole layers under
torch.compile, one product for queries, keys and values, pooling on the device. Each class turns token rows into batches
on the host (`batch`, not timed) and a batch into mean vectors [sequences, hidden] on the device (`step`, timed).

The folder's embedding table holds ESM-2's constant 0.88, and the value's bias is part of the attention output's: both change no result.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from dnabert2 import slopes
from torch.nn import functional

# Lengths of padded batches, and of nothing else, are multiples of it: what attention with a bias wants.
ALIGNMENT = 16
# Rows and columns that flex_attention works on or leaves out together.
BLOCK = 128


def static(tensor: torch.Tensor) -> torch.Tensor:
    """Tells torch.compile that its shape is always the same: else widths, too, are unknowns of the kernels."""
    torch._dynamo.mark_static(tensor)
    return tensor


class Weights:
    """The tensors of an exported folder on a device."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        info = json.loads((folder / "seqembed.json").read_text())
        self.sizes, self.device, self.dtype = info["architecture"], device, dtype
        # Copy-on-write, as PyTorch wants arrays that could be written to.
        mapped = np.memmap(folder / "weights.bin", np.uint8, "c")
        self.tensors = {}
        for tensor in info["tensors"]:
            values = int(np.prod(tensor["shape"]))
            number = {4: np.float32, 2: np.float16}[tensor["bytes"] // values]
            array = mapped[tensor["offset"] : tensor["offset"] + tensor["bytes"]].view(number).reshape(tensor["shape"])
            self.tensors[tensor["name"]] = static(torch.from_numpy(array).to(device).to(dtype))

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    @property
    def hidden(self) -> int:
        return self.sizes["hidden"]

    def qkv_bias(self, layer: int) -> torch.Tensor:
        """[3 hidden]; the value's is zero, as it went into the output's."""
        bias = self[f"layer.{layer}.qk.bias"]
        return static(torch.cat([bias, bias.new_zeros(self.hidden)]))

    def layer(self, number: int) -> tuple[torch.Tensor, ...]:
        """A layer's tensors in the order in which its function takes them."""
        at = f"layer.{number}."
        dense = ["qkv.weight", "", "attention_output.weight", "attention_output.bias"]
        if self.sizes["type"] == "esm2":
            names = ["attention_norm.weight", "attention_norm.bias", *dense, "feed_forward_norm.weight", "feed_forward_norm.bias"]
            names += ["up.weight", "up.bias", "down.weight", "down.bias"]
        else:
            names = [*dense, "attention_norm.weight", "attention_norm.bias", "gated.weight", "down.weight", "down.bias"]
            names += ["feed_forward_norm.weight", "feed_forward_norm.bias"]
        return tuple(self[at + name] if name else self.qkv_bias(number) for name in names)

    def layers(self) -> list[tuple[torch.Tensor, ...]]:
        return [self.layer(number) for number in range(self.sizes["layers"])]


def on_host(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array ready to be copied to the device without waiting."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if device.type == "cuda" else tensor


def norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
    return functional.layer_norm(x, weight.shape, weight, bias, epsilon)


def rotary_table(width: int, base: float, positions: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [positions, width / 2], fp32."""
    frequencies = 1.0 / (base ** (torch.arange(0, width, 2, device=device).float() / width))
    angles = torch.arange(positions, device=device).float()[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding: the first half of a head's dimensions with the second."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


class Layer(torch.nn.Module):
    """What a layer's function needs besides tensors: torch.compile takes a module's numbers for constants, but not arguments."""

    def __init__(self, heads: int, epsilon: float, contiguous: bool = False) -> None:
        super().__init__()
        self.heads, self.epsilon, self.contiguous = heads, epsilon, contiguous


class Packed:
    """Sequences end to end: token ids, each sequence's first token, and what pools them."""

    def __init__(self, rows: list[np.ndarray], device: torch.device, length: int | None = None) -> None:
        sizes = np.array([len(row) for row in rows])
        self.sequences, self.tokens, self.longest = len(rows), int(sizes.sum()), int(sizes.max())
        ids = np.concatenate(rows)
        if length and length > self.tokens:
            # What is left of a fixed length is one more sequence, whose vector nobody looks at.
            sizes = np.append(sizes, length - self.tokens)
            ids = np.concatenate([ids, np.zeros(length - self.tokens, np.int64)])
        starts = np.concatenate([[0], np.cumsum(sizes)])
        self.ids = on_host(ids, device)
        self.positions = on_host(np.concatenate([np.arange(size) for size in sizes]), device)
        self.owner = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        self.starts = on_host(starts.astype(np.int32), device)


def segment_means(states: torch.Tensor, starts: torch.Tensor, behind: int = 1) -> torch.Tensor:
    """Means [sequences, hidden] of fp32 vectors [tokens, hidden] without each sequence's first token, and without its last one if a special
    token stands behind."""
    sums = torch.segment_reduce(states, "sum", offsets=starts, axis=0, unsafe=True)
    first, end = starts[:-1].long(), starts[1:].long()
    inner = sums - states[first] - (states[end - 1] if behind else 0)
    return inner / (end - first - 1 - behind)[:, None]


def masked_means(states: torch.Tensor, sizes: torch.Tensor, behind: int = 1) -> torch.Tensor:
    """The same for padded vectors [sequences, tokens, hidden] of any precision."""
    at = torch.arange(states.shape[1], device=states.device)
    kept = (at > 0) & (at < (sizes - behind)[:, None])
    return (states.float() * kept[:, :, None]).sum(1) / (sizes - 1 - behind)[:, None]


# ---------------------------------------------------------------------------------------------- ESM-2


def varlen_attention(query, key, value, starts, longest):
    """PyTorch's flash attention over sequences that lie end to end."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(query, key, value, starts, starts, longest, longest)


def add_cpu_kernel() -> None:
    """To try the program out: the operator behind varlen_attn has no kernel for a CPU, so a loop over the sequences stands in."""
    from torch.nn.attention import varlen

    def attention(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, scale=None, window_size=None, *rest, **more):
        out = torch.empty(query.shape, dtype=query.dtype)
        ends = cu_seq_q.tolist()
        for start, end in zip(ends, ends[1:]):
            parts = (x[start:end].transpose(0, 1)[None] for x in (query, key, value))
            out[start:end] = functional.scaled_dot_product_attention(*parts)[0].transpose(0, 1)
        empty = torch.zeros(2, dtype=torch.uint64)
        return out, torch.empty(query.shape[1], query.shape[0]), empty

    varlen._varlen_attn.register_kernel("cpu")(attention)


class Esm2Layer(Layer):
    """One block over [tokens, hidden]."""

    def forward(self, x, weights, cos, sin, starts, longest: int):
        n1w, n1b, qkv_w, qkv_b, out_w, out_b, n2w, n2b, up_w, up_b, down_w, down_b = weights
        hidden = len(out_b)
        qkv = functional.linear(norm(x, n1w, n1b, self.epsilon), qkv_w, qkv_b).view(-1, 3, self.heads, hidden // self.heads)
        # Queries and keys in one pass.
        turned = rotate(qkv[:, :2], cos, sin)
        query, key, value = turned[:, 0], turned[:, 1], qkv[:, 2]
        if self.contiguous:
            query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        attended = varlen_attention(query, key, value, starts, longest).reshape(-1, hidden)
        x = x + functional.linear(attended, out_w, out_b)
        inner = functional.gelu(functional.linear(norm(x, n2w, n2b, self.epsilon), up_w, up_b))
        return x + functional.linear(inner, down_w, down_b)


class Esm2Varlen:
    """ESM-2 packed: varlen_attn under torch.compile."""

    budgets = (16384, 32768, 65536)
    packed = True

    def __init__(self, weights: Weights, contiguous: bool = False) -> None:
        self.weights, self.layers = weights, weights.layers()
        sizes = weights.sizes
        heads, epsilon, self.contiguous = sizes["heads"], sizes["layer_norm_eps"], contiguous
        table = rotary_table(sizes["hidden"] // heads, sizes["rotary_base"], 2048, weights.device)
        self.cos, self.sin = (half.to(weights.dtype)[:, None, None] for half in table)
        self.layer = torch.compile(Esm2Layer(heads, epsilon, contiguous), dynamic=True)
        self.last_norm = torch.compile(lambda x, w, b: norm(x, w, b, epsilon).float(), dynamic=True)

    def batch(self, rows: list[np.ndarray], budget: int) -> Packed:
        return Packed(rows, self.weights.device)

    def step(self, batch: Packed) -> torch.Tensor:
        put = lambda tensor: tensor.to(self.weights.device, non_blocking=True)  # noqa: E731
        ids, positions, starts = put(batch.ids), put(batch.positions), put(batch.starts)
        cos, sin = self.cos[positions], self.sin[positions]
        x = self.weights["embedding"][ids]
        for layer in self.layers:
            x = self.layer(x, layer, cos, sin, starts, batch.longest)
        x = self.last_norm(x, self.weights["final_norm.weight"], self.weights["final_norm.bias"])
        return segment_means(x, starts)


class Padded:
    """Sequences beside each other, padded to the longest."""

    def __init__(self, rows: list[np.ndarray], device: torch.device, pad: int, multiple: int = 1, least: int = 1) -> None:
        sizes = np.array([len(row) for row in rows])
        self.sequences, self.tokens = len(rows), int(sizes.sum())
        ids = np.full((len(rows), max(least, -(-int(sizes.max()) // multiple) * multiple)), pad, np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        self.ids, self.sizes = on_host(ids, device), on_host(sizes, device)


# ---------------------------------------------------------------------------------------------- DNABERT-2


def dnabert2_layer(x, weights, heads: int, epsilon: float, attention):
    """One block over [.., tokens, hidden]; `attention` takes and gives [.., heads, tokens, head]."""
    qkv_w, qkv_b, out_w, out_b, n1w, n1b, gated_w, down_w, down_b, n2w, n2b = weights
    hidden = len(out_b)
    qkv = functional.linear(x, qkv_w, qkv_b).view(*x.shape[:-1], 3, heads, hidden // heads)
    query, key, value = (part.transpose(-3, -2) for part in qkv.unbind(-3))
    attended = attention(query, key, value).transpose(-3, -2).reshape(x.shape)
    x = norm(functional.linear(attended, out_w, out_b) + x, n1w, n1b, epsilon)
    gate, linear = functional.linear(x, gated_w).chunk(2, dim=-1)
    return norm(functional.linear(functional.gelu(gate) * linear, down_w, down_b) + x, n2w, n2b, epsilon)


class SdpaLayer(Layer):
    """A block with a bias [batch, heads, tokens, tokens] that holds ALiBi and the padding."""

    def forward(self, x, weights, bias):
        attention = lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)  # noqa: E731
        return dnabert2_layer(x, weights, self.heads, self.epsilon, attention)


def alibi_bias(falls, sizes, tokens: int, dtype: torch.dtype):
    """[batch, heads, tokens, tokens]: the distance times a head's slope, and minus infinity on padding."""
    at = torch.arange(tokens, device=falls.device)
    bias = -(at[None, :] - at[:, None]).abs() * falls[:, None, None]
    return bias[None].masked_fill((at >= sizes[:, None])[:, None, None], -torch.inf).to(dtype)


def flex(query, key, value, score, blocks=None):
    """flex_attention; on a CPU it has no kernel for three views of one tensor."""
    from torch.nn.attention.flex_attention import flex_attention

    if query.device.type == "cpu":
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    return flex_attention(query, key, value, score_mod=score, block_mask=blocks)


class FlexPaddedLayer(Layer):
    """A block whose attention computes ALiBi and the padding where it needs them."""

    def forward(self, x, weights, falls, sizes):
        def score(value, b, h, q, k):
            return torch.where(k < sizes[b], value - (q - k).abs() * falls[h], -torch.inf)

        return dnabert2_layer(x, weights, self.heads, self.epsilon, lambda q, k, v: flex(q, k, v, score))


class FlexPackedLayer(Layer):
    """A block over sequences end to end [1, tokens, hidden]: inside a sequence, a distance is one of rows."""

    def forward(self, x, weights, falls, blocks):
        def score(value, b, h, q, k):
            return value - (q - k).abs() * falls[h]

        return dnabert2_layer(x, weights, self.heads, self.epsilon, lambda q, k, v: flex(q, k, v, score, blocks))


class Dnabert2:
    """What the ways to run DNABERT-2 share."""

    packed = False

    def __init__(self, weights: Weights, compiled: bool) -> None:
        self.weights, self.layers = weights, weights.layers()
        heads, epsilon = weights.sizes["heads"], weights.sizes["layer_norm_eps"]
        self.heads, self.epsilon = heads, epsilon
        self.falls = static(slopes(heads).to(weights.device))
        wrap = (lambda function: torch.compile(function, dynamic=True)) if compiled else (lambda function: function)
        self.norm = wrap(lambda x, w, b: norm(x, w, b, epsilon))
        self.means, self.bias = wrap(masked_means), wrap(alibi_bias)

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.weights.device, non_blocking=True)

    def batch(self, rows: list[np.ndarray], budget: int) -> Padded:
        return Padded(rows, self.weights.device, pad=3, multiple=ALIGNMENT)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.norm(self.weights["embedding"][ids], self.weights["embedding_norm.weight"], self.weights["embedding_norm.bias"])


class Dnabert2Sdpa(Dnabert2):
    """Padded, SDPA with the bias in memory, once a batch."""

    budgets = (16384, 65536)

    def __init__(self, weights: Weights, compiled: bool) -> None:
        super().__init__(weights, compiled)
        layer = SdpaLayer(self.heads, self.epsilon)
        self.layer = torch.compile(layer, dynamic=True) if compiled else layer

    def step(self, batch: Padded) -> torch.Tensor:
        ids, sizes = self.put(batch.ids), self.put(batch.sizes)
        bias = self.bias(self.falls, sizes, ids.shape[1], self.weights.dtype)
        x = self.embed(ids)
        for layer in self.layers:
            x = self.layer(x, layer, bias)
        return self.means(x, sizes)


class Dnabert2FlexPadded(Dnabert2):
    """Padded, flex_attention under torch.compile."""

    budgets = (32768, 65536)

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights, compiled=True)
        self.layer = torch.compile(FlexPaddedLayer(self.heads, self.epsilon), dynamic=True)

    def batch(self, rows: list[np.ndarray], budget: int) -> Padded:
        # Below one block it would choose another kernel, one for few queries.
        return Padded(rows, self.weights.device, pad=3, multiple=ALIGNMENT, least=BLOCK)

    def step(self, batch: Padded) -> torch.Tensor:
        ids, sizes = self.put(batch.ids), self.put(batch.sizes)
        x = self.embed(ids)
        for layer in self.layers:
            x = self.layer(x, layer, self.falls, sizes)
        return self.means(x, sizes)


class Dnabert2FlexPacked(Dnabert2):
    """Packed to one fixed length, flex_attention with a block mask under torch.compile."""

    budgets = (32768,)
    packed = True

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights, compiled=True)
        self.layer = torch.compile(FlexPackedLayer(self.heads, self.epsilon), dynamic=False)
        self.owner = torch.zeros(0, dtype=torch.int32, device=weights.device)

    def batch(self, rows: list[np.ndarray], budget: int) -> Packed:
        batch = Packed(rows, self.weights.device, length=budget)
        # A row of blocks meets those from its first sequence's start to its last one's end, side by side.
        starts, owner = batch.starts.numpy(), batch.owner
        blocks = budget // BLOCK
        first, last = owner[::BLOCK], owner[BLOCK - 1 :: BLOCK]
        low, high = starts[first] // BLOCK, (starts[last + 1] - 1) // BLOCK
        # Blocks inside of one sequence on both sides need no look at the mask.
        inside_low = np.maximum(-(-starts[first] // BLOCK), low)
        inside_high = np.minimum(starts[first + 1] // BLOCK - 1, high)
        whole = (first == last) & (inside_high >= inside_low)
        counts, indices = np.zeros((2, blocks), np.int32), np.zeros((2, blocks, blocks), np.int32)
        for row in range(blocks):
            met = np.arange(low[row], high[row] + 1)
            full = (met >= inside_low[row]) & (met <= inside_high[row]) if whole[row] else np.zeros(len(met), bool)
            for kind, some in enumerate((met[~full], met[full])):
                counts[kind, row] = len(some)
                indices[kind, row, : len(some)] = some
        batch.owner = on_host(owner, self.weights.device)
        batch.counts, batch.indices = on_host(counts, self.weights.device), on_host(indices, self.weights.device)
        return batch

    def step(self, batch: Packed) -> torch.Tensor:
        from torch.nn.attention.flex_attention import BlockMask

        ids, starts = self.put(batch.ids), self.put(batch.starts)
        if len(self.owner) != len(batch.owner):
            # One place for the sequences' numbers, so that the mask's function stays the same one.
            self.owner = torch.empty(len(batch.owner), dtype=torch.int32, device=self.weights.device)
        self.owner.copy_(batch.owner, non_blocking=True)
        counts, indices = self.put(batch.counts)[:, None, None], self.put(batch.indices)[:, None, None]
        blocks = BlockMask.from_kv_blocks(
            counts[0], indices[0], counts[1], indices[1], BLOCK_SIZE=BLOCK, mask_mod=self.same, compute_q_blocks=False
        )
        x = self.embed(ids)[None]
        for layer in self.layers:
            x = self.layer(x, layer, self.falls, blocks)
        return segment_means(x[0].float(), starts)[: batch.sequences]

    def same(self, b, h, q, k):
        return self.owner[q] == self.owner[k]


# ---------------------------------------------------------------------------------------------- what is right


@torch.inference_mode()
def reference(weights: Weights, rows: list[np.ndarray]) -> np.ndarray:
    """Mean vectors in the weights' precision, plainly: a sequence at a time, no padding, nothing compiled."""
    sizes, vectors = weights.sizes, []
    heads, epsilon, hidden = sizes["heads"], sizes["layer_norm_eps"], sizes["hidden"]
    layers = weights.layers()
    for row in rows:
        x = weights["embedding"][torch.from_numpy(row).to(weights.device)]
        if sizes["type"] == "esm2":
            cos, sin = rotary_table(hidden // heads, sizes["rotary_base"], len(row), weights.device)
            for n1w, n1b, qkv_w, qkv_b, out_w, out_b, n2w, n2b, up_w, up_b, down_w, down_b in layers:
                qkv = functional.linear(norm(x, n1w, n1b, epsilon), qkv_w, qkv_b).view(len(row), 3, heads, -1).permute(1, 2, 0, 3)
                query, key = rotate(qkv[0], cos, sin), rotate(qkv[1], cos, sin)
                attended = functional.scaled_dot_product_attention(query[None], key[None], qkv[2][None])[0]
                x = x + functional.linear(attended.transpose(0, 1).reshape(len(row), hidden), out_w, out_b)
                inner = functional.gelu(functional.linear(norm(x, n2w, n2b, epsilon), up_w, up_b))
                x = x + functional.linear(inner, down_w, down_b)
            x = norm(x, weights["final_norm.weight"], weights["final_norm.bias"], epsilon)
        else:
            x = norm(x, weights["embedding_norm.weight"], weights["embedding_norm.bias"], epsilon)
            at = torch.arange(len(row), device=weights.device)
            falls = slopes(heads).to(weights.device)
            bias = (-(at[None] - at[:, None]).abs() * falls[:, None, None]).to(x.dtype)[None]
            for layer in layers:
                x = SdpaLayer(heads, epsilon)(x[None], layer, bias)[0]
        vectors.append(x[1:-1].mean(0))
    return torch.stack(vectors).float().cpu().numpy()
