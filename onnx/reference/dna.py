"""Creates checkpoints of DNABERT-2, DNABERT-S and DNABERT (k-mers) with random weights, and runs them with their Python implementations.

DNABERT-2 and -S run in their authors' own PyTorch code (bert_layers.py, bert_padding.py and configuration_bert.py of the hub's
zhihan1996/DNABERT-2-117M), which is not part of this repository: the programs take the folder that holds it. DNABERT is
transformers' BertModel. Nothing here looks at what seqembed does.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from collections import OrderedDict
from itertools import product
from pathlib import Path

import numpy as np
import torch

# DNABERT-2's special tokens by id, and those of DNABERT, whose vocabulary goes on with the k-mers in this order of letters.
BPE_SPECIALS = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
KMER_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
KMER_LETTERS = "ATCG"
COMPLEMENT = str.maketrans("ACGTRYMKSWN", "TGCAYRKMSWN")


# ---------------------------------------------------------------------------------------------- tokens


def bases(sequence: str) -> str:
    """Upper case, U read as T."""
    return sequence.upper().replace("U", "T")


def reverse_complement(sequence: str) -> str:
    return bases(sequence).translate(COMPLEMENT)[::-1]


def train_tokenizer(sequences: list[str], vocabulary: int):
    """A BPE tokenizer of DNABERT-2's kind: same special ids, pre-tokenizer and template, fewer tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=BPE_SPECIALS, initial_alphabet=list("ACGT"), show_progress=False
    )
    tokenizer.train_from_iterator(sequences, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    assert tokenizer.get_vocab_size() == vocabulary
    assert [tokenizer.id_to_token(i) for i in range(5)] == BPE_SPECIALS
    return tokenizer


def kmer_vocabulary(k: int) -> list[str]:
    return KMER_SPECIALS + ["".join(letters) for letters in product(KMER_LETTERS, repeat=k)]


def kmer_ids(sequence: str, k: int) -> list[int]:
    """[CLS], every k letters at stride 1, [SEP]; what is not of A, T, C, G alone is [UNK]."""
    number = {token: i for i, token in enumerate(kmer_vocabulary(k))}
    sequence = bases(sequence)
    kmers = (sequence[i : i + k] for i in range(len(sequence) - k + 1))
    return [number["[CLS]"], *(number.get(kmer, number["[UNK]"]) for kmer in kmers), number["[SEP]"]]


# ---------------------------------------------------------------------------------------------- weights


class _Random:
    """Weights that are not bland: attention far from uniform, no zero bias, norms spread around 1.

    All are numbers of half precision, so that a file of either precision holds the same model.
    """

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.state: OrderedDict[str, torch.Tensor] = OrderedDict()

    def put(self, name: str, array: np.ndarray) -> None:
        self.state[name] = torch.from_numpy(array.astype(np.float16).astype(np.float32))

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape, dtype=np.float32)

    def table(self, name: str, rows: int, columns: int) -> None:
        self.put(f"{name}.weight", self.normal(rows, columns) * 0.7)

    def linear(self, name: str, rows: int, columns: int, gain: float, bias: bool = True) -> None:
        self.put(f"{name}.weight", self.normal(rows, columns) * (gain / np.sqrt(columns)))
        if bias:
            self.put(f"{name}.bias", self.normal(rows) * 0.15)

    def norm(self, name: str, width: int) -> None:
        self.put(f"{name}.weight", 1 + self.normal(width) * 0.25)
        self.put(f"{name}.bias", self.normal(width) * 0.15)


def random_dnabert2(config: dict, seed: int) -> OrderedDict[str, torch.Tensor]:
    """DNABERT-2's weights under the names that its BertModel gives them, with the pooler."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    r = _Random(seed)
    r.table("embeddings.word_embeddings", config["vocab_size"], hidden)
    r.table("embeddings.token_type_embeddings", config["type_vocab_size"], hidden)
    r.norm("embeddings.LayerNorm", hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        r.linear(f"{layer}.attention.self.Wqkv", 3 * hidden, hidden, 1.5)
        r.linear(f"{layer}.attention.output.dense", hidden, hidden, 0.8)
        r.norm(f"{layer}.attention.output.LayerNorm", hidden)
        r.linear(f"{layer}.mlp.gated_layers", 2 * inner, hidden, 1.0, bias=False)
        r.linear(f"{layer}.mlp.wo", hidden, inner, 0.8)
        r.norm(f"{layer}.mlp.layernorm", hidden)
    r.linear("pooler.dense", hidden, hidden, 1.0)
    return r.state


def random_bert(config: dict, seed: int) -> OrderedDict[str, torch.Tensor]:
    """The weights of a BERT with learned positions under the names that transformers' BertModel gives them."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    r = _Random(seed)
    r.table("embeddings.word_embeddings", config["vocab_size"], hidden)
    r.table("embeddings.position_embeddings", config["max_position_embeddings"], hidden)
    r.table("embeddings.token_type_embeddings", config["type_vocab_size"], hidden)
    r.norm("embeddings.LayerNorm", hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        r.linear(f"{layer}.attention.self.query", hidden, hidden, 1.5)
        r.linear(f"{layer}.attention.self.key", hidden, hidden, 1.5)
        r.linear(f"{layer}.attention.self.value", hidden, hidden, 1.0)
        r.linear(f"{layer}.attention.output.dense", hidden, hidden, 0.8)
        r.norm(f"{layer}.attention.output.LayerNorm", hidden)
        r.linear(f"{layer}.intermediate.dense", inner, hidden, 1.0)
        r.linear(f"{layer}.output.dense", hidden, inner, 0.8)
        r.norm(f"{layer}.output.LayerNorm", hidden)
    r.linear("pooler.dense", hidden, hidden, 1.0)
    return r.state


def masked_lm(state: OrderedDict[str, torch.Tensor], seed: int) -> OrderedDict[str, torch.Tensor]:
    """The same as BertForMaskedLM saves it: prefix `bert.`, no pooler, a `cls.` head whose decoder is the embedding."""
    words = state["embeddings.word_embeddings.weight"]
    vocabulary, hidden = words.shape
    head = _Random(seed)
    head.linear("cls.predictions.transform.dense", hidden, hidden, 1.0)
    head.norm("cls.predictions.transform.LayerNorm", hidden)
    head.put("cls.predictions.decoder.bias", head.normal(vocabulary))
    out = OrderedDict((f"bert.{name}", tensor) for name, tensor in state.items() if not name.startswith("pooler."))
    out.update(head.state)
    out["cls.predictions.decoder.weight"] = words
    return out


def old_norms(state: OrderedDict[str, torch.Tensor]) -> OrderedDict[str, torch.Tensor]:
    """Layer norms in the old spelling: gamma and beta."""

    def rename(name: str) -> str:
        if "LayerNorm." in name or "layernorm." in name:
            return name.replace("rm.weight", "rm.gamma").replace("rm.bias", "rm.beta")
        return name

    return OrderedDict((rename(name), tensor) for name, tensor in state.items())


def dnabert2_config(layers: int, hidden: int, heads: int, inner: int, vocabulary: int) -> dict:
    """config.json as the hub's DNABERT-2 and DNABERT-S folders have it, in these sizes."""
    return {
        "alibi_starting_size": 512,
        "architectures": ["BertForMaskedLM"],
        "attention_probs_dropout_prob": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_bert.BertConfig",
            "AutoModel": "bert_layers.BertModel",
            "AutoModelForMaskedLM": "bert_layers.BertForMaskedLM",
        },
        "classifier_dropout": None,
        "gradient_checkpointing": False,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": inner,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "model_type": "bert",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        # So it says in the published file, though the tokenizer's [PAD] is 3.
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "torch_dtype": "float32",
        "type_vocab_size": 2,
        "use_cache": True,
        "vocab_size": vocabulary,
    }


