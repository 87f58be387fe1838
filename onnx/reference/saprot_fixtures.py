"""Creates `tests/fixtures/saprot/`: small SaProt checkpoints in both published layouts, and the expected vectors.

    python onnx/reference/saprot_fixtures.py [--out tests/fixtures/saprot]

Rerun it with the versions of requirements.txt: seeds are fixed. Residues are those of `tests/fixtures/esm2/inputs/mixed.faa`;
their structures are random letters of foldseek's alphabet.

What it writes
- `checkpoints/` (two layers, hidden size 32, 2 heads, 446 tokens, half precision)
    hub/                as on the hub: config.json, vocab.txt, pytorch_model.bin
    saprot_small.pt     as the authors' loader takes it: `model` with fair-esm's names without prefix, and `config`
- `inputs/`: FASTA with lines of an odd number of letters
- `tokens.json`: sequences and their ids by transformers' EsmTokenizer
- `cases.json`, `expected.safetensors`: as in `tests/fixtures/esm2`

transformers and fair-esm (with the alphabet that the authors' loader makes) both run each case in fp32, all of a file's
records in one padded batch, and must agree to 1e-5. Typical mistakes are made on purpose, and how far each moves a mean is printed.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import random
import shutil
from collections import OrderedDict
from pathlib import Path

import esm2
import numpy as np
import torch
from safetensors.torch import save_file

LAYERS, HIDDEN, HEADS = 2, 32, 2
LAYERS_ASKED = [2, 1]
AGREE = 1e-5
RESIDUES, STRUCTURES = "ACDEFGHIKLMNPQRSTVWY#", "pynwrqhgdlvtmfsaeikc#"
VOCAB = "<cls> <pad> <eos> <unk> <mask>".split() + ["".join(pair) for pair in itertools.product(RESIDUES, STRUCTURES)]
NUMBER = {token: number for number, token in enumerate(VOCAB)}
CLS, PAD, EOS, UNK, MASK = range(5)
# Residues of a window in the cases that cut, and how many neighbours share.
SIZE, OVERLAP = 40, 10


def token_ids(sequence: str) -> list[int]:
    """`<cls>`, the pairs as they are, `<eos>`; a pair that the vocabulary lacks is one `<unk>`."""
    pairs = [sequence[i : i + 2] for i in range(0, len(sequence), 2)]
    return [CLS, *(NUMBER.get(pair, UNK) for pair in pairs), EOS]


def with_structure(rng: random.Random, sequence: str) -> str:
    residues = "".join(letter if letter in RESIDUES else "#" for letter in sequence)
    return "".join(residue + rng.choice(STRUCTURES) for residue in residues)


def random_state() -> OrderedDict[str, np.ndarray]:
    """ESM-2's weights with a table of SaProt's size, all numbers of half precision."""
    state = esm2.random_state(LAYERS, HIDDEN, HEADS, 31)
    words = np.random.default_rng(32).standard_normal((len(VOCAB), HIDDEN), dtype=np.float32)
    out = OrderedDict()
    for name, array in state.items():
        if name in ("esm.embeddings.word_embeddings.weight", "lm_head.decoder.weight"):
            array = words
        elif name == "lm_head.bias":
            array = np.zeros(len(VOCAB), dtype=np.float32)
        out[name] = array.astype(np.float16).astype(np.float32)
    out["lm_head.decoder.weight"] = out["esm.embeddings.word_embeddings.weight"]
    return out


def write_hub(folder: Path, state) -> None:
    config = {
        **esm2.hub_config(LAYERS, HIDDEN, HEADS),
        "mask_token_id": MASK,
        "vocab_size": len(VOCAB),
    }
    # Not in the published file.
    for key in ("esmfold_config", "is_folding_model", "vocab_list"):
        del config[key]
    esm2.write_hub_sidecars(folder, config)
    (folder / "vocab.txt").write_text("\n".join(VOCAB))
    torch.save(esm2.as_torch(state, "float16"), folder / "pytorch_model.bin")


def fair_esm_names(state) -> OrderedDict[str, np.ndarray]:
    """fair-esm's names without prefix, as in the authors' file."""
    names = esm2.fair_esm_state(state, HIDDEN, HEADS)
    return OrderedDict(
        (name.removeprefix("encoder.").removeprefix("sentence_encoder."), array) for name, array in names.items()
    )


def load_fair_esm(state):
    """fair-esm's ESM2 with SaProt's alphabet, fp32."""
    import esm
    from esm.model.esm2 import ESM2

    alphabet = esm.data.Alphabet(
        standard_toks=VOCAB, prepend_toks=[], append_toks=[], prepend_bos=True, append_eos=True, use_msa=False
    )
    alphabet.all_toks = VOCAB
    alphabet.tok_to_idx = dict(NUMBER)
    alphabet.padding_idx, alphabet.cls_idx, alphabet.mask_idx, alphabet.eos_idx = PAD, CLS, MASK, EOS
    model = ESM2(num_layers=LAYERS, embed_dim=HIDDEN, attention_heads=HEADS, alphabet=alphabet, token_dropout=True)
    missing, unexpected = model.load_state_dict(esm2.as_torch(fair_esm_names(state)), strict=False)
    assert not unexpected and all("contact_head" in name for name in missing), (missing, unexpected)
    return model.eval()


def write_fair_esm(path: Path, state) -> None:
    config = {"num_layers": LAYERS, "embed_dim": HIDDEN, "attention_heads": HEADS, "token_dropout": True}
    tensors = esm2.as_torch(fair_esm_names(state), "float16")
    torch.save({"model": tensors, "config": config}, path)


def mistakes(model, records: list[tuple[str, str]], rows: list[list[int]]) -> dict[str, float]:
    """How far typical mistakes move a mean of the last layer."""

    def means(changed, rows) -> np.ndarray:
        vectors = esm2.hidden_transformers(changed, rows, [LAYERS])[0]
        return np.stack([esm2.pool(row, "mean") for row in vectors])

    right = means(model, rows)

    def other(rows) -> float:
        return float(np.abs(means(model, rows) - right).max())

    def moved(change) -> float:
        changed = copy.deepcopy(model)
        change(changed.embeddings)
        return float(np.abs(means(changed, rows) - right).max())

    table = lambda embeddings: embeddings.word_embeddings.weight.data  # noqa: E731
    longer = [(header, sequence) for header, sequence in records]
    return {
        "<mask>'s id that of ESM-2": moved(lambda e: table(e)[32].zero_()),
        "no factor 0.88": moved(lambda e: setattr(e, "token_dropout", False)),
        "structures in upper case": other([token_ids(sequence.upper()) for _, sequence in longer]),
        "structures left out": other([token_ids("#".join(sequence[::2]) + "#") for _, sequence in longer]),
        "pairs off by one letter": other([token_ids(sequence[1:] + sequence[:1]) for _, sequence in longer]),
    }


def in_windows(model, row: list[int]) -> list[np.ndarray]:
    inner = row[1:-1]
    starts = esm2.windows(len(inner), SIZE, OVERLAP)
    rows = [[CLS, *inner[start : start + SIZE], EOS] for start in starts]
    parts = esm2.hidden_transformers(model, rows, LAYERS_ASKED)
    return [esm2.join(layer, starts, len(inner), SIZE) for layer in parts]


def write_wrapped(path: Path, records: list[tuple[str, str]]) -> None:
    """Lines of 33 letters, which cut pairs."""
    with path.open("w") as file:
        for header, sequence in records:
            lines = [sequence[i : i + 33] for i in range(0, len(sequence), 33)]
            file.write("\n".join([f">{header}", *lines]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    fixtures = Path(__file__).parents[2] / "tests/fixtures"
    parser.add_argument("--out", type=Path, default=fixtures / "saprot")
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    shutil.rmtree(out, ignore_errors=True)
    (out / "checkpoints").mkdir(parents=True)
    (out / "inputs").mkdir()
    state = random_state()
    write_hub(out / "checkpoints/hub", state)
    write_fair_esm(out / "checkpoints/saprot_small.pt", state)
    model, fair_esm = esm2.load_transformers(out / "checkpoints/hub"), load_fair_esm(state)

    rng = random.Random(5)
    proteins = esm2.read_fasta(fixtures / "esm2/inputs/mixed.faa")
    records = [(header, with_structure(rng, sequence)) for header, sequence in proteins[:8]]
    # The pair whose id ESM-2's <mask> has.
    records[0] = (records[0][0], VOCAB[32] + records[0][1])
    unknown = "MdxvEvXpAPQ#A-Av"
    write_wrapped(out / "inputs/pairs.fasta", records)
    write_wrapped(out / "inputs/unknown.fasta", [("unknown", unknown), ("plain", "M#K#T#A#")])
    write_wrapped(out / "inputs/long.fasta", [records[5], records[0], records[1]])

    from transformers import EsmTokenizer

    tokenizer = EsmTokenizer(str(out / "checkpoints/hub/vocab.txt"))
    tokens = [{"sequence": sequence, "ids": tokenizer(sequence)["input_ids"]} for _, sequence in records]
    assert all(one["ids"] == token_ids(one["sequence"]) for one in tokens)
    # transformers cuts known tokens out of a sequence wherever they are, and joins what is left:
    # only these have its ids.
    (out / "tokens.json").write_text(json.dumps(tokens, separators=(",", ":")) + "\n")

    expected: dict[str, np.ndarray] = {}
    cases: list[dict] = []
    largest = 0.0
    for file, options in [
        ("pairs", []),
        ("unknown", []),
        ("long", ["--max-length", str(SIZE)]),
        ("long", ["--max-length", str(SIZE), "--long", "truncate"]),
    ]:
        about = esm2.read_fasta(out / f"inputs/{file}.fasta")
        rows = [token_ids(sequence) for _, sequence in about]
        marks = ["replaced" if UNK in row else "ok" for row in rows]
        case = file
        if options:
            mark = "truncated" if "truncate" in options else "windowed"
            marks = [mark if len(row) - 2 > SIZE else "ok" for row in rows]
            assert marks.count("ok") == 1
            case = f"long-{mark}"
        if case == "unknown":
            marks[0] += ",gaps"
        if case == "long-windowed":
            vectors = [list(layer) for layer in zip(*(in_windows(model, row) for row in rows))]
        else:
            if case == "long-truncated":
                rows = [[CLS, *row[1:-1][:SIZE], EOS] for row in rows]
            vectors = esm2.hidden_transformers(model, rows, LAYERS_ASKED)
            other = esm2.hidden_fair_esm(fair_esm, rows, LAYERS_ASKED)
            pairs = zip(sum(vectors, []), sum(other, []))
            largest = max(largest, *(float(np.abs(a - b).max()) for a, b in pairs))
            assert largest <= AGREE, f"fair-esm and transformers differ by {largest:.2e}"
        entry = {
            "name": case,
            "models": ["checkpoints/hub", "checkpoints/saprot_small.pt"],
            "input": f"inputs/{file}.fasta",
            "options": options,
            "tokens": [len(row) - 2 for row in rows],
            "status": marks,
        }
        halves = [(header, sequence[::2]) for header, sequence in about]
        esm2.add_case(cases, expected, entry, halves, vectors, LAYERS_ASKED, [1] if case != "long-windowed" else [0])
        if case == "pairs":
            for what, by in mistakes(model, about, rows).items():
                print(f"{what} moves a mean by {by:.2f}")
                assert by > 2e-3, what
    tensors = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in expected.items()}
    save_file(tensors, out / "expected.safetensors")
    summary = {"hidden": HIDDEN, "layers": LAYERS, "cases": cases, "fair_esm_against_transformers": largest}
    (out / "cases.json").write_text(json.dumps(summary, indent=1) + "\n")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"fair-esm against transformers: largest difference {largest:.1e}; {size / 1e6:.2f} MB in {out}")


if __name__ == "__main__":
    main()
