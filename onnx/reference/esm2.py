"""Creates ESM-2 checkpoints with random weights in every format, and runs them with both Python implementations.

Shared by the programs beside this one and by `bench/`. Nothing here looks at what seqembed does: token ids, pooling,
truncation and windows are written out again from their definitions, so that they can contradict it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np

# The 33 tokens in the order of the hub's vocab.txt, which is also fair-esm's ("ESM-1b" alphabet).
VOCAB = "<cls> <pad> <eos> <unk> L A G V S E R T I D P K Q N F Y M H W C X B U Z O . - <null_1> <mask>".split()
CLS, PAD, EOS, UNK, MASK = 0, 1, 2, 3, 32
LETTERS = {token: number for number, token in enumerate(VOCAB) if len(token) == 1}

# Name -> (layers, hidden size, heads). The feed-forward is four times as wide as the hidden size.
SIZES = {
    "8M": (6, 320, 20),
    "35M": (12, 480, 20),
    "150M": (30, 640, 20),
    "650M": (33, 1280, 20),
}


# ---------------------------------------------------------------------------------------------- sequences


def read_fasta(path: str | Path) -> list[tuple[str, str]]:
    """(header, sequence) of every record, plain or gzip."""
    path = Path(path)
    records: list[tuple[str, list[str]]] = []
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as lines:
        for line in lines:
            line = line.rstrip()
            if line.startswith(">"):
                records.append((line[1:], []))
            elif line:
                records[-1][1].append(line)
    return [(header, "".join(parts)) for header, parts in records]


def write_fasta(path: str | Path, records: list[tuple[str, str]]) -> None:
    """One header and one line of sequence a record."""
    Path(path).write_text("".join(f">{header}\n{sequence}\n" for header, sequence in records))


def find_example_proteins() -> Path:
    """The 20,000 proteins of Debian's package mmseqs2-examples."""
    path = Path("/usr/share/doc/mmseqs2/example-data/DB.fasta.gz")
    if not path.exists():
        raise SystemExit(
            f"{path} is not there: install Debian's package mmseqs2-examples (apt-get install mmseqs2-examples; a slim "
            "container may leave out /usr/share/doc: see its dpkg excludes), or name a FASTA file with --proteins-from"
        )
    return path


def sample_proteins(path: str | Path, count: int, cap: int, seed: int = 7) -> list[tuple[str, str]]:
    """`count` proteins chosen by `seed`, cut at `cap` residues, in the order of the file."""
    records = read_fasta(path)
    chosen = sorted(random.Random(seed).sample(range(len(records)), count))
    return [(records[i][0], records[i][1][:cap]) for i in chosen]


def token_ids(sequence: str) -> list[int]:
    """`<cls>` residues `<eos>`: upper-cased, one terminal `*` dropped, an unknown letter is one `<unk>`."""
    sequence = sequence.upper()
    sequence = sequence[:-1] if sequence.endswith("*") else sequence
    return [CLS, *(LETTERS.get(letter, UNK) for letter in sequence), EOS]


