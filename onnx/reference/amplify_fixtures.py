"""Creates `tests/fixtures/amplify/`: a small AMPLIFY checkpoint, and the vectors that it must give by its authors' code.

    python onnx/reference/amplify_fixtures.py --amplify-code DIR [--out tests/fixtures/amplify]

DIR is the folder `src` of https://github.com/chandar-lab/AMPLIFY (MIT), which is not part of this repository. Its model asks
xformers for the gated feed-forward layer; where that is not installed, a few lines below stand in, as xformers documents it.
Rerun it with the versions of requirements.txt: seeds are fixed. The inputs are those of `tests/fixtures/esm2/inputs`.

What it writes
- `checkpoints/hub/`: config.json and model.safetensors as on the hub (2 layers, hidden size 64, 2 heads of 32, feed-forward 100,
  which are 72 behind the gate), in half precision
- `tokens.json`: sequences and their ids by the authors' tokenizer
- `cases.json`, `expected.safetensors`: as in `tests/fixtures/esm2`

The authors' code runs each case in fp32, all of a file's records in one padded batch. The last layer's vectors are its last
hidden states, which have not passed the norm of the head. Typical mistakes are made on purpose, and how far each moves a mean is printed.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import math
import shutil
import sys
import types
from pathlib import Path

import esm2
import numpy as np
import torch
from safetensors.torch import save_file

LAYERS, HIDDEN, HEADS, INNER, SEED = 2, 64, 2, 100, 41
LAYERS_ASKED = [2, 1]
VOCAB = "<pad> <unk> <mask> <bos> <eos> | L A G V S E R T I D P K Q N F Y M H W C B".split()
PAD, UNK, MASK, BOS, EOS = range(5)
LETTERS = {token: number for number, token in enumerate(VOCAB) if len(token) == 1}


class SwiGLU(torch.nn.Module):
    """xformers' module of this name, with packed weights."""

    def __init__(self, inside: int, hidden: int, out: int, bias: bool = True):
        super().__init__()
        self.w12 = torch.nn.Linear(inside, 2 * hidden, bias=bias)
        self.w3 = torch.nn.Linear(hidden, out, bias=bias)

    def forward(self, x):
        first, second = self.w12(x).chunk(2, dim=-1)
        return self.w3(torch.nn.functional.silu(first) * second)


def authors_code(folder: Path):
    """The authors' modules of the model and of the tokenizer, without the rest of their package."""
    try:
        import xformers.ops  # noqa: F401
    except ImportError:
        ops = types.ModuleType("xformers.ops")
        ops.SwiGLU, ops.memory_efficient_attention = SwiGLU, None
        sys.modules["xformers"], sys.modules["xformers.ops"] = types.ModuleType("xformers"), ops
    package = types.ModuleType("amplify")
    package.__path__ = [str(folder.resolve() / "amplify")]
    sys.modules["amplify"] = package
    return importlib.import_module("amplify.model.amplify"), importlib.import_module("amplify.tokenizer.tokenizer")


def config() -> dict:
    """config.json as the hub has it."""
    return {
        "_name_": "AMPLIFY",
        "architectures": ["AMPLIFY"],
        "att_bias": False,
        "auto_map": {"AutoConfig": "amplify.AMPLIFYConfig", "AutoModel": "amplify.AMPLIFY"},
        "bos_token_id": BOS,
        "decoder_init_range": 0.02,
        "dropout_prob": 0,
        "embedding_init_range": 0.02,
        "eos_token_id": EOS,
        "ffn_bias": False,
        "hidden_act": "SwiGLU",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "layer_norm_after_embedding": False,
        "layer_norm_before_last_layer": True,
        "mask_token_id": MASK,
        "max_length": 2048,
        "model_type": "AMPLIFY",
        "norm_eps": 1e-05,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "other_special_token_ids": None,
        "pad_token_id": PAD,
        "pre_activation_layer_norm": True,
        "rms_norm": True,
        "torch_dtype": "float32",
        "unk_token_id": UNK,
        "vocab_path": "conf/tokenizer/amplify_vocab.txt",
        "vocab_size": len(VOCAB),
    }


def random_model(module):
    """Random, but not bland: attention far from uniform, norms that spread around 1."""
    torch.manual_seed(SEED)
    settings = {key: value for key, value in config().items() if not key.startswith(("_", "auto", "arch", "model", "torch"))}
    model = module.AMPLIFY(module.AMPLIFYConfig(**settings)).eval()
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape)
        if parameter.dim() == 1:
            values = values * 0.25 + 1 if name.endswith("weight") else values * 0.15
        elif name != "encoder.weight":
            gain = 1.6 if name.endswith(("q.weight", "k.weight")) else 0.8
            values = values * gain / math.sqrt(parameter.shape[1])
        parameter.data.copy_(values.half().float())
    return model


