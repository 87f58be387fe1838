"""Makes `tests/fixtures/esmc/`: a small ESM C checkpoint, and the vectors that it must give by transformers.

    python onnx/reference/esmc_fixtures.py [--out tests/fixtures/esmc]

Rerun it with the versions of requirements.txt: seeds are fixed. The inputs are those of `tests/fixtures/esm2/inputs`.

What it writes
- `checkpoints/hub/`: config.json and model.safetensors as transformers saves an `EsmcForMaskedLM` (2 layers, hidden size 128, 2
  heads of 64, feed-forward 192), its numbers rounded to 16 bits. The other two layouts have the same tensors under other
  names, some of them joined; a test of `onnx/tests` makes them.
- `cases.json`, `expected.safetensors`: as in `tests/fixtures/esm2`

transformers runs each case in fp32, all of a file's records in one padded batch; a second time in fp64 to tell how far fp32 is from
the truth. Typical mistakes are made on purpose, and how far each moves the mean is printed.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import shutil
from pathlib import Path

import esm2
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import EsmcConfig, EsmcForMaskedLM
from transformers.models.esmc.tokenization_esmc import EsmcTokenizer

LAYERS, HIDDEN, HEADS, INNER, SEED = 2, 128, 2, 192, 36
LAYERS_ASKED = [2, 1]
# The chain break is a letter of its own.
LETTERS = {letter: number for letter, number in esm2.LETTERS.items()} | {"|": 31}


def token_ids(sequence: str) -> list[int]:
    """`<cls>` residues `<eos>`: upper-cased, one terminal `*` dropped, an unknown letter is one `<unk>`."""
    sequence = sequence.upper()
    sequence = sequence[:-1] if sequence.endswith("*") else sequence
    return [esm2.CLS, *(LETTERS.get(letter, esm2.UNK) for letter in sequence), esm2.EOS]


def random_model() -> EsmcForMaskedLM:
    """Random, but not bland: attention far from uniform, norms that spread around 1, biases that are not zero."""
    torch.manual_seed(SEED)
    config = EsmcConfig(
        hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=INNER
    )
    model = EsmcForMaskedLM(config).eval()
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape)
        if parameter.dim() == 1:
            values = values * 0.25 + 1 if name.endswith("weight") else values * 0.15
            if "q_norm" in name or "k_norm" in name:
                values = values * 1.6
        elif "embed_tokens" not in name:
            # What is added to the residual is divided by less than one in a model of few layers.
            gain = 0.25 if "o_proj" in name or "down_proj" in name else 1.0
            values = values * gain / math.sqrt(parameter.shape[1])
        parameter.data.copy_(values.half().float())
    return model


def hidden(model, rows: list[list[int]], layers: list[int]) -> list[list[np.ndarray]]:
    """Token vectors [tokens, hidden] with special tokens, for each layer and each row, all rows in one batch."""
    ids = esm2.padded(rows)
    with torch.inference_mode():
        mask = (ids != esm2.PAD).long()
        states = model.esmc(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert len(states) == LAYERS + 1
    return [[states[layer][i, : len(row)].numpy() for i, row in enumerate(rows)] for layer in layers]


def mistakes(model, rows: list[list[int]]) -> dict[str, float]:
    """How far typical mistakes move a mean of the last layer."""

    def means(changed) -> np.ndarray:
        return np.stack([esm2.pool(row, "mean") for row in hidden(changed, rows, [LAYERS])[0]])

    right = means(model)

    def moved(change) -> float:
        changed = copy.deepcopy(model)
        for layer in changed.esmc.layers:
            change(layer)
        return float(np.abs(means(changed) - right).max())

    class HeadNorm(torch.nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.weight = norm.weight

        def forward(self, x):
            parts = x.unflatten(-1, (HEADS, -1))
            return torch.nn.functional.layer_norm(parts, parts.shape[-1:]).flatten(-2) * self.weight

    def a_head_at_a_time(layer):
        layer.self_attn.q_norm = HeadNorm(layer.self_attn.q_norm)
        layer.self_attn.k_norm = HeadNorm(layer.self_attn.k_norm)

    def no_norm(layer):
        layer.self_attn.q_norm = layer.self_attn.k_norm = torch.nn.Identity()

    def halves(layer):
        layer.mlp.gate_proj, layer.mlp.up_proj = layer.mlp.up_proj, layer.mlp.gate_proj

    def activation(layer):
        layer.mlp.act_fn = torch.nn.GELU()

    return {
        "a norm of queries a head at a time": moved(a_head_at_a_time),
        "no norm of queries and keys": moved(no_norm),
        "the other half gated": moved(halves),
        "no residual scale": moved(lambda layer: setattr(layer, "scaling_factor", 1.0)),
        "GELU for SiLU": moved(activation),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    fixtures = Path(__file__).parents[2] / "tests/fixtures"
    parser.add_argument("--out", type=Path, default=fixtures / "esmc")
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    shutil.rmtree(out, ignore_errors=True)
    model = random_model()
    folder = out / "checkpoints/hub"
    model.save_pretrained(folder)
    state = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items() if "inv_freq" not in name}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    for file in folder.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    tokenizer = EsmcTokenizer()
    expected: dict[str, np.ndarray] = {}
    cases = []
    double = copy.deepcopy(model).double()
    for file in ("mixed", "letters"):
        records = esm2.read_fasta(fixtures / f"esm2/inputs/{file}.faa")
        rows = [token_ids(sequence) for _, sequence in records]
        if file == "mixed":
            for (_, sequence), ids in zip(records, rows):
                assert tokenizer(sequence)["input_ids"] == ids, sequence
        vectors = hidden(model, rows, LAYERS_ASKED)
        exact = hidden(double, rows, LAYERS_ASKED)
        off = max(float(np.abs(a - b).max()) for a, b in zip(sum(vectors, []), sum(exact, [])))
        print(f"{file}: fp32 is off fp64 by {off:.1e}")
        assert off < 1e-5
        per_token = [1, 4] if file == "mixed" else []
        about = {
            "name": file,
            "models": ["checkpoints/hub"],
            "input": f"../esm2/inputs/{file}.faa",
            "options": [],
            "status": [esm2.status(sequence, LETTERS) for _, sequence in records],
        }
        esm2.add_case(cases, expected, about, records, vectors, LAYERS_ASKED, per_token)
        if file == "mixed":
            for what, by in mistakes(model, rows).items():
                print(f"{what} moves a mean by {by:.2f}")
                assert by > 2e-3, what
    save_file({key: torch.from_numpy(array.copy()) for key, array in expected.items()}, out / "expected.safetensors")
    summary = {"hidden": HIDDEN, "layers": LAYERS, "cases": cases}
    (out / "cases.json").write_text(json.dumps(summary, indent=1) + "\n")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{size / 1e6:.2f} MB in {out}")


if __name__ == "__main__":
    main()