def padded(rows: list[list[int]], pad: int = PAD):
    """Token ids [batch, longest], padded with `<pad>`."""
    import torch

    ids = torch.full((len(rows), max(map(len, rows))), pad, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids


# ---------------------------------------------------------------------------------------------- weights


def random_state(layers: int, hidden: int, heads: int, seed: int) -> OrderedDict[str, np.ndarray]:
    """Weights of the true architecture, fp32, under the names of the hub's files.

    Random, but not bland: attention logits have a standard deviation of about 2.5 (far from uniform attention),
    every bias is non-zero, layer norms spread around 1, and the row of `<pad>` is not zero, so that a
    mistake in any of them shows in the output.
    """
    assert hidden % heads == 0
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape, dtype=np.float32)  # noqa: E731
    state: OrderedDict[str, np.ndarray] = OrderedDict()

    def linear(name: str, rows: int, columns: int, gain: float) -> None:
        state[f"{name}.weight"] = normal(rows, columns) * np.float32(gain / np.sqrt(columns))
        state[f"{name}.bias"] = normal(rows) * np.float32(0.15)

    def norm(name: str) -> None:
        state[f"{name}.weight"] = 1 + normal(hidden) * np.float32(0.25)
        state[f"{name}.bias"] = normal(hidden) * np.float32(0.15)

    state["esm.embeddings.word_embeddings.weight"] = normal(len(VOCAB), hidden)
    for i in range(layers):
        layer = f"esm.encoder.layer.{i}"
        linear(f"{layer}.attention.self.query", hidden, hidden, 1.6)
        linear(f"{layer}.attention.self.key", hidden, hidden, 1.6)
        linear(f"{layer}.attention.self.value", hidden, hidden, 1.0)
        linear(f"{layer}.attention.output.dense", hidden, hidden, 0.8)
        norm(f"{layer}.attention.LayerNorm")
        linear(f"{layer}.intermediate.dense", 4 * hidden, hidden, 1.0)
        linear(f"{layer}.output.dense", hidden, 4 * hidden, 0.8)
        norm(f"{layer}.LayerNorm")
    norm("esm.encoder.emb_layer_norm_after")
    linear("lm_head.dense", hidden, hidden, 1.0)
    norm("lm_head.layer_norm")
    state["lm_head.bias"] = normal(len(VOCAB)) * np.float32(0.1)
    # The hub's files tie these two; safetensors writes the tensor once, under the first name.
    state["lm_head.decoder.weight"] = state["esm.embeddings.word_embeddings.weight"]
    return state


def inverse_frequencies(hidden: int, heads: int) -> np.ndarray:
    """Rotary frequencies [head / 2] as both packages compute them, in fp32. Checkpoints carry them; nothing needs them."""
    import torch

    width = hidden // heads
    return (1.0 / (10000 ** (torch.arange(0, width, 2).float() / width))).numpy()


def hub_config(layers: int, hidden: int, heads: int, dtype: str = "float32") -> dict:
    """config.json as the hub's ESM-2 folders have it."""
    return {
        "architectures": ["EsmForMaskedLM"],
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout": None,
        "emb_layer_norm_before": False,
        "esmfold_config": None,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": 4 * hidden,
        "is_folding_model": False,
        "layer_norm_eps": 1e-05,
        "mask_token_id": MASK,
        "max_position_embeddings": 1026,
        "model_type": "esm",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": PAD,
        "position_embedding_type": "rotary",
        "token_dropout": True,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_list": None,
        "vocab_size": len(VOCAB),
    }


def write_hub_sidecars(folder: Path, config: dict) -> None:
    """config.json, vocab.txt and the tokenizer's small files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "vocab.txt").write_text("\n".join(VOCAB))
    specials = {"cls_token": "<cls>", "eos_token": "<eos>", "mask_token": "<mask>", "pad_token": "<pad>"}
    specials["unk_token"] = "<unk>"
    (folder / "special_tokens_map.json").write_text(json.dumps(specials) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "EsmTokenizer"}) + "\n")


def as_torch(state: OrderedDict[str, np.ndarray], dtype: str = "float32") -> OrderedDict:
    """The same weights as torch tensors; arrays that are one object become tensors that share storage."""
    import torch

    seen: dict[int, torch.Tensor] = {}
    return OrderedDict(
        (name, seen.setdefault(id(array), torch.from_numpy(array).to(getattr(torch, dtype))))
        for name, array in state.items()
    )


def unused_tensors(config: dict) -> dict:
    """What the hub's files hold besides the weights. Nothing needs it, though esm-cpp asks for the frequencies."""
    import torch

    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    out = {
        "esm.embeddings.position_ids": torch.arange(config["max_position_embeddings"])[None],
        "esm.contact_head.regression.weight": torch.zeros(1, layers * heads),
        "esm.contact_head.regression.bias": torch.zeros(1),
    }
    for i in range(layers):
        key = f"esm.encoder.layer.{i}.attention.self.rotary_embeddings.inv_freq"
        out[key] = torch.from_numpy(inverse_frequencies(config["hidden_size"], heads)).clone()
    return out