def bert_config(layers: int, hidden: int, heads: int, inner: int, vocabulary: int) -> dict:
    """config.json of a BERT, in these sizes."""
    return {
        "architectures": ["BertForMaskedLM"],
        "attention_probs_dropout_prob": 0.1,
        "do_lower_case": True,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": inner,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "model_type": "bert",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "vocab_size": vocabulary,
    }


def write_folder(folder: Path, config: dict, state, tokenizer, weights: str, dtype: torch.dtype = torch.float32) -> None:
    """A hub folder. `tokenizer` is a BPE tokenizer (tokenizer.json) or a list of tokens (vocab.txt)."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if isinstance(tokenizer, list):
        (folder / "vocab.txt").write_text("\n".join(tokenizer) + "\n")
    else:
        (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=False))
    stored: dict[int, torch.Tensor] = {}
    tensors = OrderedDict((name, stored.setdefault(id(t), t.to(dtype))) for name, t in state.items())
    if weights.endswith(".bin"):
        torch.save(tensors, folder / weights)
    else:
        save_file(tensors, folder / weights, metadata={"format": "pt"})


# ---------------------------------------------------------------------------------------------- the two models


def load_dnabert2(code: Path, config: dict, state: OrderedDict[str, torch.Tensor]):
    """DNABERT-2 by its authors' code in the folder `code`, by its plain PyTorch branch, fp32."""
    sys.path.insert(0, str(code.resolve().parent))
    try:
        layers = importlib.import_module(f"{code.resolve().name}.bert_layers")
        configuration = importlib.import_module(f"{code.resolve().name}.configuration_bert")
    finally:
        sys.path.pop(0)
    layers.flash_attn_qkvpacked_func = None  # the Triton kernel, where it can be imported: fp16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = layers.BertModel(configuration.BertConfig(**config), add_pooling_layer=False)
    weights = {name: tensor for name, tensor in state.items() if not name.startswith("pooler.")}
    model.load_state_dict(weights, strict=True)
    return model.float().eval()


def load_bert(config: dict, state: OrderedDict[str, torch.Tensor]):
    """transformers' BertModel, fp32."""
    from transformers import BertConfig, BertModel

    known = {name: value for name, value in config.items() if name not in ("architectures", "model_type", "do_lower_case")}
    model = BertModel(BertConfig(**known), add_pooling_layer=False)
    weights = {name: tensor for name, tensor in state.items() if not name.startswith("pooler.")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all("ids" in name for name in missing), (missing, unexpected)
    return model.float().eval()


def _batch(rows: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.full((len(rows), max(map(len, rows))), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


def hidden_dnabert2(model, rows: list[list[int]], layers: list[int]) -> list[list[np.ndarray]]:
    """Token vectors [tokens, hidden] with special tokens, for each layer and each row, all rows in one batch."""
    ids, mask = _batch(rows, pad=3)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells when it enlarges the ALiBi tensor
        # Hidden states without padding, [all rows' tokens, hidden], from the first block on.
        states = model(ids, attention_mask=mask, output_all_encoded_layers=True)[0]
        embeddings = model.embeddings(ids, torch.zeros_like(ids))[mask.bool()]
    ends = np.cumsum([len(row) for row in rows])[:-1]
    return [np.split((states[layer - 1] if layer else embeddings).numpy(), ends) for layer in layers]


def hidden_bert(model, rows: list[list[int]], layers: list[int]) -> list[list[np.ndarray]]:
    """The same by transformers' BertModel."""
    ids, mask = _batch(rows, pad=0)
    with torch.inference_mode():
        states = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    return [[states[layer][i, : len(row)].numpy() for i, row in enumerate(rows)] for layer in layers]
