"""DNABERT-2's shape in plain PyTorch, as transformers writes its models: modules, and SDPA with an additive bias.

Written for the benchmark as its peer. The right vectors come from the authors' code (onnx/reference/dna_fixtures.py),
which materialises attention weights and is slower on a CPU.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional


def slopes(heads: int) -> torch.Tensor:
    """ALiBi's (Press et al. 2022): a geometric series for a power of two, else that of the next lower one and every
    other of the next higher one."""
    lower = 2 ** (heads.bit_length() - 1)
    series = [2 ** (-8 * (i + 1) / lower) for i in range(lower)]
    between = [2 ** (-4 * (i + 1) / lower) for i in range(0, 2 * (heads - lower), 2)]
    return torch.tensor(series + between)


class Layer(nn.Module):
    """One block: attention, norm, gated feed-forward, norm."""

    def __init__(self, hidden: int, heads: int, inner: int, epsilon: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.attention_out = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, epsilon)
        self.gated = nn.Linear(hidden, 2 * inner, bias=False)
        self.out = nn.Linear(inner, hidden)
        self.norm = nn.LayerNorm(hidden, epsilon)

    def forward(self, states: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        batch, tokens, hidden = states.shape
        qkv = self.qkv(states).view(batch, tokens, 3, self.heads, hidden // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        attended = attended.transpose(1, 2).reshape(batch, tokens, hidden)
        states = self.attention_norm(self.attention_out(attended) + states)
        gate, linear = self.gated(states).chunk(2, dim=-1)
        return self.norm(self.out(functional.gelu(gate) * linear) + states)


class Dnabert2(nn.Module):
    """Token ids and mask [batch, tokens] -> the last layer's vectors [batch, tokens, hidden]."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.hidden, heads = config["hidden_size"], config["num_attention_heads"]
        epsilon = config["layer_norm_eps"]
        self.words = nn.Embedding(config["vocab_size"], self.hidden)
        self.types = nn.Embedding(config["type_vocab_size"], self.hidden)
        self.norm = nn.LayerNorm(self.hidden, epsilon)
        self.layers = nn.ModuleList(
            Layer(self.hidden, heads, config["intermediate_size"], epsilon) for _ in range(config["num_hidden_layers"])
        )
        self.register_buffer("slopes", slopes(heads), persistent=False)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(ids.shape[1])
        distance = (positions[None, :] - positions[:, None]).abs()
        bias = (-self.slopes[:, None, None] * distance)[None]
        if not mask.all():
            bias = bias.masked_fill(mask[:, None, None, :] == 0, -torch.inf)
        states = self.norm(self.words(ids) + self.types.weight[0])
        for layer in self.layers:
            states = layer(states, bias)
        return states

    @classmethod
    def load(cls, folder: Path) -> Dnabert2:
        """From a hub folder with model.safetensors and no prefix, fp32."""
        from safetensors.torch import load_file

        names = {
            "attention.self.Wqkv": "qkv",
            "attention.output.dense": "attention_out",
            "attention.output.LayerNorm": "attention_norm",
            "mlp.gated_layers": "gated",
            "mlp.wo": "out",
            "mlp.layernorm": "norm",
            "embeddings.word_embeddings": "words",
            "embeddings.token_type_embeddings": "types",
            "embeddings.LayerNorm": "norm",
            "encoder.layer.": "layers.",
        }
        state = {}
        for name, tensor in load_file(folder / "model.safetensors").items():
            if name.startswith("pooler."):
                continue
            for theirs, ours in names.items():
                name = name.replace(theirs, ours)
            state[name] = tensor.float()
        model = cls(json.loads((folder / "config.json").read_text()))
        model.load_state_dict(state)
        return model.eval()