def write_safetensors(folder: Path, state, config: dict, dtype: str = "float32") -> None:
    """A hub folder with one model.safetensors."""
    from safetensors.torch import save_file

    write_hub_sidecars(folder, config)
    tensors = {**as_torch(state, dtype), **unused_tensors(config)}
    del tensors["lm_head.decoder.weight"]  # tied
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def fair_esm_state(state: OrderedDict[str, np.ndarray], hidden: int, heads: int) -> OrderedDict[str, np.ndarray]:
    """The hub's names and tensors under the names of fair-esm's released files."""
    renames = [
        ("esm.embeddings.word_embeddings.", "encoder.sentence_encoder.embed_tokens."),
        ("esm.encoder.emb_layer_norm_after.", "encoder.sentence_encoder.emb_layer_norm_after."),
        ("esm.encoder.layer.", "encoder.sentence_encoder.layers."),
        (".attention.self.query.", ".self_attn.q_proj."),
        (".attention.self.key.", ".self_attn.k_proj."),
        (".attention.self.value.", ".self_attn.v_proj."),
        (".attention.output.dense.", ".self_attn.out_proj."),
        (".attention.LayerNorm.", ".self_attn_layer_norm."),
        (".intermediate.dense.", ".fc1."),
        (".output.dense.", ".fc2."),
        (".LayerNorm.", ".final_layer_norm."),
        ("lm_head.decoder.weight", "lm_head.weight"),
        ("lm_head.", "encoder.lm_head."),
    ]
    out: OrderedDict[str, np.ndarray] = OrderedDict()
    for name, array in state.items():
        for old, new in renames:
            name = name.replace(old, new)
        out[name] = array
        if name.endswith("self_attn.q_proj.weight"):
            out[name.replace("q_proj.weight", "rot_emb.inv_freq")] = inverse_frequencies(hidden, heads)
    return out


def write_fair_esm(path: Path, state, layers: int, hidden: int, heads: int, dtype: str = "float32") -> None:
    """A fair-esm `.pt` and, beside it, the contact regression that its loader wants. The name must start with esm2."""
    import torch

    assert path.name.startswith("esm2") and path.suffix == ".pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    arguments = argparse.Namespace(
        _name="esm2",
        arch="esm2",
        encoder_layers=layers,
        encoder_embed_dim=hidden,
        encoder_ffn_embed_dim=4 * hidden,
        encoder_attention_heads=heads,
        token_dropout=True,
        dropout=0.0,
        max_positions=1024,
        activation_fn="gelu",
        untie_weights=False,
    )
    weights = as_torch(fair_esm_state(state, hidden, heads), dtype)
    torch.save({"cfg": {"_name": None, "common": {"seed": 1, "fp16": True}, "model": arguments}, "model": weights}, path)
    regression = {
        "contact_head.regression.weight": torch.zeros(1, layers * heads),
        "contact_head.regression.bias": torch.zeros(1),
    }
    torch.save({"model": regression}, path.with_name(path.stem + "-contact-regression.pt"))


def random_checkpoint(work: Path, size: str, seed: int = 1) -> tuple[Path, Path]:
    """Random weights of a true size as a hub folder and as a fair-esm `.pt` in the folder `work`, made once."""
    layers, hidden, heads = SIZES[size]
    folder, pt = work / f"esm2-{size}-random", work / f"esm2_{size}_random.pt"
    if not (folder / "model.safetensors").exists() or not pt.exists():
        print(f"making random weights of the shape {size} in {work}", flush=True)
        state = random_state(layers, hidden, heads, seed)
        write_fair_esm(pt, state, layers, hidden, heads)
        write_safetensors(folder, state, hub_config(layers, hidden, heads))
    return folder, pt


# ---------------------------------------------------------------------------------------------- the two models


def load_transformers(folder: Path, attention: str = "sdpa"):
    """The model by transformers, fp32. Every weight must come from the files."""
    import torch
    from transformers import EsmModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, info = EsmModel.from_pretrained(
        folder, add_pooling_layer=False, dtype=torch.float32, attn_implementation=attention, output_loading_info=True
    )
    missing = [key for key in info["missing_keys"] if "inv_freq" not in key and "contact_head" not in key]
    assert not missing and not info["mismatched_keys"], (missing, info["mismatched_keys"])
    return model.eval()


