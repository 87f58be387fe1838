"""Inputs of the GPU benchmark: random proteins and DNA of given lengths in FASTA files, a manifest, and their token ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import esm2

AMINO_ACIDS = b"ACDEFGHIKLMNPQRSTVWY"
BASES = b"ACGT"


@dataclass(frozen=True)
class Kind:
    """Sequences of one kind."""

    text: str
    """For the page."""
    letters: bytes
    tokens_each: float
    """Tokens of a sequence on average, special ones too: to choose how many."""


KINDS = {
    "proteins": Kind("proteins, lengths log-normal around 324 residues (30 to 1,022)", AMINO_ACIDS, 330),
    "frames": Kind("reading frames of 49 to 167 residues", AMINO_ACIDS, 110),
    "dna-500": Kind("DNA of 500 bases", BASES, 121),
    "dna-2-5k": Kind("DNA of 2,000 to 5,000 bases", BASES, 835),
    "dna-6k": Kind("DNA of 600 to 6,000 bases", BASES, 554),
}


def lengths(kind: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Letters of each sequence."""
    if kind == "proteins":
        return np.clip(np.exp(rng.normal(5.6, 0.65, count)), 30, 1022).astype(int)
    if kind == "frames":
        return rng.integers(49, 168, count)
    if kind == "dna-500":
        return np.full(count, 500)
    if kind == "dna-2-5k":
        return rng.integers(2000, 5001, count)
    if kind == "dna-6k":
        return rng.integers(600, 6001, count)
    raise ValueError(f"no such input: {kind}")


def make(folder: Path, kind: str, tokens: int, files: int) -> Path:
    """About so many tokens in FASTA files, the same ones each time; returns the manifest."""
    manifest = folder / "manifest.csv"
    count = max(2, round(tokens / KINDS[kind].tokens_each))
    files = min(files, count)
    stamp = f"{kind} {count} {files}"
    if (folder / "stamp").exists() and (folder / "stamp").read_text() == stamp:
        return manifest
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    letters = np.frombuffer(KINDS[kind].letters, np.uint8)
    records = [
        (f"{kind}_{number}", letters[rng.integers(0, len(letters), length)].tobytes().decode())
        for number, length in enumerate(lengths(kind, count, rng))
    ]
    rows = ["sample,fasta"]
    for file, part in enumerate(np.array_split(np.arange(count), files)):
        esm2.write_fasta(folder / f"part{file:03}.fasta", [records[i] for i in part])
        rows.append(f"part{file:03},part{file:03}.fasta")
    manifest.write_text("\n".join(rows) + "\n")
    (folder / "stamp").write_text(stamp)
    return manifest


def read(manifest: Path) -> tuple[list[str], list[str]]:
    """Ids and sequences of all files of a manifest."""
    records = []
    for row in manifest.read_text().splitlines()[1:]:
        records += esm2.read_fasta(manifest.parent / row.split(",")[1])
    return [header for header, _ in records], [sequence for _, sequence in records]


def token_rows(model: Path, family: str, sequences: list[str]) -> list[np.ndarray]:
    """Each sequence's token ids (int64) with the special ones, by independent implementations."""
    if family == "nucleotidetransformer":
        return [six_mers(sequence) for sequence in sequences]
    if family in ("esm2", "esmc"):
        table = np.full(256, esm2.UNK, np.int64)
        for letter, number in esm2.LETTERS.items():
            table[ord(letter)] = number
        return [
            np.concatenate([[esm2.CLS], table[np.frombuffer(s.encode(), np.uint8)], [esm2.EOS]]).astype(np.int64) for s in sequences
        ]
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [np.asarray(encoded.ids, np.int64) for encoded in tokenizer.encode_batch_fast(sequences)]


def six_mers(sequence: str) -> np.ndarray:
    """Token ids of Nucleotide Transformer, version 2: `<cls>` (3), then 6-mers in the order of A T C G behind six special tokens, and single
    letters behind those for the bases that are left."""
    letters = np.array(["ATCG".index(letter) for letter in sequence])
    whole = len(letters) // 6 * 6
    words = letters[:whole].reshape(-1, 6) @ 4 ** np.arange(5, -1, -1)
    return np.concatenate([[3], 6 + words, 6 + 4096 + letters[whole:]]).astype(np.int64)


def padded_batches(rows: list[np.ndarray], budget: int) -> list[list[int]]:
    """The rows' numbers, longest first, in batches that are within the budget when they are padded."""
    batches, batch = [], []
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        if batch and len(rows[batch[0]]) * (len(batch) + 1) > budget:
            batches.append(batch)
            batch = []
        batch.append(i)
    return [*batches, batch]


def packed_batches(rows: list[np.ndarray], budget: int) -> list[list[int]]:
    """The same for batches without padding."""
    batches, batch, tokens = [], [], 0
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        if batch and tokens + len(rows[i]) > budget:
            batches.append(batch)
            batch, tokens = [], 0
        batch.append(i)
        tokens += len(rows[i])
    return [*batches, batch]


def spread(rows: list[np.ndarray], count: int) -> list[int]:
    """So many rows of all lengths, the shortest and the longest among them."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    return [order[i] for i in np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))]


def thinned(rows: list[np.ndarray], share: float) -> list[int]:
    """A share of the rows, of the same lengths."""
    return spread(rows, max(1, round(share * len(rows))))
