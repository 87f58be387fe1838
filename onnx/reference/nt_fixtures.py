"""Makes `tests/fixtures/nt/`: small Nucleotide Transformers of both versions, and the vectors that they must give.

    python onnx/reference/nt_fixtures.py [--out tests/fixtures/nt]

Rerun it with the versions of requirements.txt: seeds are fixed. The sequences are pieces of those in `tests/fixtures/dna/inputs`.

What it writes
- `checkpoints/`: 2 layers, hidden size 32, 2 heads of 16, feed-forward 64; 3-mers, as the published model of that size has them
  (`tests/fixtures/dna_tokens` has ids of 6-mers). Numbers are rounded to 16 bits.
    v1-bin/          as published: vocab.txt, which has two tokens more than the model has rows, and pytorch_model.bin, whose
                     matrices are stored column after column
    v1-saved/        the same as transformers saves it: model.safetensors
    v2-safetensors/  as published: no model_type, a table of positions that nothing uses, rotary frequencies
    v2-saved/        the same as it is saved after fine-tuning: with model_type, without that table
- `inputs/`: `mixed.fna` (lengths, N), `letters.fna` (lower case, RNA, other ambiguous letters), `long.fna` (more than the model takes)
- `cases.json`, `expected.safetensors`: as in `tests/fixtures/dna`

transformers runs version 1 in fp32, all of a file's records in one padded batch. It has no gated feed-forward layers as
version 2: these are written down here, inside of its model. Typical mistakes are made on purpose, and how far each moves the mean is
printed.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import shutil
from collections import OrderedDict
from pathlib import Path

import esm2
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import EsmConfig, EsmModel, EsmTokenizer

LAYERS, HIDDEN, HEADS, INNER, K = 2, 32, 2, 64, 3
# Tokens of the longest input, with <cls>.
POSITIONS = {"v1": 100, "v2": 128}
LAYERS_ASKED = [2, 1]
UNK, PAD, MASK, CLS = range(4)
SPECIALS, ENDS = ["<unk>", "<pad>", "<mask>", "<cls>"], ["<eos>", "<bos>"]
OVERLAP = 60


def vocabulary(version: str, k: int = K, letters: str = "ATCG") -> list[str]:
    """The tokens of vocab.txt."""
    words = ["".join(word) for word in itertools.product(letters, repeat=k)] + [*letters, "N"]
    return [*SPECIALS, *ENDS, *words] if version == "v2" else [*SPECIALS, *words, *ENDS]


def token_ids(sequence: str, tokens: list[str], k: int = K) -> list[int]:
    """`<cls>` and the longest tokens from the left; upper-cased, U as T, a letter without a token is one `<unk>`."""
    ids = {token: number for number, token in enumerate(tokens)}
    sequence, at, row = sequence.upper().replace("U", "T"), 0, [CLS]
    while at < len(sequence):
        word = sequence[at : at + k] if sequence[at : at + k] in ids else sequence[at]
        row.append(ids.get(word, UNK))
        at += len(word)
    return row


def check_tokenizer(folder: Path, sequences: list[str], tokens: list[str]) -> None:
    """That transformers' tokenizer gives the same ids. It joins unknown letters, so they are taken apart before."""
    tokenizer = EsmTokenizer(str(folder / "vocab.txt"), eos_token=None)
    for sequence in sequences:
        given = sequence.upper().replace("U", "T")
        given = "".join(letter if letter in "ACGTN" else f" {letter} " for letter in given)
        assert tokenizer(given)["input_ids"] == token_ids(sequence, tokens), sequence


# ---------------------------------------------------------------------------------------------- weights


class Gated(torch.nn.Module):
    """The first dense layer of version 2: twice as wide, and the first half through SiLU times the second."""

    def __init__(self, hidden: int, inner: int):
        super().__init__()
        self.dense = torch.nn.Linear(hidden, 2 * inner, bias=False)

    def forward(self, x):
        first, second = self.dense(x).chunk(2, -1)
        return first * torch.sigmoid(first) * second


