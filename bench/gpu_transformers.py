"""ESM-2, ESM C and Nucleotide Transformer (version 2) in transformers, over the weights of an exported folder: padded batches, SDPA.

transformers has ESM C from release 5.24 on. Of Nucleotide Transformer it has version 1 alone: for version 2, the first dense layer of its
EsmModel's feed-forward layers is replaced by a gated one, as the authors' code on the hub has it.
"""

from __future__ import annotations

import numpy as np
import torch
from gpu_torch import Padded, Weights, masked_means
from torch.nn import functional


class GatedDense(torch.nn.Module):
    """A dense layer of twice the width: the first half through SiLU, times the second."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.dense = torch.nn.Linear(hidden, 2 * inner, bias=False)

    def forward(self, x):
        first, second = self.dense(x).chunk(2, -1)
        return functional.silu(first) * second


def fill(model, state: dict[str, torch.Tensor]) -> None:
    """Sets all parameters of a model but those of heads."""
    for name, parameter in model.named_parameters():
        if "contact_head" not in name:
            parameter.data = state.pop(name)
    if state:
        raise RuntimeError(f"transformers' model lacks {', '.join(state)}")


class Transformers:
    """What all models share."""

    budgets = (16384, 65536)
    packed = False
    contiguous = True
    behind = 1

    def __init__(self, weights: Weights) -> None:
        from transformers.utils import logging

        logging.set_verbosity_error()
        self.weights = weights
        with torch.device(weights.device):
            self.model = self.build(weights.sizes).eval()
        fill(self.model, self.state(weights))

    def qkv(self, number: int, names: list[str], part: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """Queries, keys and values of a layer, by names with the layer's number in them."""
        hidden = self.weights.hidden
        return {f"{name.format(number)}.{part}": tensor[at * hidden : (at + 1) * hidden] for at, name in enumerate(names)}

    def batch(self, rows: list[np.ndarray], budget: int) -> Padded:
        return Padded(rows, self.weights.device, pad=1)

    def step(self, batch: Padded) -> torch.Tensor:
        put = lambda tensor: tensor.to(self.weights.device, non_blocking=True)  # noqa: E731
        ids, sizes = put(batch.ids), put(batch.sizes)
        states = self.model(input_ids=ids, attention_mask=(ids != 1).long()).last_hidden_state
        return masked_means(states, sizes, self.behind)


class EsmcTransformers(Transformers):
    """transformers' EsmcModel."""

    def build(self, sizes: dict):
        from transformers import EsmcConfig, EsmcModel

        shape = {"hidden_size": sizes["hidden"], "num_hidden_layers": sizes["layers"], "num_attention_heads": sizes["heads"]}
        config = EsmcConfig(**shape, intermediate_size=sizes["intermediate"], vocab_size=sizes["vocabulary"])
        config._attn_implementation = "sdpa"
        return EsmcModel(config)

    def state(self, weights: Weights) -> dict[str, torch.Tensor]:
        # The folder has the scale of the residual branches in its weights.
        scale = (weights.sizes["layers"] / 36) ** 0.5
        state = {"embed_tokens.weight": weights["embedding"], "norm.weight": weights["final_norm.weight"]}
        for number in range(weights.sizes["layers"]):
            ours, theirs = f"layer.{number}", f"layers.{number}"
            state |= self.qkv(number, [f"layers.{{}}.self_attn.{at}_proj" for at in "qkv"], "weight", weights[f"{ours}.qkv.weight"])
            state[f"{theirs}.self_attn.q_norm.weight"] = weights[f"{ours}.query_norm.weight"]
            state[f"{theirs}.self_attn.k_norm.weight"] = weights[f"{ours}.key_norm.weight"]
            state[f"{theirs}.self_attn.o_proj.weight"] = weights[f"{ours}.attention_output.weight"] * scale
            gate, up = weights[f"{ours}.gated.weight"].chunk(2)
            state |= {f"{theirs}.mlp.gate_proj.weight": gate, f"{theirs}.mlp.up_proj.weight": up}
            state[f"{theirs}.mlp.down_proj.weight"] = weights[f"{ours}.down.weight"] * scale
            for mine, other in (("attention_norm", "input_layernorm"), ("feed_forward_norm", "post_attention_layernorm")):
                for part in ("weight", "bias"):
                    state[f"{theirs}.{other}.{part}"] = weights[f"{ours}.{mine}.{part}"]
        return state


class Esm2Transformers(Transformers):
    """transformers' EsmModel."""

    # Each part of a layer: its name in the folder, and in EsmModel.
    parts = (
        ("attention_norm", "attention.LayerNorm"),
        ("attention_output", "attention.output.dense"),
        ("feed_forward_norm", "LayerNorm"),
        ("up", "intermediate.dense"),
        ("down", "output.dense"),
    )
    # The model scales its table by this itself.
    embedding_scale = 0.88
    settings = {"mask_token_id": 32, "max_position_embeddings": 1026, "token_dropout": True}

    def build(self, sizes: dict):
        from transformers import EsmConfig, EsmModel

        shape = {"hidden_size": sizes["hidden"], "num_hidden_layers": sizes["layers"], "num_attention_heads": sizes["heads"]}
        config = EsmConfig(
            **shape, **self.settings, intermediate_size=sizes["intermediate"], vocab_size=sizes["vocabulary"], pad_token_id=1,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, position_embedding_type="rotary",
            layer_norm_eps=sizes["layer_norm_eps"], emb_layer_norm_before=False, attn_implementation="sdpa",
        )
        return EsmModel(config, add_pooling_layer=False)

    def state(self, weights: Weights) -> dict[str, torch.Tensor]:
        state = {"embeddings.word_embeddings.weight": weights["embedding"] / self.embedding_scale}
        for part in ("weight", "bias"):
            state[f"encoder.emb_layer_norm_after.{part}"] = weights[f"final_norm.{part}"]
        for number in range(weights.sizes["layers"]):
            ours, theirs = f"layer.{number}", f"encoder.layer.{number}"
            names = [f"encoder.layer.{{}}.attention.self.{name}" for name in ("query", "key", "value")]
            state |= self.qkv(number, names, "weight", weights[f"{ours}.qkv.weight"])
            state |= self.qkv(number, names, "bias", weights.qkv_bias(number))
            for mine, other in self.parts:
                for part in ("weight", "bias"):
                    state[f"{theirs}.{other}.{part}"] = weights[f"{ours}.{mine}.{part}"]
        return state


class NucleotideTransformers(Esm2Transformers):
    """transformers' EsmModel with gated feed-forward layers."""

    behind = 0
    parts = Esm2Transformers.parts[:3]
    embedding_scale = 1.0
    settings = {"mask_token_id": 2, "max_position_embeddings": 2050, "token_dropout": False}

    def build(self, sizes: dict):
        hidden, inner = sizes["hidden"], sizes["intermediate"]
        model = super().build(sizes)
        for layer in model.encoder.layer:
            layer.intermediate = GatedDense(hidden, inner)
            layer.output.dense = torch.nn.Linear(inner, hidden, bias=False)
        return model

    def state(self, weights: Weights) -> dict[str, torch.Tensor]:
        state = super().state(weights)
        for number in range(weights.sizes["layers"]):
            ours, theirs = f"layer.{number}", f"encoder.layer.{number}"
            state[f"{theirs}.intermediate.dense.weight"] = weights[f"{ours}.gated.weight"]
            state[f"{theirs}.output.dense.weight"] = weights[f"{ours}.down.weight"]
        return state
