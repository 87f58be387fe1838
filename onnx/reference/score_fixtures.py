"""Creates `tests/fixtures/scores/`: log-probabilities of the language-model heads of the small checkpoints in `tests/fixtures`.

    python onnx/reference/score_fixtures.py [--dnabert2-code DIR] [--out tests/fixtures/scores]

DIR is that of `dna_fixtures.py`; without it, the file of DNABERT-2 stays as it is. Rerun it with the versions of requirements.txt, after the scripts that make the checkpoints.

Made with Python 3.11, torch 2.15.0, transformers 5.24.0, fair-esm 2.0.0, safetensors 0.8.0, numpy 1.26.4.

What it writes
- `proteins.faa`, `bases.fna`: the sequences, of mixed lengths
- `MODEL.safetensors`, for each model of `MODELS`: `unmasked/ID` and `masked/ID` [tokens, columns], the log-probabilities of
  the 20 amino acids (`ACDEFGHIKLMNPQRSTVWY`) at each residue; of all tokens of the vocabulary, where these are of DNA. Masked:
  each token is replaced by `<mask>` in turn, one sequence at a time.
  `joint/ID` [columns at 3, columns at 7]: positions 3 and 7 (from 1) masked together, of sequences that have them

transformers computes all of them, all of a file's sequences in one padded batch (unmasked), or one sequence at a time
(masked), but DNABERT-2, which its authors' code computes; for ESM-1b, ESM-1v and ESM-2 fair-esm too, from the same weights, and they must agree to 2e-5, or to 2e-6 of
values below -10, which random weights give. All is computed in 64 bits.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import warnings
from pathlib import Path

import bert_fixtures
import dna
import torch
from safetensors.torch import save_file

FIXTURES = Path(__file__).resolve().parents[2] / "tests/fixtures"
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
AGREE = 2e-6
JOINT = (3, 7)

# name -> the hub's folder, fair-esm's file, the file of sequences
MODELS = {
    "esm2": ("esm2/checkpoints/hub-safetensors", "esm2/checkpoints/esm2_small.pt", "proteins.faa"),
    "esm1b": ("esm1/checkpoints/esm1b-safetensors", "esm1/checkpoints/esm1b_small.pt", "proteins.faa"),
    "esm1v": ("esm1/checkpoints/esm1v-safetensors", "esm1/checkpoints/esm1v_small.pt", "proteins.faa"),
    "esmc": ("esmc/checkpoints/hub", None, "proteins.faa"),
    "nt": ("nt/checkpoints/v1-bin", None, "bases.fna"),
    "protbert": ("bert/protbert", None, "proteins.faa"),
    "dnabert": ("dna/dnabert-3", None, "bases.fna"),
    "grover": ("bert/grover", None, "bases.fna"),
    "dnabert2": ("dna/dnabert2", None, "bases.fna"),
}

SEQUENCES = {
    "proteins.faa": {
        "a": "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ",
        "b": "M",
        "c": "GSHMASWX",
        "d": "MADEEKLPPGWEKRMSRSSGRVYYFNHITNASQWERPSGNSSSGGKNGQGEPARVRC",
    },
    "bases.fna": {"a": "ACGTACGTTGCAAC", "b": "GAT", "c": "TTGACATTGCATGCAAAC"},
}


def bert_model(folder: Path, dnabert2_code: Path | None):
    """A BERT with its head, by transformers, or DNABERT-2 by its authors' code, by its plain PyTorch branch."""
    config = json.loads((folder / "config.json").read_text())
    spelling = {"rm.gamma": "rm.weight", "rm.beta": "rm.bias"}
    state = {}
    for name, tensor in torch.load(folder / "pytorch_model.bin").items():
        for old, new in spelling.items():
            name = name.replace(old, new)
        if not name.startswith("bert.pooler."):
            state[name] = tensor.float()
    state["cls.predictions.bias"] = state["cls.predictions.decoder.bias"]
    if folder.name == "dnabert2":
        code = dnabert2_code.resolve()
        sys.path[:0] = [str(code), str(code.parent)]
        layers = importlib.import_module(f"{code.name}.bert_layers")
        configuration = importlib.import_module(f"{code.name}.configuration_bert").BertConfig(**config)
        layers.flash_attn_qkvpacked_func = None
        load = layers.BertForMaskedLM
    else:
        from transformers import BertConfig
        from transformers import BertForMaskedLM as load

        known = {name: value for name, value in config.items() if name not in ("architectures", "model_type", "do_lower_case")}
        configuration = BertConfig(**known)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load(configuration)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert all("ids" in name for name in missing), missing
    assert set(unexpected) <= {"cls.predictions.bias", "cls.predictions.decoder.bias"}, unexpected
    predictions = model.cls.predictions
    assert torch.equal(predictions.decoder.weight, model.bert.embeddings.word_embeddings.weight)
    assert torch.equal(predictions.decoder.bias, state["cls.predictions.decoder.bias"])
    return model.double().eval()


def transformers_model(folder: Path):
    """The model with its head."""
    from transformers import EsmcForMaskedLM, EsmForMaskedLM

    kind = json.loads((folder / "config.json").read_text())["model_type"]
    load = EsmcForMaskedLM if kind == "esmc" else EsmForMaskedLM
    return load.from_pretrained(folder, dtype=torch.float64).eval()


