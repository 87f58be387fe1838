"""Runs VirNucPro's own code and `seqembed virnucpro` side by side, and compares every file.

    python onnx/reference/virnucpro.py --virnucpro DIR --contigs contigs.fasta [--features 40] [--seqembed target/release/seqembed]

DIR is a checkout of VirNucPro, which has units.py and prediction.py. What is compared:
- on all contigs: the chunks, the reading frames and their translations, and the files of 10,000, byte for byte;
- on the first contigs (--features): the vectors of both models, the merged file, their keys, types and order, and what
  the prediction's own reader makes of the merged file. The models are the small ones of tests/fixtures, run there by
  transformers and fair-esm through VirNucPro's own functions. Its model of DNA is stood in for by a BERT of 3-mers, which
  goes through the same functions and needs no code from elsewhere.

Needs biopython, tqdm, pandas, torch, transformers, fair-esm and safetensors. Known to run with torch 2.15.0, transformers
5.24.0, fair-esm 2.0.0, biopython 1.87.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
K = 3


class KmerTokenizer:
    """As transformers' tokenizers are called: a text in, tensors out."""

    def __call__(self, sequence: str, return_tensors: str) -> dict[str, torch.Tensor]:
        import dna

        return {"input_ids": torch.tensor([dna.kmer_ids(sequence, K)])}


class Layer36(torch.nn.Module):
    """A small ESM-2 whose last layer answers to the name that VirNucPro asks for."""

    def __init__(self, model) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens, repr_layers, return_contacts):
        last = self.model.num_layers
        out = self.model(tokens, repr_layers=[last], return_contacts=return_contacts)
        return {"representations": {layer: out["representations"][last] for layer in repr_layers}}


def models():
    import dna
    import esm
    import esm2
    from safetensors.torch import load_file

    folder = FIXTURES / "dna" / "dnabert-3-plain"
    config = json.loads((folder / "config.json").read_text())
    state = {key: value.float() for key, value in load_file(folder / "model.safetensors").items()}
    protein = esm2.load_fair_esm(FIXTURES / "esm2" / "checkpoints" / "esm2_small.pt")
    return dna.load_bert(config, state), Layer36(protein), esm.data.Alphabet.from_architecture("ESM-1b")


def frames(units, chunked: Path, nucleotides: Path, proteins: Path) -> int:
    """What prediction.py does between the chunks and the models."""
    from Bio import SeqIO

    count = 0
    with open(nucleotides, "w") as dna, open(proteins, "w") as protein:
        for record in SeqIO.parse(chunked, "fasta"):
            for item in units.identify_seq(record.id, str(record.seq).upper()) or []:
                if item.get("protein", "") != "":
                    dna.write(f">{item['seqid']}\n{item['nucleotide']}\n")
                    protein.write(f">{item['seqid']}\n{item['protein']}\n")
                    count += 1
    return count


def theirs(units, contigs: Path, out: Path, chunk: int) -> int:
    out.mkdir()
    stem = out / contigs.name.split(".fa")[0]
    chunked = Path(f"{stem}_chunked{chunk}.fa")
    nucleotides, proteins = Path(f"{stem}_identified_nucleotide.fa"), Path(f"{stem}_identified_protein.faa")
    units.split_fasta_chunk(str(contigs), str(chunked), chunk)
    count = frames(units, chunked, nucleotides, proteins)
    units.split_fasta_file(str(nucleotides), f"{stem}_nucleotide/", 10_000)
    units.split_fasta_file(str(proteins), f"{stem}_protein/", 10_000)
    return count


def ours(seqembed: Path, contigs: Path, out: Path, chunk: int, *options: str) -> None:
    subprocess.run([seqembed, "virnucpro", contigs, "-o", out, "--chunk", str(chunk), *options], check=True)


