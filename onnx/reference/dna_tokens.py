"""Computes token ids of DNA with the Python libraries that the models' authors use.

    dna_tokens.py train GENOMES -o tokenizer.json [--size 4096] [--ambiguous]
    dna_tokens.py fixtures tokenizer.json -o tests/fixtures/dna_tokens
    dna_tokens.py check tokenizer.json|vocab.txt GENOMES IDS

`train` makes a BPE tokenizer built like DNABERT-2's (special ids, Whitespace pre-tokenizer, no normaliser) from genomes.
`fixtures` writes expected ids: of that tokenizer, of transformers' BertTokenizer for k-mers and for single residues, and of its
EsmTokenizer for k-mers that do not overlap (Nucleotide Transformer).
`check` holds ids, a record a line, against the tokenizer's own, id by id; `cargo bench --bench tokenize -- ids` writes them. A
vocab.txt is Nucleotide Transformer's.
Needs tokenizers and transformers (requirements.txt).
"""

import argparse
import itertools
import json
import random
import re
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
AMBIGUOUS = "NRYSWKMBDHV"


def sequences(path):
    """The sequences of a FASTA file, in upper case."""
    for record in Path(path).read_text().split(">")[1:]:
        yield "".join(record.split("\n")[1:]).replace("\r", "").upper()


def train(genomes, size, ambiguous):
    """Genomes are cut into pieces, for the trainer is quadratic in the length of a word."""
    letters = f"ACGT{AMBIGUOUS}" if ambiguous else "ACGT"
    pieces = [
        run[at : at + 500]
        for genome in sequences(genomes)
        for run in re.findall(f"[{letters}]+", genome)
        for at in range(0, len(run), 500)
    ]
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        pieces, trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return tokenizer


def specimens(seed, lengths):
    """Random DNA: plain, repetitive, and with single ambiguous letters and runs of N."""
    rng = random.Random(seed)
    made = []
    for length in lengths:
        plain = "".join(rng.choices("ACGT", k=length))
        made.append(plain)
        unit = "".join(rng.choices("ACGT", k=rng.randint(1, 4)))
        made.append((unit * length)[:length])
        spoilt = [rng.choice(AMBIGUOUS) if rng.random() < 0.03 else base for base in plain]
        made.append("".join(spoilt))
        at = rng.randrange(length)
        run = "N" * rng.randint(1, 12)
        made.append((plain[:at] + run + plain[at:])[:length])
    return list(dict.fromkeys(made))


def bpe_cases(tokenizer, sequences):
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for sequence in sequences:
        encoding = tokenizer.encode(sequence, add_special_tokens=False)
        yield {
            "sequence": sequence,
            "ids": encoding.ids,
            "starts": [start for start, _ in encoding.offsets],
        }


def bert_cases(words, texts):
    """Ids of texts (sequence, words joined by spaces) in a vocabulary of BERT's special tokens and these words."""
    from transformers import BertTokenizer

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("\n".join([*BERT_SPECIAL, *words]) + "\n")
        tokenizer = BertTokenizer(vocab=str(path), do_lower_case=False)
    for sequence, text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        yield {"sequence": sequence, "ids": ids}


def kmer_cases(k, sequences):
    # DNABERT's files count in this order.
    words = ["".join(word) for word in itertools.product("ATCG", repeat=k)]
    texts = [
        (sequence, " ".join(sequence[at : at + k] for at in range(len(sequence) - k + 1)))
        for sequence in sequences
    ]
    return bert_cases(words, texts)


def non_overlapping(vocabulary):
    """What gives a sequence's ids, and the unknown one, for a vocab.txt of Nucleotide Transformer."""
    from transformers import EsmTokenizer

    tokenizer = EsmTokenizer(str(vocabulary), eos_token=None)

    def ids(sequence):
        # It joins unknown letters that stand side by side.
        apart = re.sub("[^ACGTN]", lambda letter: f" {letter[0]} ", sequence)
        cls, *ids = tokenizer(apart)["input_ids"]
        assert cls == tokenizer.cls_token_id
        return ids

    return ids, tokenizer.unk_token_id


def non_overlapping_cases(version, k, sequences):
    from nt_fixtures import vocabulary

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("\n".join(vocabulary(version, k)))
        ids, _ = non_overlapping(path)
    for sequence in sequences:
        yield {"sequence": sequence, "ids": ids(sequence)}


def write(path, cases):
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    path.write_text(f"[\n{lines}\n]\n")


def fixtures(tokenizer, out):
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.json").write_text(tokenizer.to_str(pretty=False) + "\n")
    write(out / "bpe.json", bpe_cases(tokenizer, specimens(1, [1, 2, 3, 5, 8, 13, 40, 150, 600, 1500])))
    for k in (3, 4, 5, 6):
        write(out / f"kmer_{k}.json", kmer_cases(k, specimens(k, [1, 2, 3, 4, 5, 6, 7, 12, 60, 150])))
    for version, k in (("v1", 6), ("v2", 6), ("v2", 3)):
        made = specimens(10 + k, [1, 2, 3, 5, 6, 7, 11, 12, 13, 60, 150])
        write(out / f"non_overlapping_{version}_{k}.json", non_overlapping_cases(version, k, made))
    rng = random.Random(7)
    proteins = ["".join(rng.choices(RESIDUES + "XBUZ", k=length)) for length in (1, 2, 10, 60, 200)]
    write(out / "residues.json", bert_cases(list(RESIDUES), [(one, " ".join(one)) for one in proteins]))


def byte_pairs(path):
    """What gives a sequence's ids, and the unknown one, for a tokenizer.json."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda sequence: tokenizer.encode(sequence, add_special_tokens=False).ids, tokenizer.token_to_id("[UNK]")


def check(path, genomes, ids):
    ids_of, unknown_id = (byte_pairs if path.suffix == ".json" else non_overlapping)(path)
    count = records = unknown = 0
    with open(ids) as lines:
        for number, (sequence, line) in enumerate(itertools.zip_longest(sequences(genomes), lines), 1):
            if sequence is None or line is None:
                raise SystemExit(f"{ids}: not as many lines as {genomes} has records")
            expected = ids_of(sequence)
            found = [int(one) for one in line.split()]
            if expected != found:
                at = next(i for i, pair in enumerate(itertools.zip_longest(expected, found)) if pair[0] != pair[1])
                raise SystemExit(f"record {number}, token {at}: expected {expected[at:at+5]}, found {found[at:at+5]}")
            records, count = number, count + len(expected)
            unknown += expected.count(unknown_id)
    print(f"{records} records, {count} ids ({unknown} unknown): all equal")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("train")
    one.add_argument("genomes", type=Path)
    one.add_argument("-o", "--out", type=Path, required=True)
    one.add_argument("--size", type=int, default=4096)
    one.add_argument("--ambiguous", action="store_true", help="ambiguous letters get tokens too")
    one = commands.add_parser("fixtures")
    one.add_argument("tokenizer", type=Path)
    one.add_argument("-o", "--out", type=Path, required=True)
    one = commands.add_parser("check")
    one.add_argument("tokenizer", type=Path)
    one.add_argument("genomes", type=Path)
    one.add_argument("ids", type=Path)
    options = parser.parse_args()
    if options.command == "train":
        train(options.genomes, options.size, options.ambiguous).save(str(options.out))
        return
    if options.command == "fixtures":
        fixtures(Tokenizer.from_file(str(options.tokenizer)), options.out)
    else:
        check(options.tokenizer, options.genomes, options.ids)


if __name__ == "__main__":
    main()