def transformers_logits(model, rows: list[list[int]], pad: int) -> list[torch.Tensor]:
    """Log-probabilities of all tokens, of sequences in one padded batch."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
    return [torch.log_softmax(of[: len(row)], -1).float() for of, row in zip(logits, rows, strict=True)]


def fair_esm_logits(model, rows: list[list[int]], pad: int) -> list[torch.Tensor]:
    """The same by fair-esm."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    with torch.no_grad():
        logits = model(ids)["logits"]
    return [torch.log_softmax(of[: len(row)], -1).float() for of, row in zip(logits, rows, strict=True)]


def fair_esm_model(path: Path):
    """fair-esm's own loader, without a contact regression, which not all of the files have."""
    from esm import pretrained

    # torch.load refuses the Namespace in these files unless it is told that it is harmless.
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = torch.load(path, map_location="cpu")
        return pretrained.load_model_and_alphabet_core(path.stem, data, None)[0].double().eval()


def vocabulary(folder: Path) -> list[str]:
    """Tokens by their ids."""
    if (folder / "tokenizer.json").exists():
        known = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        return sorted(known, key=known.get)
    if (folder / "vocab.txt").exists():
        return [line.strip() for line in (folder / "vocab.txt").read_text().splitlines()]
    from transformers.models.esmc.tokenization_esmc import EsmcTokenizer

    known = EsmcTokenizer().get_vocab()
    return sorted(known, key=known.get)


def token_ids(sequence: str, tokens: list[str], k: int) -> list[int]:
    """Tokens of a sequence with the special ones. A k-mer takes k bases; what is left of the sequence are single bases."""
    own = []
    while sequence:
        word = sequence[:k] if len(sequence) >= k else sequence[0]
        own.append(tokens.index(word))
        sequence = sequence[len(word) :]
    behind = [tokens.index("<eos>")] if k == 1 else []
    return [tokens.index("<cls>"), *own, *behind]


def bert_ids(folder: Path, sequence: str) -> list[int]:
    """The same for the BERTs, by their own tokenizers."""
    if folder.name == "protbert":
        return bert_fixtures.protein_tokenizer(folder)(bert_fixtures.spaced(sequence))["input_ids"]
    if folder.name == "grover":
        return bert_fixtures.dna_tokenizer(folder)(dna.bases(sequence))["input_ids"]
    if folder.name == "dnabert2":
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(folder / "tokenizer.json")).encode(dna.bases(sequence)).ids
    return dna.kmer_ids(sequence, 3)


def recorded(run, rows: dict[str, list[int]], columns: list[int], behind: int, pad: int, mask: int) -> dict:
    """All tensors of a model."""
    out = {}
    unmasked = run(list(rows.values()), pad)
    for (name, row), logits in zip(rows.items(), unmasked, strict=True):
        end = len(row) - behind
        out[f"unmasked/{name}"] = logits[1:end, columns]
        masked = []
        for at in range(1, end):
            [logits] = run([row[:at] + [mask] + row[at + 1 :]], pad)
            masked.append(logits[at, columns])
        out[f"masked/{name}"] = torch.stack(masked)
        if end > max(JOINT):
            both = [mask if at in JOINT else token for at, token in enumerate(row)]
            [logits] = run([both], pad)
            out[f"joint/{name}"] = torch.stack([logits[at, columns] for at in JOINT])
    return {name: values.contiguous() for name, values in out.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FIXTURES / "scores")
    parser.add_argument("--dnabert2-code", type=Path, help="folder with DNABERT-2's bert_layers.py")
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    for file, records in SEQUENCES.items():
        (out / file).write_text("".join(f">{name}\n{sequence}\n" for name, sequence in records.items()))
    for name, (folder, pt, file) in MODELS.items():
        if name == "dnabert2" and not arguments.dnabert2_code:
            print(f"{name} stays as it is, without --dnabert2-code")
            continue
        tokens = vocabulary(FIXTURES / folder)
        bert = "[MASK]" in tokens
        protein = file == "proteins.faa"
        k = 1 if protein else max(len(token) for token in tokens if token.isalpha())
        columns = [tokens.index(letter) for letter in AMINO_ACIDS] if protein else None
        to_ids = (lambda text: bert_ids(FIXTURES / folder, text)) if bert else (lambda text: token_ids(text, tokens, k))  # noqa: B023
        rows = {key: to_ids(sequence) for key, sequence in SEQUENCES[file].items()}
        pad, mask = (tokens.index(token) for token in (("[PAD]", "[MASK]") if bert else ("<pad>", "<mask>")))
        behind = 1 if protein or bert else 0
        model = bert_model(FIXTURES / folder, arguments.dnabert2_code) if bert else transformers_model(FIXTURES / folder)
        # The embedding table may have fewer rows than the file of the vocabulary.
        columns = columns or list(range(model.config.vocab_size))
        if "esm1" in folder:
            # fair-esm's loader zeroes it in these, and the head's decoder is tied to it: the values
            # are those of the .pt.
            model.esm.embeddings.word_embeddings.weight.data[mask] = 0.0
        tensors = recorded(lambda r, p: transformers_logits(model, r, p), rows, columns, behind, pad, mask)  # noqa: B023
        if pt:
            other = fair_esm_model(FIXTURES / pt)
            theirs = recorded(lambda r, p: fair_esm_logits(other, r, p), rows, columns, behind, pad, mask)  # noqa: B023
            for key, values in tensors.items():
                difference = ((values - theirs[key]).abs() / values.abs().clamp(min=10)).max().item()
                assert difference <= AGREE, (name, key, difference)
        save_file(tensors, out / f"{name}.safetensors")
        print(name, {key: list(values.shape) for key, values in tensors.items()})


if __name__ == "__main__":
    main()
