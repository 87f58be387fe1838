"""The families of bench/cpu_families.py in transformers: random checkpoints in real shapes with few layers, and how to run them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import common  # noqa: F401  (finds the modules of onnx/reference)
import esm2
import nt_fixtures
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, EsmcConfig, EsmcModel, EsmConfig, EsmModel, T5Config, T5EncoderModel

SEED = 1
K = 6  # bases of a Nucleotide Transformer's token
PROTBERT_VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"LAGVESIKRDTPNQFYMHCWXUBZO"]
T5_RESIDUES = "ALGVSREDTIPKFQNYMHWCXBOUZ"


@dataclass
class Shape:
    """The shape of a published model, with fewer layers."""

    model: str
    published_layers: int
    hidden: int
    heads: int
    inner: int
    head_width: int | None = None
    """Where it is not the width over the heads."""


@dataclass
class Tokens:
    """How a model reads a sequence."""

    encode: Callable[[str], list[int]]
    """Its ids, special tokens included."""
    front: int = 1
    """Special tokens before the sequence, and after it."""
    behind: int = 1
    pad: int = esm2.PAD


LAYERS = 6
SHAPES = {
    "esmc": Shape("ESM C 300M", 30, 960, 15, 2560),
    "esm1b": Shape("ESM-1b", 33, 1280, 20, 5120),
    "nt": Shape("Nucleotide Transformer v2 500M", 29, 1024, 16, 4096),
    "protbert": Shape("ProtBert", 30, 1024, 16, 4096),
    "prott5": Shape("ProtT5-XL", 24, 1024, 32, 16384, 128),
}


def build(name: str):
    """The model in transformers, with weights that are not set yet. Of the Nucleotide Transformer, transformers has version 1 alone:
    the gated feed-forward layers of version 2 are those of onnx/reference/nt_fixtures.py."""
    shape = SHAPES[name]
    sizes = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.inner,
    }
    if name == "esmc":
        return EsmcModel(EsmcConfig(**sizes))
    if name == "prott5":
        t5 = {"d_model": shape.hidden, "d_ff": shape.inner, "d_kv": shape.head_width, "num_heads": shape.heads, "num_layers": LAYERS}
        return T5EncoderModel(T5Config(**t5, vocab_size=128, feed_forward_proj="relu", dropout_rate=0.0))
    if name == "protbert":
        own = {"vocab_size": len(PROTBERT_VOCAB), "max_position_embeddings": 40000, "hidden_dropout_prob": 0.0}
        return BertModel(BertConfig(**sizes, **own, attention_probs_dropout_prob=0.0), add_pooling_layer=False)
    shared = {**sizes, "pad_token_id": esm2.PAD, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if name == "esm1b":
        own = {
            "vocab_size": len(esm2.VOCAB),
            "mask_token_id": 32,
            "max_position_embeddings": 1026,
            "position_embedding_type": "absolute",
            "emb_layer_norm_before": True,
            "token_dropout": True,
            "layer_norm_eps": 1e-5,
        }
        return EsmModel(EsmConfig(**shared, **own), add_pooling_layer=False)
    own = {
        "vocab_size": len(nt_fixtures.vocabulary("v2", K)),
        "mask_token_id": nt_fixtures.MASK,
        "max_position_embeddings": 2050,
        "position_embedding_type": "rotary",
        "token_dropout": False,
        "add_bias_fnn": False,
        "layer_norm_eps": 1e-12,
    }
    model = EsmModel(EsmConfig(**shared, **own), add_pooling_layer=False)
    for layer in model.encoder.layer:
        layer.intermediate = nt_fixtures.Gated(shape.hidden, shape.inner)
        layer.output.dense = torch.nn.Linear(shape.inner, shape.hidden, bias=False)
    return model


def randomize(model) -> None:
    """Random, but not bland: attention far from uniform, norms that spread around 1, biases that are not zero."""
    torch.manual_seed(SEED)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape)
        if "orm" in name:
            values = values * 0.25 + 1 if name.endswith("weight") else values * 0.15
        elif parameter.dim() == 1:
            values = values * 0.15
        elif "relative_attention_bias" not in name and "embed" not in name and name != "shared.weight":
            # Nothing scales the scores of T5.
            gain = 0.5 / 128**0.25 if name.endswith(("SelfAttention.q.weight", "SelfAttention.k.weight")) else 0.5
            values = values * gain / parameter.shape[1] ** 0.5
        parameter.data.copy_(values)


def checkpoint(work: Path, name: str) -> Path:
    """A folder as on the hub, made once."""
    folder = work / f"{name}-{LAYERS}-layers-random"
    if not (folder / "model.safetensors").exists():
        print(f"making random weights of the shape of {SHAPES[name].model} in {work}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        model = build(name)
        randomize(model)
        kind = {"esmc": "esmc", "protbert": "bert", "prott5": "t5"}.get(name, "esm")
        config = {**model.config.to_dict(), "model_type": kind}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        words = {"nt": nt_fixtures.vocabulary("v2", K), "protbert": PROTBERT_VOCAB, "esm1b": esm2.VOCAB}.get(name)
        if words:
            (folder / "vocab.txt").write_text("\n".join(words))
        prefix = "" if kind == "t5" else f"{kind}."
        skipped = ("contact_head", "inv_freq", "position_ids", "encoder.embed_tokens")
        state = {
            prefix + key: tensor.contiguous()
            for key, tensor in model.state_dict().items()
            if not any(part in key for part in skipped)
        }
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def load(name: str, folder: Path):
    """The model with the weights of the folder, fp32. Every weight must come from the file."""
    model = build(name)
    model.set_attn_implementation("sdpa")
    state = load_file(folder / "model.safetensors")
    if name != "prott5":
        state = {key.split(".", 1)[1]: tensor for key, tensor in state.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    skipped = ("contact_head", "inv_freq", "position_ids", "encoder.embed_tokens")
    missing = [key for key in missing if not any(part in key for part in skipped)]
    assert not missing and not unexpected, (missing, unexpected)
    return model.eval()


def tokenizer(name: str) -> Tokens:
    if name == "protbert":
        letters = {letter: number for number, letter in enumerate(PROTBERT_VOCAB)} | dict.fromkeys("UZOB", PROTBERT_VOCAB.index("X"))
        return Tokens(lambda sequence: [2, *(letters.get(letter, 1) for letter in sequence), 3], pad=0)
    if name == "prott5":
        residues = {letter: 3 + number for number, letter in enumerate(T5_RESIDUES)}
        residues |= dict.fromkeys("UZOB", residues["X"])
        return Tokens(lambda sequence: [*(residues.get(letter, 2) for letter in sequence), 1], front=0, pad=0)
    if name != "nt":
        return Tokens(esm2.token_ids)
    tokens = nt_fixtures.vocabulary("v2", K)
    ids = {token: number for number, token in enumerate(tokens)}

    def encode(sequence: str) -> list[int]:
        # As nt_fixtures.token_ids, which makes the table of tokens anew each time.
        at, row = 0, [nt_fixtures.CLS]
        while at < len(sequence):
            word = sequence[at : at + K] if sequence[at : at + K] in ids else sequence[at]
            row.append(ids.get(word, nt_fixtures.UNK))
            at += len(word)
        return row

    return Tokens(encode, behind=0)