def config(version: str) -> dict:
    """config.json as the hub has it."""
    shared = {
        "architectures": ["EsmForMaskedLM"],
        "attention_probs_dropout_prob": 0.0,
        "emb_layer_norm_before": False,
        "esmfold_config": None,
        "hidden_dropout_prob": 0.0,
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INNER,
        "is_folding_model": False,
        "layer_norm_eps": 1e-12,
        "mask_token_id": MASK,
        "max_position_embeddings": POSITIONS[version] + 2,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "pad_token_id": PAD,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": False,
        "vocab_list": None,
    }
    if version == "v1":
        own = {"model_type": "esm", "position_embedding_type": "absolute", "token_dropout": True, "vocab_size": 4**K + 9}
    else:
        own = {
            "add_bias_fnn": False,
            "auto_map": {"AutoConfig": "esm_config.EsmConfig", "AutoModelForMaskedLM": "modeling_esm.EsmForMaskedLM"},
            "position_embedding_type": "rotary",
            "token_dropout": False,
            "vocab_size": 4**K + 11,
        }
    return dict(sorted({**shared, **own}.items()))


def random_model(version: str, seed: int) -> EsmModel:
    """Random, but not bland: attention far from uniform, norms that spread around 1, biases that are not zero."""
    torch.manual_seed(seed)
    settings = EsmConfig(**{key: value for key, value in config(version).items() if key != "auto_map"})
    model = EsmModel(settings, add_pooling_layer=False).eval()
    if version == "v2":
        for layer in model.encoder.layer:
            layer.intermediate = Gated(HIDDEN, INNER)
            layer.output.dense = torch.nn.Linear(INNER, HIDDEN, bias=False)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape)
        if "orm" in name:
            values = values * 0.25 + 1 if name.endswith("weight") else values * 0.15
        elif parameter.dim() == 1:
            values = values * 0.15
        elif "embeddings" not in name:
            gain = 1.6 if "query" in name or "key" in name else 1.0
            values = values * gain / parameter.shape[1] ** 0.5
        parameter.data.copy_(values.half().float())
    return model


def encoder_state(model: EsmModel) -> OrderedDict[str, torch.Tensor]:
    """The weights under the hub's names, in 16 bits."""
    state = OrderedDict()
    for name, tensor in model.state_dict().items():
        if "contact_head" not in name and "inv_freq" not in name and "position_ids" not in name:
            state[f"esm.{name}"] = tensor.half().contiguous()
    return state


def heads(version: str) -> OrderedDict[str, torch.Tensor]:
    """What the hub's files hold beside the weights of the encoder."""
    rows = config(version)["vocab_size"]
    zeros = {
        "esm.contact_head.regression.weight": (1, LAYERS * HEADS),
        "esm.contact_head.regression.bias": (1,),
        "lm_head.bias": (rows,),
        "lm_head.decoder.weight": (rows, HIDDEN),
        "lm_head.dense.bias": (HIDDEN,),
        "lm_head.dense.weight": (HIDDEN, HIDDEN),
        "lm_head.layer_norm.bias": (HIDDEN,),
        "lm_head.layer_norm.weight": (HIDDEN,),
    }
    return OrderedDict((name, torch.zeros(shape).half()) for name, shape in zeros.items())


