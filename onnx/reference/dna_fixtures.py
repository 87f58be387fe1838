"""Creates `tests/fixtures/dna/`: small DNABERT-2 and DNABERT checkpoints, real viral DNA, and the expected vectors.

    python onnx/reference/dna_fixtures.py --dnabert2-code DIR --lassa All_LASV_06_07_24.fasta [--out tests/fixtures/dna]

DIR holds bert_layers.py, bert_padding.py and configuration_bert.py as the hub's zhihan1996/DNABERT-2-117M publishes them
(einops must be installed for them). The genomes are those in PyPI's clasv 1.0.6 (CLASV/raw_data). Seeds are fixed.

Made with Python 3.11, torch 2.15.0, transformers 5.24.0, tokenizers 0.23.3, einops 0.8.2, safetensors 0.8.0, numpy 1.26.4.

What it writes
- checkpoints (vocabulary of 512 BPE tokens trained on the genomes, or 3-mers; two blocks, hidden size 48, feed-forward 96)
    dnabert2/            12 heads; pytorch_model.bin with prefix `bert.` and a `cls.` head, fp32
    dnabert-s/           the same weights as safetensors: no prefix, a pooler, fp16
    dnabert2-6-heads/    6 heads; safetensors, layer norms spelled gamma and beta, fp16
    dnabert-3/           a BERT of 3-mers, 4 heads; pytorch_model.bin with prefix `bert.`, a `cls.` head, gamma and beta, fp16;
                         its config.json lacks model_type and layer_norm_eps
    dnabert-3-plain/     the same weights as safetensors: no prefix, a pooler, fp16
- `inputs/*.fna`: pieces of Lassa virus genomes; headers are `accession/first-last`, then what was altered
- `cases.json`: for each case the model, the input file, the options, and each record's id, bases, tokens and status
- `expected.safetensors`: `CASE/POOLING/LAYER` [records, hidden], `CASE/none/LAYER/RECORD` [tokens, hidden] without special tokens,
  and `CASE/ids/RECORD`, the token ids with special tokens

How the expected vectors are made: DNABERT-2's own code (its plain PyTorch branch) and transformers' BertModel run each case
in fp32, all of a file's records in one padded batch. Layer k is what block k gives.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import dna
import numpy as np
import torch
from esm2 import POOLINGS, pool, read_fasta, write_fasta
from safetensors.torch import save_file

LAYERS, HIDDEN, INNER, VOCABULARY, K = 2, 48, 96, 512, 3
LAYERS_ASKED = [2, 1]


def write_inputs(folder: Path, genomes: dict[str, str], tokenizer) -> None:
    folder.mkdir(parents=True)

    def piece(accession: str, first: int, length: int, note: str = "") -> tuple[str, str]:
        sequence = genomes[accession][first - 1 : first - 1 + length]
        assert len(sequence) == length, accession
        return f"{accession}/{first}-{first + length - 1}{note}", sequence

    def of_tokens(accession: str, first: int, count: int) -> tuple[str, str]:
        """The shortest piece from there that has so many tokens."""
        low, high = 1, len(genomes[accession]) - first + 1
        while low < high:
            middle = (low + high) // 2
            tokens = len(tokenizer.encode(genomes[accession][first - 1 : first - 1 + middle]).ids) - 2
            low, high = (low, middle) if tokens >= count else (middle + 1, high)
        header, sequence = piece(accession, first, low)
        assert len(tokenizer.encode(sequence).ids) - 2 == count, (accession, count)
        return header, sequence

    write_fasta(
        folder / "mixed.fna",
        [
            piece("MH053567.1", 101, 500),
            piece("OM735983.1", 1, 1),
            of_tokens("OM735983.1", 1, 1500),
            of_tokens("MK107872.1", 201, 2),
            of_tokens("MK107886.1", 301, 513),
            piece("MK107886.1", 31, 60),
            of_tokens("MH053567.1", 1, 800),
            piece("MK107872.1", 1001, 333),
        ],
    )
    lower, rna = piece("MH053567.1", 701, 90), piece("MK107872.1", 2001, 90)
    unknown = genomes["MK117845.1"]
    first = next(i for i, letter in enumerate(unknown) if letter in "RY") - 40
    write_fasta(
        folder / "letters.fna",
        [
            (lower[0] + " lower case", lower[1].lower()),
            (rna[0] + " as RNA", rna[1].replace("T", "U")),
            piece("MK117845.1", first + 1, 120),  # has an IUPAC code of its own
            piece("MK117845.1", unknown.index("NN") - 29, 80),  # and N
            piece("MH053567.1", 801, 75),
        ],
    )
    write_fasta(
        folder / "kmers.fna",
        [
            piece("MH053567.1", 101, 512),
            piece("OM735983.1", 1, 3),
            piece("MK107872.1", 201, 4),
            piece("MK107886.1", 31, 60),
            piece("MK107872.1", 1001, 333),
            piece("OM735983.1", 2001, 129),
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dnabert2-code", type=Path, required=True, help="folder with DNABERT-2's bert_layers.py")
    parser.add_argument("--lassa", type=Path, required=True, help="FASTA file of the genomes")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "tests/fixtures/dna")
    arguments = parser.parse_args()
    out: Path = arguments.out
    torch.set_num_threads(1)
    shutil.rmtree(out, ignore_errors=True)

    genomes = {header.split()[0]: sequence.upper() for header, sequence in read_fasta(arguments.lassa)}
    tokenizer = dna.train_tokenizer([s for s in list(genomes.values())[::20] if set(s) <= set("ACGT")], VOCABULARY)
    kmers = dna.kmer_vocabulary(K)
    write_inputs(out / "inputs", genomes, tokenizer)
    inputs = {path.stem: read_fasta(path) for path in sorted((out / "inputs").iterdir())}

    twelve = dna.dnabert2_config(LAYERS, HIDDEN, 12, INNER, VOCABULARY)
    six = dna.dnabert2_config(LAYERS, HIDDEN, 6, INNER, VOCABULARY)
    bert = dna.bert_config(LAYERS, HIDDEN, 4, INNER, len(kmers))
    twelve_state, six_state = dna.random_dnabert2(twelve, 12), dna.random_dnabert2(six, 6)
    bert_state = dna.random_bert(bert, 3)
    half = torch.float16
    dna.write_folder(out / "dnabert2", twelve, dna.masked_lm(twelve_state, 13), tokenizer, "pytorch_model.bin")
    published = {**twelve, "architectures": ["BertModel"]}
    dna.write_folder(out / "dnabert-s", published, twelve_state, tokenizer, "model.safetensors", half)
    dna.write_folder(out / "dnabert2-6-heads", six, dna.old_norms(six_state), tokenizer, "model.safetensors", half)
    bare = {name: value for name, value in bert.items() if name not in ("model_type", "layer_norm_eps")}
    dna.write_folder(
        out / "dnabert-3", bare, dna.old_norms(dna.masked_lm(bert_state, 4)), kmers, "pytorch_model.bin", half
    )
    dna.write_folder(out / "dnabert-3-plain", bert, bert_state, kmers, "model.safetensors", half)

    def bpe_ids(sequence: str) -> list[int]:
        return tokenizer.encode(dna.bases(sequence)).ids

    def kmer_ids(sequence: str) -> list[int]:
        return dna.kmer_ids(sequence, K)

    models = {
        "dnabert2": (["dnabert2", "dnabert-s"], dna.load_dnabert2(arguments.dnabert2_code, twelve, twelve_state)),
        "dnabert2-6-heads": (["dnabert2-6-heads"], dna.load_dnabert2(arguments.dnabert2_code, six, six_state)),
        "dnabert-3": (["dnabert-3", "dnabert-3-plain"], dna.load_bert(bert, bert_state)),
    }
    expected: dict[str, np.ndarray] = {}
    cases: list[dict] = []

    def add(model: str, file: str, per_token: list[int], both_strands: bool = False) -> None:
        """Runs one case, and records it."""
        checkpoints, network = models[model]
        hidden = dna.hidden_bert if model == "dnabert-3" else dna.hidden_dnabert2
        unknown, to_ids = (1, kmer_ids) if model == "dnabert-3" else (0, bpe_ids)
        case = f"{model}-{file}" + ("-revcomp" if both_strands else "")
        records = inputs[file]
        rows = [to_ids(sequence) for _, sequence in records]
        vectors = hidden(network, rows, LAYERS_ASKED)
        alone = max(
            float(np.abs(vectors[0][i] - hidden(network, [row], LAYERS_ASKED[:1])[0][0]).max()) for i, row in enumerate(rows)
        )
        pooled = [[np.stack([pool(row, how) for row in layer]) for how in POOLINGS] for layer in vectors]
        if both_strands:
            others = hidden(network, [to_ids(dna.reverse_complement(sequence)) for _, sequence in records], LAYERS_ASKED)
            others = [[np.stack([pool(row, how) for row in layer]) for how in POOLINGS] for layer in others]
            pooled = [[(a + b) / 2 for a, b in zip(*pair)] for pair in zip(pooled, others)]
        for layer, by_pooling, tokens in zip(LAYERS_ASKED, pooled, vectors):
            for how, values in zip(POOLINGS, by_pooling):
                expected[f"{case}/{how}/{layer}"] = values
            for record in per_token:
                expected[f"{case}/none/{layer}/{record}"] = tokens[record][1:-1]
        if not both_strands:
            for record, row in enumerate(rows):
                expected[f"{case}/ids/{record}"] = np.array(row, dtype=np.int16)
        cases.append(
            {
                "name": case,
                "models": checkpoints,
                "input": f"inputs/{file}.fna",
                "options": ["--revcomp", "mean"] if both_strands else [],
                "layers": LAYERS_ASKED,
                "poolings": list(POOLINGS),
                "per_token_records": per_token,
                "ids": [header.split()[0] for header, _ in records],
                "lengths": [len(sequence) for _, sequence in records],
                "tokens": [len(row) - 2 for row in rows],
                "status": ["replaced" if unknown in row else "ok" for row in rows],
            }
        )
        print(f"{case:28} tokens {cases[-1]['tokens']}; one batch against one by one: {alone:.1e}")

    for model in ("dnabert2", "dnabert2-6-heads"):
        add(model, "mixed", [1, 3, 5])
    add("dnabert2", "letters", [3])
    add("dnabert2", "letters", [], both_strands=True)
    add("dnabert-3", "kmers", [1, 2, 3])
    add("dnabert-3", "letters", [3])

    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in expected.items()}
    save_file(tensors, out / "expected.safetensors")
    (out / "cases.json").write_text(json.dumps({"hidden": HIDDEN, "layers": LAYERS, "cases": cases}, indent=1) + "\n")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{size / 1e6:.2f} MB in {out}")


if __name__ == "__main__":
    main()