def texts(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.suffix in (".fa", ".faa"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def compare_texts(a: Path, b: Path) -> None:
    left, right = texts(a), texts(b)
    assert list(left) == list(right), (list(left), list(right))
    for name in left:
        assert left[name] == right[name], f"{name} differs"
        print(f"  same  {name}  {len(left[name]):,} bytes")


def kinds(value) -> object:
    """A value's types, all the way down; of lists, those that occur."""
    if isinstance(value, dict):
        return {key: kinds(item) for key, item in value.items()}
    if isinstance(value, list):
        return [list, *sorted({repr(kinds(item)) for item in value})]
    if torch.is_tensor(value):
        return (torch.Tensor, value.dtype, tuple(value.shape), value.is_contiguous(), value.requires_grad)
    return type(value)


def numbers(value) -> torch.Tensor:
    data = value["data"]
    if torch.is_tensor(data):
        return data
    return torch.stack([torch.tensor(x["mean_representation"]) if isinstance(x, dict) else x for x in data])


def compare_features(name: str, a: Path, b: Path) -> None:
    left, right = torch.load(a, weights_only=True), torch.load(b, weights_only=True)
    key = next(iter(left))
    assert list(left) == list(right), (list(left), list(right))
    assert left[key] == right[key], f"{name}: other ids, or in another order"
    assert kinds(left) == kinds(right), f"{name}: {kinds(left)}\n{kinds(right)}"
    difference = (numbers(left) - numbers(right)).abs().max().item()
    assert difference < 1e-4, f"{name}: {difference}"
    print(f"  same  {name}  {len(left[key])} rows of {numbers(left).shape[1]}, greatest difference {difference:.1e}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--virnucpro", type=Path, required=True, help="a checkout of VirNucPro")
    arguments.add_argument("--contigs", type=Path, required=True, help="FASTA of contigs")
    arguments.add_argument("--features", type=int, default=40, metavar="N", help="contigs whose vectors are compared")
    arguments.add_argument("--seqembed", type=Path, default=ROOT / "target/release/seqembed")
    asked = arguments.parse_args()
    sys.path[:0] = [str(asked.virnucpro.resolve())]
    import units
    from Bio import SeqIO

    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        every = work / "all.fasta"
        shutil.copy(asked.contigs, every)
        for chunk in (500, 300):
            count = theirs(units, every, work / f"theirs{chunk}", chunk)
            ours(asked.seqembed, every, work / f"ours{chunk}", chunk, "--frames-only")
            print(f"chunks of {chunk}: {count:,} reading frames")
            compare_texts(work / f"theirs{chunk}", work / f"ours{chunk}")

        some = work / "some.fasta"
        SeqIO.write([record for record, _ in zip(SeqIO.parse(every, "fasta"), range(asked.features))], some, "fasta")
        a, b = work / "theirs", work / "ours"
        count = theirs(units, some, a, 500)
        ours(
            asked.seqembed, some, b, 500, "--quiet",
            "--dna-model", str(FIXTURES / "dna" / "dnabert-3-plain"),
            "--protein-model", str(FIXTURES / "esm2" / "checkpoints" / "esm2_small.pt"),
        )  # fmt: skip
        print(f"vectors of the first {asked.features} contigs: {count:,} reading frames")
        compare_texts(a, b)
        bert, esm2, alphabet = models()
        part = {side: a / f"some_{side}" for side in ("nucleotide", "protein", "merged")}
        part["merged"].mkdir()
        dnabert, esm = part["nucleotide"] / "output_1_DNABERT_S.pt", part["protein"] / "output_1_ESM.pt"
        merged = part["merged"] / "output_1_merged.pt"
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            fasta = str(part["nucleotide"] / "output_1.fa")
            units.extract_DNABERT_S(fasta, str(dnabert), model_loaded=True, tokenizer=KmerTokenizer(), model=bert)
            fasta = str(part["protein"] / "output_1.fa")
            units.extract_esm(fasta, out_file=str(esm), model_loaded=True, model=esm2, alphabet=alphabet)
            units.merge_data(str(dnabert), str(esm), str(merged))
        for path in (dnabert, esm, merged):
            name = path.relative_to(a)
            compare_features(str(name), path, b / name)

        # The prediction's module reads its command line when it is imported.
        sys.argv = ["prediction.py", "contigs", "500", "model"]
        os.chdir(work)
        import prediction

        mine = prediction.PredictDataBatchDataset([str(b / merged.relative_to(a))])
        its = prediction.PredictDataBatchDataset([str(merged)])
        assert len(mine) == len(its) == count
        for (left, left_id), (right, right_id) in zip(mine, its):
            assert left_id == right_id and torch.allclose(left, right, atol=1e-4)
        print(f"  same  the prediction's own reader: {len(mine)} rows")


if __name__ == "__main__":
    main()