def write_checkpoints(out: Path, version: str, model: EsmModel) -> list[Path]:
    """The same weights as published, and as saved again."""
    published = out / ("v1-bin" if version == "v1" else "v2-safetensors")
    saved = out / f"{version}-saved"
    for folder in (published, saved):
        folder.mkdir(parents=True)
    settings, state = config(version), encoder_state(model)
    (published / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    for folder in (published, saved):
        (folder / "vocab.txt").write_text("\n".join(vocabulary(version)))
    if version == "v1":
        rows = torch.arange(settings["max_position_embeddings"])[None]
        tensors = {**state, **heads(version), "esm.embeddings.position_ids": rows}
        columns = {
            name: tensor.T.contiguous().T if name.endswith("dense.weight") else tensor for name, tensor in tensors.items()
        }
        torch.save(OrderedDict(columns), published / "pytorch_model.bin")
    else:
        unused = {"esm.embeddings.position_embeddings.weight": torch.randn(settings["max_position_embeddings"], HIDDEN).half()}
        for number in range(LAYERS):
            name = f"esm.encoder.layer.{number}.attention.self.rotary_embeddings.inv_freq"
            unused[name] = torch.from_numpy(esm2.inverse_frequencies(HIDDEN, HEADS)).clone()
        save_file({**state, **heads(version), **unused}, published / "model.safetensors", metadata={"format": "pt"})
    again = {**settings, "model_type": "esm", "dtype": "float16"}
    again.pop("torch_dtype")
    (saved / "config.json").write_text(json.dumps(again, indent=2) + "\n")
    head = {"classifier.dense.weight": torch.zeros(2, HIDDEN).half()} if version == "v2" else {}
    save_file({**state, **head}, saved / "model.safetensors", metadata={"format": "pt"})
    return [published, saved]


# ---------------------------------------------------------------------------------------------- vectors


def hidden(model: EsmModel, rows: list[list[int]], layers: list[int]) -> list[list[np.ndarray]]:
    """Token vectors [tokens, hidden] with `<cls>`, for each layer and each row, all rows in one batch."""
    return esm2.hidden_transformers(model, rows, layers)


def pool(tokens: np.ndarray, how: str) -> np.ndarray:
    """One vector from `<cls>` and the sequence's tokens [tokens, hidden]: there is nothing behind."""
    own = tokens[1:]
    if how in ("mean", "mean-all"):
        return (own if how == "mean" else tokens).mean(0, dtype=np.float64).astype(np.float32)
    return tokens[0] if how == "cls" else own.max(0)


def in_windows(model: EsmModel, row: list[int], width: int, overlap: int, layers: list[int]) -> list[np.ndarray]:
    """The token vectors of a row whose windows have `width` tokens and share `overlap`; `<cls>` is the first window's."""
    own = row[1:]
    starts = esm2.windows(len(own), width, overlap)
    parts = hidden(model, [[CLS, *own[start : start + width]] for start in starts], layers)
    joined = []
    for by_window in parts:
        vectors = [by_window[0][0]]
        for position in range(len(own)):
            covering = [k for k, start in enumerate(starts) if start <= position < start + width]
            centrality = [min(position - starts[k], starts[k] + width - 1 - position) for k in covering]
            best = covering[int(np.argmax(centrality))]
            vectors.append(by_window[best][1 + position - starts[best]])
        joined.append(np.stack(vectors))
    return joined


def mistakes(version: str, model: EsmModel, sequences: list[str]) -> dict[str, float]:
    """How far typical mistakes move a mean of the last layer."""
    tokens = vocabulary(version)
    rows = [token_ids(sequence, tokens) for sequence in sequences]

    def means(changed, rows) -> np.ndarray:
        return np.stack([pool(row, "mean") for row in hidden(changed, rows, [LAYERS])[0]])

    right = means(model, rows)

    def off(found: np.ndarray) -> float:
        return float(np.abs(found - right).max())

    def moved(change) -> float:
        changed = copy.deepcopy(model)
        change(changed)
        return off(means(changed, rows))

    def reordered(sequence: str) -> list[int]:
        """Ids of a vocabulary in the order of the alphabet."""
        return token_ids(sequence, vocabulary(version, letters="ACGT"))

    def from_the_right(sequence: str) -> list[int]:
        """The letters that are left over come first."""
        return [CLS, *(token_ids(sequence[: len(sequence) % K], tokens)[1:] + token_ids(sequence[len(sequence) % K :], tokens)[1:])]

    eos = tokens.index("<eos>") if version == "v2" else UNK
    ended = hidden(model, [[*row, eos] for row in rows], [LAYERS])[0]
    found = {
        "<cls> in the mean": off(np.stack([pool(row, "mean-all") for row in hidden(model, rows, [LAYERS])[0]])),
        "a token behind": off(np.stack([pool(row[:-1], "mean") for row in ended])),
        "k-mers in the order of the alphabet": off(means(model, [reordered(sequence) for sequence in sequences])),
        "letters left over at the start": off(means(model, [from_the_right(sequence) for sequence in sequences])),
    }
    if version == "v1":

        def shift(changed) -> None:
            table = changed.embeddings.position_embeddings.weight.data
            table.copy_(torch.roll(table, 2, 0))

        found["positions off by two"] = moved(shift)
        found["no factor 0.88"] = moved(lambda m: setattr(m.embeddings, "token_dropout", False))
        return found

    def halves(changed) -> None:
        for layer in changed.encoder.layer:
            weight = layer.intermediate.dense.weight.data
            weight.copy_(torch.roll(weight, INNER, 0))

    def gelu(changed) -> None:
        class Other(torch.nn.Module):
            def __init__(self, dense):
                super().__init__()
                self.dense = dense

            def forward(self, x):
                first, second = self.dense(x).chunk(2, -1)
                return torch.nn.functional.gelu(first) * second

        for layer in changed.encoder.layer:
            layer.intermediate = Other(layer.intermediate.dense)

    def with_positions(changed) -> None:
        table = torch.nn.Embedding(POSITIONS[version] + 2, HIDDEN, padding_idx=PAD)
        table.weight.data.normal_(generator=torch.Generator().manual_seed(5))
        changed.embeddings.position_embeddings = table
        changed.embeddings.position_embedding_type = "absolute"

    found["the other half gated"] = moved(halves)
    found["GELU for SiLU"] = moved(gelu)
    found["the table of positions added"] = moved(with_positions)
    found["a factor 0.88"] = moved(lambda m: setattr(m.embeddings, "token_dropout", True))
    return found


# ---------------------------------------------------------------------------------------------- fixtures


def write_inputs(folder: Path, dna: Path) -> None:
    folder.mkdir(parents=True)
    sources = dict(esm2.read_fasta(dna / "kmers.fna") + esm2.read_fasta(dna / "mixed.fna"))
    long, short, other = sources["MH053567.1/101-612"], sources["MK107872.1/1001-1333"], sources["OM735983.1/2001-2129"]

    def spoilt(sequence: str, *runs: tuple[int, int]) -> str:
        for at, count in runs:
            sequence = sequence[:at] + "N" * count + sequence[at + count :]
        return sequence

    esm2.write_fasta(
        folder / "mixed.fna",
        [
            ("a99 whole 3-mers", long[:99]),
            ("a1 a single letter", long[:1]),
            ("a2 no 3-mer", long[5:7]),
            ("a290 two letters left over", long[:290]),
            ("n1 an N inside of a 3-mer", spoilt(short[:100], (40, 1))),
            ("n9 runs of N", spoilt(other, (0, 2), (30, 9), (60, 1), (62, 1), (125, 4))),
            ("n all N", "N" * 20),
            ("a3", long[9:12]),
        ],
    )
    shutil.copy(dna / "letters.fna", folder / "letters.fna")
    # 297 bases are 99 3-mers; with letters of their own, fewer bases are more tokens.
    esm2.write_fasta(
        folder / "long.fna",
        [
            ("fits", long[:297]),
            ("more tokens than fit", spoilt(long[:297], (100, 2))),
            ("longer", long[:400]),
            ("longer with N", spoilt(long[:500], (0, 1), (130, 200), (411, 1))),
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    fixtures = Path(__file__).parents[2] / "tests/fixtures"
    parser.add_argument("--out", type=Path, default=fixtures / "nt")
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    shutil.rmtree(out, ignore_errors=True)
    write_inputs(out / "inputs", fixtures / "dna/inputs")
    expected: dict[str, np.ndarray] = {}
    cases: list[dict] = []
    for version, seed in (("v1", 21), ("v2", 22)):
        model, tokens = random_model(version, seed), vocabulary(version)
        folders = write_checkpoints(out / "checkpoints", version, model)
        double = copy.deepcopy(model).double()
        if version == "v1":
            loaded = esm2.load_transformers(folders[0])
            read, made = loaded.state_dict(), model.state_dict()
            assert all(torch.equal(read[name], made[name]) for name in made if "contact_head" not in name)
        for file in ("mixed", "letters", "long"):
            records = esm2.read_fasta(out / f"inputs/{file}.fna")
            sequences = [sequence for _, sequence in records]
            check_tokenizer(folders[0], sequences, tokens)
            rows = [token_ids(sequence, tokens) for sequence in sequences]
            most = POSITIONS[version] - 1
            cut = [len(sequence) > most * K or len(row) - 1 > most for sequence, row in zip(sequences, rows)]
            if any(cut):
                parts = [
                    in_windows(model, row, most, OVERLAP // K, LAYERS_ASKED) if is_cut else [layer[0] for layer in hidden(model, [row], LAYERS_ASKED)]
                    for row, is_cut in zip(rows, cut)
                ]
                vectors = [list(by_layer) for by_layer in zip(*parts)]
            else:
                vectors = hidden(model, rows, LAYERS_ASKED)
                exact = hidden(double, rows, LAYERS_ASKED)
                off = max(float(np.abs(a - b).max()) for a, b in zip(sum(vectors, []), sum(exact, [])))
                print(f"{version} {file}: fp32 is off fp64 by {off:.1e}")
                assert off < 1e-5
            marks = []
            for row, is_cut in zip(rows, cut):
                replaced = "all-unknown" if set(row[1:]) == {UNK} else "replaced" if UNK in row else ""
                marks.append(",".join(mark for mark in ("windowed" if is_cut else "", replaced) if mark) or "ok")
            per_token = {"mixed": [1, 4, 5], "letters": [3], "long": [1]}[file]
            case = f"{version}-{file}"
            for layer, by_record in zip(LAYERS_ASKED, vectors):
                for how in esm2.POOLINGS:
                    expected[f"{case}/{how}/{layer}"] = np.stack([pool(row, how) for row in by_record])
            for record in per_token:
                expected[f"{case}/none/{LAYERS}/{record}"] = np.ascontiguousarray(vectors[0][record][1:])
            cases.append(
                {
                    "name": case,
                    "models": [str(folder.relative_to(out)) for folder in folders],
                    "input": f"inputs/{file}.fna",
                    "options": ["--overlap", str(OVERLAP)] if file == "long" else [],
                    "layers": LAYERS_ASKED,
                    "poolings": list(esm2.POOLINGS),
                    "per_token_records": per_token,
                    "ids": [header.split()[0] for header, _ in records],
                    "lengths": [len(sequence) for sequence in sequences],
                    "tokens": [len(row) - 1 for row in rows],
                    "status": marks,
                }
            )
            if file == "mixed":
                for what, by in mistakes(version, model, sequences).items():
                    print(f"{version}: {what} moves a mean by {by:.2f}")
                    assert by > 2e-3, what
    save_file({key: torch.from_numpy(array.copy()) for key, array in expected.items()}, out / "expected.safetensors")
    (out / "cases.json").write_text(json.dumps({"hidden": HIDDEN, "layers": LAYERS, "cases": cases}, indent=1) + "\n")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{size / 1e6:.2f} MB in {out}")


if __name__ == "__main__":
    main()