def load_fair_esm(path: Path):
    """The model by fair-esm's own loader, fp32."""
    import torch
    from esm import pretrained

    # torch.load refuses the Namespace in these files unless it is told that it is harmless.
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, alphabet = pretrained.load_model_and_alphabet(str(path))
    assert alphabet.all_toks == VOCAB
    return model.float().eval()


def hidden_transformers(model, rows: list[list[int]], layers: list[int]) -> list[list[np.ndarray]]:
    """Token vectors [tokens, hidden] with special tokens, for each layer and each row, all rows in one batch."""
    import torch

    ids = padded(rows)
    with torch.inference_mode():
        states = model(input_ids=ids, attention_mask=(ids != PAD).long(), output_hidden_states=True).hidden_states
    return [[states[layer][i, : len(row)].numpy() for i, row in enumerate(rows)] for layer in layers]


def hidden_fair_esm(model, rows: list[list[int]], layers: list[int]) -> list[list[np.ndarray]]:
    """The same by fair-esm."""
    import torch

    with torch.inference_mode():
        states = model(padded(rows), repr_layers=layers)["representations"]
    return [[states[layer][i, : len(row)].numpy() for i, row in enumerate(rows)] for layer in layers]


# ---------------------------------------------------------------------------------------------- pooling


POOLINGS = ("mean", "mean-all", "cls", "max")


def pool(tokens: np.ndarray, how: str) -> np.ndarray:
    """One vector from `<cls>` residues `<eos>` [tokens, hidden]."""
    residues = tokens[1:-1]
    if how == "mean":
        return residues.mean(0, dtype=np.float64).astype(np.float32)
    if how == "mean-all":
        return tokens.mean(0, dtype=np.float64).astype(np.float32)
    return {"cls": lambda: tokens[0], "max": lambda: residues.max(0)}[how]()


def windows(length: int, width: int, overlap: int) -> list[int]:
    """Starts of the windows: every `width - overlap`, the last one moved back to end where the sequence ends."""
    if length <= width:
        return [0]
    starts = list(range(0, length - width, width - overlap))
    return [*starts, length - width]


def join(parts: list[np.ndarray], starts: list[int], length: int, width: int) -> np.ndarray:
    """The windows' token vectors as one sequence.

    A residue comes from the window in which it is farthest from the nearer end (the earlier window on a tie),
    `<cls>` from the first window, `<eos>` from the last.
    """
    rows = [parts[0][0]]
    for position in range(length):
        covering = [k for k, start in enumerate(starts) if start <= position < start + width]
        centrality = [min(position - starts[k], starts[k] + width - 1 - position) for k in covering]
        best = covering[int(np.argmax(centrality))]
        rows.append(parts[best][1 + position - starts[best]])
    rows.append(parts[-1][-1])
    return np.stack(rows)


# ---------------------------------------------------------------------------------------------- fixtures


def status(sequence: str, letters: dict[str, int] = LETTERS) -> str:
    """The status of an embedded record, for a vocabulary with these letters."""
    found = sequence.rstrip("*").upper()
    replaced = ["replaced"] if any(letter not in letters for letter in found) else []
    return ",".join(replaced + (["gaps"] if set(found) & set("-.") else [])) or "ok"


def add_case(
    cases: list[dict],
    expected: dict[str, np.ndarray],
    about: dict,
    records: list[tuple[str, str]],
    vectors: list[list[np.ndarray]],
    layers: list[int],
    per_token: list[int],
) -> None:
    """Adds a case, and its vectors in every pooling and layer. `about` has its name, input, options and the status of each record;
    `vectors` is [layer][record], special tokens included."""
    for layer, rows in zip(layers, vectors):
        for how in POOLINGS:
            expected[f"{about['name']}/{how}/{layer}"] = np.stack([pool(row, how) for row in rows])
        for record in per_token:
            expected[f"{about['name']}/none/{layer}/{record}"] = np.ascontiguousarray(rows[record][1:-1])
    marks = about.pop("status")
    cases.append(
        {
            **about,
            "layers": layers,
            "poolings": list(POOLINGS),
            "per_token_records": per_token,
            "ids": [header.split()[0] for header, _ in records],
            "lengths": [len(sequence.rstrip("*")) for _, sequence in records],
            "status": marks,
        }
    )