def hidden(model, rows: list[list[int]], layers: list[int]) -> list[list[np.ndarray]]:
    """Token vectors [tokens, hidden] with special tokens, for each layer from 1 and each row, all rows in one batch."""
    ids = torch.full((len(rows), max(map(len, rows))), PAD, dtype=torch.int64)
    mask = torch.full(ids.shape, float("-inf"))
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 0
    with torch.inference_mode():
        states = model(ids, mask, output_hidden_states=True).hidden_states
    assert len(states) == LAYERS
    return [[states[layer - 1][i, : len(row)].numpy() for i, row in enumerate(rows)] for layer in layers]


def mistakes(model, rows: list[list[int]]) -> dict[str, float]:
    """How far typical mistakes move a mean of the last layer."""

    def means(changed) -> np.ndarray:
        return np.stack([esm2.pool(row, "mean") for row in hidden(changed, rows, [LAYERS])[0]])

    right = means(model)

    def moved(change) -> float:
        changed = copy.deepcopy(model)
        for layer in changed.transformer_encoder:
            change(layer)
        return float(np.abs(means(changed) - right).max())

    def half_split(layer):
        # Rows in the order that makes neighbours of what stands half a head apart.
        width = HIDDEN // HEADS
        order = torch.arange(HIDDEN).reshape(HEADS, 2, width // 2).transpose(1, 2).flatten()
        for dense in (layer.q, layer.k):
            dense.weight.data = dense.weight.data[order]

    def halves(layer):
        first, second = layer.ffn.w12.weight.data.chunk(2)
        layer.ffn.w12.weight.data = torch.cat([second, first])

    def layer_norms(layer):
        for name in ("attention_norm", "ffn_norm"):
            norm = torch.nn.LayerNorm(HIDDEN, bias=False, eps=1e-5)
            norm.weight.data = getattr(layer, name).weight.data
            setattr(layer, name, norm)

    normed = [model.layer_norm_2(torch.from_numpy(row)).detach().numpy() for row in hidden(model, rows, [LAYERS])[0]]
    normed = np.stack([esm2.pool(row, "mean") for row in normed])
    return {
        "rotated dimensions half a head apart": moved(half_split),
        "the other half gated": moved(halves),
        "layer norms for RMS norms": moved(layer_norms),
        "the head's norm": float(np.abs(normed - right).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    fixtures = Path(__file__).parents[2] / "tests/fixtures"
    parser.add_argument("--amplify-code", type=Path, required=True, help="the folder src of the authors' repository")
    parser.add_argument("--out", type=Path, default=fixtures / "amplify")
    arguments = parser.parse_args()
    out: Path = arguments.out
    torch.set_num_threads(1)
    shutil.rmtree(out, ignore_errors=True)
    folder = out / "checkpoints/hub"
    folder.mkdir(parents=True)
    module, tokenizers = authors_code(arguments.amplify_code)
    model = random_model(module)
    state = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(), indent=2) + "\n")

    vocabulary = out / "vocab.txt"
    vocabulary.write_text("\n".join(VOCAB) + "\n")
    tokenizer = tokenizers.ProteinTokenizer(str(vocabulary), PAD, MASK, BOS, EOS, UNK, None)
    vocabulary.unlink()

    def token_ids(sequence: str) -> list[int]:
        sequence = sequence.upper()
        return tokenizer.encode(list(sequence[:-1] if sequence.endswith("*") else sequence)).tolist()

    expected: dict[str, np.ndarray] = {}
    cases: list[dict] = []
    tokens = []
    for file in ("mixed", "letters"):
        records = esm2.read_fasta(fixtures / f"esm2/inputs/{file}.faa")
        rows = [token_ids(sequence) for _, sequence in records]
        tokens += [{"sequence": sequence, "ids": row} for (_, sequence), row in zip(records, rows)]
        vectors = hidden(model, rows, LAYERS_ASKED)
        about = {
            "name": file,
            "models": ["checkpoints/hub"],
            "input": f"../esm2/inputs/{file}.faa",
            "options": [],
            "status": [esm2.status(sequence, LETTERS) for _, sequence in records],
        }
        esm2.add_case(cases, expected, about, records, vectors, LAYERS_ASKED, [1, 4] if file == "mixed" else [])
        if file == "mixed":
            for what, by in mistakes(model, rows).items():
                print(f"{what} moves a mean by {by:.2f}")
                assert by > 2e-3, what
    tokens.append({"sequence": "ACD|EFG", "ids": token_ids("ACD|EFG")})
    tensors = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in expected.items()}
    save_file(tensors, out / "expected.safetensors")
    summary = {"hidden": HIDDEN, "layers": LAYERS, "cases": cases}
    (out / "cases.json").write_text(json.dumps(summary, indent=1) + "\n")
    (out / "tokens.json").write_text(json.dumps(tokens, separators=(",", ":")) + "\n")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{size / 1e6:.2f} MB in {out}")


if __name__ == "__main__":
    main()
