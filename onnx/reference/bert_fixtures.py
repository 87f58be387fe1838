"""Creates `tests/fixtures/bert/`: small checkpoints of ProtBert's, IgBert's and GROVER's layouts, and the expected vectors.

    python onnx/reference/bert_fixtures.py [--out tests/fixtures/bert]

Rerun it with the versions of requirements.txt: seeds are fixed. Proteins are those of `tests/fixtures/esm2/inputs`, DNA is cut
from `tests/fixtures/dna/inputs/mixed.fna`.

What it writes
- checkpoints (two blocks, hidden size 32, 2 heads, feed-forward 64)
    protbert/   as published: a pytorch_model.bin of before PyTorch 1.6 with prefix `bert.` and a `cls.` head; its config.json
                has no model_type, no layer_norm_eps and no pad_token_id
    igbert/     the same weights as model.safetensors without prefix, with a whole config.json
    grover/     byte pairs of DNA in a tokenizer.json as published: with a token of no letters, for which the model has no
                row, and merges with it; a vocab.txt that nobody reads; pytorch_model.bin with a pooler; 130 positions
- `inputs/`: two chains with `|` between them; DNA
- `tokens.json`: for each model sequences and their ids, by transformers' tokenizers on texts made as the authors make them
- `cases.json`, `expected.safetensors`: as in `tests/fixtures/esm2`; a case's name begins with the model's

Vectors are those of transformers' BertModel in fp32, all of a file's records in one padded batch. Long DNA is embedded in
windows of so many tokens as there are positions for, and joined as in `esm2.py`. Typical mistakes are made on purpose, and
how far each moves a mean is printed.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import shutil
from pathlib import Path

import dna
import esm2
import numpy as np
import torch
from safetensors.torch import save_file

LAYERS, HIDDEN, HEADS, INNER = 2, 32, 2, 64
LAYERS_ASKED = [2, 1]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "LAGVESIKRDTPNQFYMHCWXUBZO"
# Positions of the small GROVER, and bases of a window unless the user says otherwise.
POSITIONS, MERGES = 130, 100
MOST = POSITIONS - 2
LONGEST, OVERLAP = 4 * MOST, MOST
CHAINS = [
    ("pair", "QVQLVESGGGVVQPGRSLRLSCAASGFTFSNYAMYWVRQAPGKGLEW|ALTQPASVSGSPGQSITISCTGTSSDVGGYNYVSWYQQ"),
    ("light alone", "EVVMTQSPASLSVSPGERATLSCRARASLGISTDLAWYQQ"),
    ("short", "QVQ|EV"),
]


# ---------------------------------------------------------------------------------------------- tokens


def spaced(sequence: str) -> str:
    """A protein as ProtBert's and IgBert's authors write it for the tokenizer."""
    sequence = sequence.upper()
    sequence = sequence[:-1] if sequence.endswith("*") else sequence
    chains = [" ".join(re.sub("[UZOB]", "X", chain)) for chain in sequence.split("|")]
    return " [SEP] ".join(chains)


def protein_tokenizer(folder: Path):
    from transformers import BertTokenizer

    return BertTokenizer(vocab=str(folder / "vocab.txt"), do_lower_case=False)


def write_dna_tokenizer(folder: Path, sequences: list[str]) -> None:
    """A tokenizer.json of GROVER's kind."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    size = len(SPECIALS) + 4 + MERGES
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIALS, initial_alphabet=list("ACGT"), show_progress=False
    )
    tokenizer.train_from_iterator([run for sequence in sequences for run in re.findall("[ACGT]+", sequence)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    file = json.loads(tokenizer.to_str(pretty=False))
    model = file["model"]
    assert len(model["vocab"]) == size
    model["vocab"][""] = size
    pairs = [" ".join(pair) for pair in model["merges"]]
    model["merges"] = [f"{base} " for base in "ACGT"] + pairs
    (folder / "tokenizer.json").write_text(json.dumps(file, separators=(",", ":")))
    (folder / "vocab.txt").write_text("\n".join(model["vocab"]) + "\n")


def dna_tokenizer(folder: Path):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


# ---------------------------------------------------------------------------------------------- checkpoints


def config(vocabulary: int, positions: int) -> dict:
    return {
        **dna.bert_config(LAYERS, HIDDEN, HEADS, INNER, vocabulary),
        "do_lower_case": False,
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
        "max_position_embeddings": positions,
    }


def write_checkpoints(out: Path, sequences: list[str]) -> dict:
    """Configurations and weights by model."""
    half = torch.float16
    words = [*SPECIALS, *LETTERS]
    protein = config(len(words), 300)
    state = dna.random_bert(protein, 21)
    bare = {key: value for key, value in protein.items() if key not in ("model_type", "layer_norm_eps", "pad_token_id")}
    dna.write_folder(out / "igbert", protein, state, words, "model.safetensors", half)
    dna.write_folder(out / "protbert", bare, dna.masked_lm(state, 22), words, "pytorch_model.bin", half)
    saved = torch.load(out / "protbert/pytorch_model.bin")
    torch.save(saved, out / "protbert/pytorch_model.bin", _use_new_zipfile_serialization=False)

    grover = config(len(SPECIALS) + 4 + MERGES, POSITIONS)
    grover_state = dna.random_bert(grover, 23)
    head = dna.masked_lm(grover_state, 24)
    head.update({f"bert.{name}": tensor for name, tensor in grover_state.items() if name.startswith("pooler.")})
    # The tokenizer is written by itself.
    dna.write_folder(out / "grover", grover, head, [], "pytorch_model.bin", half)
    write_dna_tokenizer(out / "grover", sequences)
    return {"protbert": (protein, state), "grover": (grover, grover_state)}


# ---------------------------------------------------------------------------------------------- vectors


def in_windows(model, row: list[int], layers: list[int]) -> list[np.ndarray]:
    """Token vectors of a row that may be longer than the model's positions, for each layer."""
    inner = row[1:-1]
    starts = esm2.windows(len(inner), MOST, MOST * OVERLAP // LONGEST)
    rows = [[row[0], *inner[start : start + MOST], row[-1]] for start in starts]
    parts = dna.hidden_bert(model, rows, layers)
    return [esm2.join(layer, starts, len(inner), MOST) for layer in parts]


def mistakes(model, rows: list[list[int]], wrong_rows: dict[str, list[list[int]]]) -> dict[str, float]:
    """How far typical mistakes move a mean of the last layer."""

    def means(changed, rows) -> np.ndarray:
        vectors = dna.hidden_bert(changed, rows, [LAYERS])[0]
        return np.stack([esm2.pool(row, "mean") for row in vectors])

    right = means(model, rows)

    def moved(change) -> float:
        changed = copy.deepcopy(model)
        change(changed.embeddings)
        return float(np.abs(means(changed, rows) - right).max())

    def shift(embeddings) -> None:
        table = embeddings.position_embeddings.weight.data
        table.copy_(torch.roll(table, -2, 0))

    def second_type(embeddings) -> None:
        table = embeddings.token_type_embeddings.weight.data
        table.copy_(torch.roll(table, 1, 0))

    vectors = dna.hidden_bert(model, rows, [LAYERS])[0]
    whole = np.stack([esm2.pool(row, "mean-all") for row in vectors])
    found = {
        "positions off by two": moved(shift),
        "the second token type": moved(second_type),
        "[CLS] and [SEP] in the mean": float(np.abs(whole - right).max()),
    }
    found.update({what: float(np.abs(means(model, wrong) - right).max()) for what, wrong in wrong_rows.items()})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    fixtures = Path(__file__).parents[2] / "tests/fixtures"
    parser.add_argument("--out", type=Path, default=fixtures / "bert")
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    shutil.rmtree(out, ignore_errors=True)

    genomes = dict(esm2.read_fasta(fixtures / "dna/inputs/mixed.fna"))
    models = write_checkpoints(out, list(genomes.values()))
    (out / "inputs").mkdir()
    esm2.write_fasta(out / "inputs/chains.faa", CHAINS)
    name, genome = "OM735983.1", genomes["OM735983.1/1-4875"]

    def piece(first: int, length: int, change=lambda text: text) -> tuple[str, str]:
        sequence = change(genome[first - 1 : first - 1 + length])
        return f"{name}/{first}-{first + length - 1}", sequence

    unknown = piece(1501, 90, lambda text: text[:30] + "NNRN" + text[34:])
    short = [piece(101, 300), piece(1, 1), piece(901, 57, str.lower), piece(1001, 120), unknown]
    esm2.write_fasta(out / "inputs/dna.fna", short)
    esm2.write_fasta(out / "inputs/long.fna", [piece(2001, 1500), piece(301, 80), piece(3001, 505)])

    proteins, bases = protein_tokenizer(out / "protbert"), dna_tokenizer(out / "grover")
    to_ids = {
        "protbert": lambda sequence: proteins(spaced(sequence))["input_ids"],
        "grover": lambda sequence: bases(dna.bases(sequence))["input_ids"],
    }
    known = {"protbert": dict.fromkeys(LETTERS + "|"), "grover": dict.fromkeys("ACGTU")}
    networks = {model: dna.load_bert(*about) for model, about in models.items()}
    expected: dict[str, np.ndarray] = {}
    cases: list[dict] = []
    tokens: dict[str, list[dict]] = {model: [] for model in models}
    for model, file, options in [
        ("protbert", "../esm2/inputs/mixed.faa", []),
        ("protbert", "../esm2/inputs/letters.faa", []),
        ("protbert", "inputs/chains.faa", []),
        ("grover", "inputs/dna.fna", []),
        ("grover", "inputs/long.fna", []),
        ("grover", "inputs/long.fna", ["--long", "truncate"]),
    ]:
        records = esm2.read_fasta(out / file)
        rows = [to_ids[model](sequence) for _, sequence in records]
        long = [len(sequence) > LONGEST or len(row) - 2 > MOST for (_, sequence), row in zip(records, rows)]
        marks = [[esm2.status(sequence, known[model])] for _, sequence in records]
        case = f"{model}-{Path(file).stem}" + ("-truncated" if options else "")
        if model == "grover" and file.endswith("long.fna"):
            assert long == [True, False, True]
            if options:
                cut = [to_ids[model](sequence[:LONGEST]) for _, sequence in records]
                rows = [[row[0], *row[1:-1][:MOST], row[-1]] for row in cut]
                vectors = dna.hidden_bert(networks[model], rows, LAYERS_ASKED)
            else:
                by_row = [in_windows(networks[model], row, LAYERS_ASKED) for row in rows]
                vectors = [list(layer) for layer in zip(*by_row)]
            mark = "truncated" if options else "windowed"
            marks = [[mark, *(m for m in of if m != "ok")] if is_long else of for is_long, of in zip(long, marks)]
        else:
            assert not any(long) or model == "protbert"
            vectors = dna.hidden_bert(networks[model], rows, LAYERS_ASKED)
            for (header, sequence), row in zip(records, rows):
                tokens[model].append({"sequence": sequence, "ids": row})
        about = {
            "name": case,
            "models": ["protbert", "igbert"] if model == "protbert" else ["grover"],
            "input": file,
            "options": options,
            "tokens": [len(row) - 2 for row in rows],
            "status": [",".join(mark) for mark in marks],
        }
        per_token = [1, 2] if case != "grover-dna" else [2, 4]
        esm2.add_case(cases, expected, about, records, vectors, LAYERS_ASKED, per_token)

        wrong: dict[str, list[list[int]]] = {}
        if case == "protbert-mixed":
            letters = {letter: SPECIALS.index("[CLS]") + 3 + i for i, letter in enumerate(LETTERS)}
            wrong["U, Z, O and B as they are"] = [
                [row[0], *(letters[letter] for letter in sequence), row[-1]] for row, (_, sequence) in zip(rows, records)
            ]
        if case == "protbert-chains":
            wrong["| left out"] = [to_ids[model](sequence.replace("|", "")) for _, sequence in records]
            wrong["| unknown"] = [[*row[:1], *(1 if token == 3 else token for token in row[1:-1]), row[-1]] for row in rows]
        if case == "grover-dna":
            single = {base: bases.convert_tokens_to_ids(base) for base in "ACGT"}
            wrong["single bases"] = [
                [row[0], *(single.get(base, 1) for base in dna.bases(sequence)[:MOST]), row[-1]]
                for row, (_, sequence) in zip(rows, records)
            ]
        if wrong:
            for what, by in mistakes(networks[model], rows, wrong).items():
                print(f"{case}: {what} moves a mean by {by:.2f}")
                assert by > 2e-3, what
    expected = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in expected.items()}
    save_file(expected, out / "expected.safetensors")
    summary = {"hidden": HIDDEN, "layers": LAYERS, "cases": cases}
    (out / "cases.json").write_text(json.dumps(summary, indent=1) + "\n")
    (out / "tokens.json").write_text(json.dumps(tokens, separators=(",", ":")) + "\n")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{size / 1e6:.2f} MB in {out}")


if __name__ == "__main__":
    main()
