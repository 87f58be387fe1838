"""ESM-2 with its language-model head in PyTorch, over the weights of an exported folder: the loops that bench/score.py measures.

The layers are those of gpu_torch.py. The folder's embedding table is scaled by 0.88, and its row of `<mask>` is zero, as of ESM-2's token dropout:
what is left to do is to divide by the share of tokens that are not masked.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from gpu_torch import Esm2Layer, Layer, Weights, norm, on_host, rotary_table, rotate, static
from torch.nn import functional


class HeadWeights(Weights):
    """A folder's weights and those of its head."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(folder, device, dtype)
        head = json.loads((folder / "seqembed.json").read_text())["head"]
        data = (folder / "lm_head.bin").read_bytes()
        for tensor in head["tensors"]:
            values = np.frombuffer(data, np.float32, tensor["bytes"] // 4, tensor["offset"]).reshape(tensor["shape"])
            self.tensors[tensor["name"]] = static(torch.from_numpy(values.copy()).to(device).to(dtype))

    def head(self) -> tuple[torch.Tensor, ...]:
        parts = ("dense", "layer_norm", "decoder")
        return tuple(self[f"lm_head.{part}.{kind}"] for part in parts for kind in ("weight", "bias"))


class Masked:
    """Copies of rows of one length, each with one position masked: token ids [copies, tokens], and what stood where the mask is."""

    def __init__(self, rows: list[np.ndarray], pairs: list[tuple[int, int]], device: torch.device) -> None:
        number, at = (np.array(column) for column in zip(*pairs))
        ids = np.stack([rows[i] for i in number])
        copies = np.arange(len(ids))
        letters = ids[copies, at]
        ids[copies, at] = MASK
        self.copies, self.tokens = ids.shape
        self.ids, self.letters = on_host(ids, device), on_host(letters, device)
        # Of all tokens end to end.
        self.at = on_host(copies * self.tokens + at, device)


# The id of `<mask>` in all of ESM-2's vocabularies.
MASK = 32


class Loop:
    """What both loops share."""

    def __init__(self, weights: HeadWeights) -> None:
        self.weights, self.layers = weights, weights.layers()
        sizes = weights.sizes
        assert sizes["type"] == "esm2" and sizes["mask_id"] == MASK, "the loops are of ESM-2"
        self.heads, epsilon = sizes["heads"], sizes["layer_norm_eps"]
        table = rotary_table(sizes["hidden"] // self.heads, sizes["rotary_base"], 2048, weights.device)
        self.cos, self.sin = (half.to(weights.dtype) for half in table)
        self.last = torch.compile(Last(epsilon), dynamic=True)

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.weights.device, non_blocking=True)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Of copies with one mask each."""
        return self.weights["embedding"][ids] / (1 - 1 / ids.shape[1])

    def score(self, x: torch.Tensor, batch: Masked) -> torch.Tensor:
        """The log-probability of each masked letter, from states [tokens, hidden]."""
        weights = self.weights
        rows = x[self.put(batch.at)]
        return self.last(rows, weights["final_norm.weight"], weights["final_norm.bias"], weights.head(), self.put(batch.letters))


class Last(Layer):
    """The last norm, the head and the log-probability of a letter, of the masked rows alone."""

    def __init__(self, epsilon: float) -> None:
        super().__init__(0, epsilon)

    def forward(self, x, gamma, beta, head, letters):
        logits = head_logits(norm(x, gamma, beta, self.epsilon), head, self.epsilon)
        return torch.log_softmax(logits, -1).gather(1, letters[:, None])[:, 0]


def head_logits(x: torch.Tensor, head: tuple[torch.Tensor, ...], epsilon: float) -> torch.Tensor:
    """Logits of all tokens in fp32."""
    dense, dense_bias, gamma, beta, decoder, decoder_bias = head
    inner = norm(functional.gelu(functional.linear(x, dense, dense_bias)), gamma, beta, epsilon)
    return functional.linear(inner, decoder, decoder_bias).float()


class SdpaLayer(Layer):
    """One block over [copies, tokens, hidden]; all copies have one length, so nothing is padded and attention needs no mask."""

    def forward(self, x, weights, cos, sin):
        n1w, n1b, qkv_w, qkv_b, out_w, out_b, n2w, n2b, up_w, up_b, down_w, down_b = weights
        hidden = len(out_b)
        qkv = functional.linear(norm(x, n1w, n1b, self.epsilon), qkv_w, qkv_b).view(*x.shape[:-1], 3, self.heads, hidden // self.heads)
        turned = rotate(qkv[..., :2, :, :], cos, sin)
        query, key, value = (part.transpose(1, 2) for part in (turned[..., 0, :, :], turned[..., 1, :, :], qkv[..., 2, :, :]))
        attended = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(x.shape)
        x = x + functional.linear(attended, out_w, out_b)
        inner = functional.gelu(functional.linear(norm(x, n2w, n2b, self.epsilon), up_w, up_b))
        return x + functional.linear(inner, down_w, down_b)


class Batched(Loop):
    """Copies beside each other."""

    def __init__(self, weights: HeadWeights, compiled: bool = True) -> None:
        super().__init__(weights)
        layer = SdpaLayer(self.heads, weights.sizes["layer_norm_eps"])
        self.layer = torch.compile(layer, dynamic=True) if compiled else layer

    def states(self, ids: torch.Tensor) -> torch.Tensor:
        """[copies, tokens, hidden] before the last norm."""
        cos, sin = (table[: ids.shape[1], None, None] for table in (self.cos, self.sin))
        x = self.embed(ids)
        for layer in self.layers:
            x = self.layer(x, layer, cos, sin)
        return x

    def step(self, batch: Masked) -> torch.Tensor:
        return self.score(self.states(self.put(batch.ids)).flatten(0, 1), batch)


class Varlen(Loop):
    """Copies end to end."""

    def __init__(self, weights: HeadWeights) -> None:
        super().__init__(weights)
        self.layer = torch.compile(Esm2Layer(self.heads, weights.sizes["layer_norm_eps"]), dynamic=True)

    def step(self, batch: Masked) -> torch.Tensor:
        device = self.weights.device
        starts = torch.arange(batch.copies + 1, device=device, dtype=torch.int32) * batch.tokens
        positions = torch.arange(batch.tokens, device=device).repeat(batch.copies)
        cos, sin = self.cos[positions][:, None, None], self.sin[positions][:, None, None]
        x = self.embed(self.put(batch.ids)).flatten(0, 1)
        for layer in self.layers:
            x = self.layer(x, layer, cos, sin, starts, batch.tokens)
        return self.score(x, batch)


@torch.inference_mode()
def plain(weights: HeadWeights, rows: list[np.ndarray]) -> list[np.ndarray]:
    """Log-probabilities [length, vocabulary] at every masked position, nothing compiled, a few copies at a time."""
    loop = Batched(weights, compiled=False)
    epsilon, out = weights.sizes["layer_norm_eps"], []
    for row in rows:
        places, found = np.arange(1, len(row) - 1), []
        for part in np.array_split(places, -(-len(places) // 32)):
            batch = Masked([row], [(0, at) for at in part], weights.device)
            states = loop.states(loop.put(batch.ids)).flatten(0, 1)[loop.put(batch.at)]
            states = norm(states, weights["final_norm.weight"], weights["final_norm.bias"], epsilon)
            found.append(torch.log_softmax(head_logits(states, weights.head(), epsilon), -1).cpu().numpy())
        out.append(np.concatenate(found))
    return out
