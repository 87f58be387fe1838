"""Creates `tests/fixtures/pytorch/`: one object, saved by PyTorch as a zip archive and as before 1.6.

    python onnx/reference/pytorch_files.py [--out tests/fixtures/pytorch]

Rerun it with the versions of requirements.txt. The object has what checkpoints have: settings in a Namespace, a state dict
with a version history, parameters, tensors of several number formats, two that share a storage, one that is a part of
another, and one without values.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path

import torch


def contents() -> dict:
    """The object, of fixed values."""
    whole = torch.arange(12, dtype=torch.float32).reshape(4, 3) / 8
    state = OrderedDict(
        [
            ("words.weight", whole),
            ("tied.weight", whole),
            ("part.weight", whole[1:3]),
            ("parameter", torch.nn.Parameter(torch.tensor([0.5, -2.0]))),
            ("half", torch.tensor([1.5, 2.5, -0.25], dtype=torch.float16)),
            ("brain", torch.tensor([[1.0], [3.0]], dtype=torch.bfloat16)),
            ("double", torch.tensor(0.125, dtype=torch.float64)),
            ("position_ids", torch.arange(5)[None]),
            ("empty", torch.zeros(0, 3)),
        ]
    )
    state._metadata = OrderedDict([("", {"version": 1})])
    arguments = argparse.Namespace(arch="small", encoder_layers=2, dropout=0.1, token_dropout=True)
    return {"args": arguments, "model": state}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "tests/fixtures/pytorch")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.save(contents(), out / "zip.pt")
    torch.save(contents(), out / "legacy.pt", _use_new_zipfile_serialization=False)
    for path in sorted(out.iterdir()):
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
