"""Compares seqembed with transformers on a real BERT with real weights, AntiBERTy (`antiberty` on PyPI, 26M parameters): `make real`.

    python onnx/reference/antiberty.py [--seqembed target/release/seqembed] [--wheel FILE]

Needs the packages in requirements.txt in this folder, and ONNX Runtime where seqembed finds it. The package is not installed: its wheel (97 MB) is
downloaded by pip into a temporary folder, unless --wheel names it, and only its weights and vocabulary are taken from it.

The sequences are random residues of antibodies' usual lengths and of extreme ones, up to the 510 that the positions allow; the
weights are what is real here. Mean vectors, both graphs. Exits with 1 when a value differs by more than 2e-5.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertModel

PACKAGE = "antiberty==0.1.3"
BOUND = 2e-5
LENGTHS = [1, 2, 15, 16, 17, 107, 112, 119, 121, 250, 509, 510]
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"


def checkpoint(wheel: Path, folder: Path) -> Path:
    """A folder as the hub would have it, from the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            path = Path(name)
            if path.parent.name == "AntiBERTy_md_smooth" or path.name == "vocab.txt":
                if path.suffix in (".json", ".txt") or path.name == "pytorch_model.bin":
                    (folder / path.name).write_bytes(archive.read(name))
    return folder


def by_transformers(folder: Path, sequences: list[str]) -> np.ndarray:
    """Means over residues, a sequence at a time."""
    config = BertConfig.from_json_file(folder / "config.json")
    model = BertModel(config, add_pooling_layer=False).eval()
    weights = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    weights = {name.removeprefix("bert."): value for name, value in weights.items() if name.startswith("bert.")}
    missing = [name for name in model.load_state_dict(weights, strict=False).missing_keys if not name.endswith("position_ids")]
    assert not missing, missing
    ids = {token: number for number, token in enumerate((folder / "vocab.txt").read_text().split())}
    means = []
    with torch.inference_mode():
        for sequence in sequences:
            tokens = [ids["[CLS]"], *(ids[residue] for residue in sequence), ids["[SEP]"]]
            hidden = model(torch.tensor([tokens])).last_hidden_state[0]
            means.append(hidden[1:-1].double().mean(0).numpy())
    return np.stack(means)


def main() -> None:
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seqembed", type=Path, default=root / "target/release/seqembed", help="the seqembed executable (a release build)")
    parser.add_argument("--wheel", type=Path, help="antiberty's wheel, if it is here already")
    arguments = parser.parse_args()
    choose = random.Random(1).choices
    sequences = ["".join(choose(RESIDUES, k=length)) for length in LENGTHS]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        wheel = arguments.wheel
        if wheel is None:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", work, PACKAGE]
            subprocess.run([str(part) for part in pip], check=True)
            wheel = next(work.glob("antiberty-*.whl"))
        folder = work / "antiberty"
        folder.mkdir()
        checkpoint(wheel, folder)
        expected = by_transformers(folder, sequences)
        fasta = work / "sequences.faa"
        fasta.write_text("".join(f">{len(sequence)}\n{sequence}\n" for sequence in sequences))
        run = lambda *words: subprocess.run([str(word) for word in (arguments.seqembed, *words)], check=True)  # noqa: E731
        run("export", folder, "-o", work / "model")
        worst = 0.0
        for kernels in ("auto", "portable"):
            run("embed", fasta, "-m", work / "model", "-o", work / "out", "--format", "npz", "--quiet", "--kernels", kernels)
            found = np.load(work / "out/sequences.npz")["embeddings"]
            difference = np.abs(found - expected).max()
            print(f"{kernels}: max difference {difference:.1e} (root mean square {np.sqrt((expected**2).mean()):.2f})")
            worst = max(worst, difference)
    if worst > BOUND:
        raise SystemExit(f"more than {BOUND:.0e} off")


if __name__ == "__main__":
    main()
