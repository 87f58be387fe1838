"""Creates `tests/fixtures/contacts/`: contacts that the heads of small ESM-2 and ESM-1b checkpoints predict.

    python onnx/reference/contacts_fixtures.py [--out tests/fixtures/contacts]

Rerun it with the versions of requirements.txt, after the scripts that make the checkpoints, whose own heads are zero.

Made with Python 3.11, torch 2.15.0, transformers 5.24.0, fair-esm 2.0.0, safetensors 0.8.0, numpy 1.26.4.

What it writes
- `proteins.faa`: sequences of mixed lengths
- `NAME-contact-regression.pt`: a head with random weights, as fair-esm has it beside `NAME.pt`
- `MODEL.safetensors`: the same head (`weight` [1, layers * heads], `bias` [1]), and for each sequence `contacts/ID` [rows,
  length], every `STEP`th row of its map, from the first on (of short sequences every row)

transformers and fair-esm both compute them, all sequences in one padded batch, in 64 bits, and must agree to 5e-6.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from safetensors.torch import save_file
from score_fixtures import FIXTURES, fair_esm_model, token_ids, vocabulary

AGREE = 5e-6
STEP, SHORT = 12, 40
LETTERS = "ACDEFGHIKLMNPQRSTVWY"

# name -> the hub's folder, fair-esm's file
MODELS = {
    "esm2": ("esm2/checkpoints/hub-safetensors", "esm2/checkpoints/esm2_small.pt"),
    "esm1b": ("esm1/checkpoints/esm1b-safetensors", "esm1/checkpoints/esm1b_small.pt"),
}
LENGTHS = {"a": 33, "one": 1, "long": 290, "two": 2, "seven": 7, "middle": 121, "seventeen": 17}


def transformers_contacts(folder: Path, head: dict, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[sequences, longest, longest]."""
    from transformers import EsmModel

    model = EsmModel.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    model.contact_head.regression.weight.data = head["weight"].double()
    model.contact_head.regression.bias.data = head["bias"].double()
    with torch.no_grad():
        return model.predict_contacts(ids, mask)


def fair_esm_contacts(path: Path, head: dict, ids: torch.Tensor) -> torch.Tensor:
    """The same by fair-esm."""
    model = fair_esm_model(path)
    model.contact_head.regression.weight.data = head["weight"].double()
    model.contact_head.regression.bias.data = head["bias"].double()
    with torch.no_grad():
        return model.predict_contacts(ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FIXTURES / "contacts")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(19)
    sequences = {name: "".join(rng.choices(LETTERS, k=length)) for name, length in LENGTHS.items()}
    (out / "proteins.faa").write_text("".join(f">{name} of {len(s)}\n{s}\n" for name, s in sequences.items()))
    for seed, (name, (folder, pt)) in enumerate(MODELS.items()):
        model = fair_esm_model(FIXTURES / pt)
        torch.manual_seed(seed)
        number = model.contact_head.regression.in_features
        head = {"weight": 8 * torch.randn(1, number), "bias": torch.tensor([-1.5])}
        regression = {f"contact_head.regression.{key}": value for key, value in head.items()}
        torch.save({"model": regression}, out / (Path(pt).stem + "-contact-regression.pt"))

        tokens = vocabulary(FIXTURES / folder)
        rows = [token_ids(sequence, tokens, 1) for sequence in sequences.values()]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [tokens.index("<pad>")] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        ours = transformers_contacts(FIXTURES / folder, head, ids, mask)
        theirs = fair_esm_contacts(FIXTURES / pt, head, ids)
        tensors = dict(head)
        for at, (key, sequence) in enumerate(sequences.items()):
            length = len(sequence)
            contacts = ours[at, :length, :length]
            difference = (contacts - theirs[at, :length, :length]).abs().max().item()
            assert difference <= AGREE, (name, key, difference)
            step = 1 if length <= SHORT else STEP
            tensors[f"contacts/{key}"] = contacts[::step].float().contiguous()
            print(name, key, f"{contacts.min():.3f} to {contacts.max():.3f}, {difference:.1e} apart")
        save_file(tensors, out / f"{name}.safetensors")


if __name__ == "__main__":
    main()
