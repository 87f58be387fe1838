"""Creates `tests/fixtures/esm2/`: small ESM-2 checkpoints in every format, real proteins, and the expected vectors.

    python onnx/reference/esm2_fixtures.py [--out tests/fixtures/esm2] [--proteins-from DB.fasta.gz]

Rerun it with the versions of requirements.txt: seeds are fixed, so the weights and inputs come out the same, byte by
byte, and the expected vectors up to the last bits of another CPU's arithmetic.

Made with Python 3.11, torch 2.15.0, transformers 5.24.0, fair-esm 2.0.0, safetensors 0.8.0, numpy 1.26.4.

What it writes
- `checkpoints/`: ONE set of weights (3 layers, hidden size 48, 4 heads of 12, feed-forward 192) as
    hub-safetensors/          as on the hub: config.json, vocab.txt, model.safetensors (with rotary frequencies and the
                              like that nothing needs; so has hub-bin, the sharded ones have not)
    hub-safetensors-sharded/  model-0000N-of-00003.safetensors and model.safetensors.index.json
    hub-bin/                  pytorch_model.bin
    hub-bin-sharded/          pytorch_model-0000N-of-00002.bin and pytorch_model.bin.index.json
    hub-transformers5/        saved by transformers 5 itself
    esm2_small.pt             as fair-esm releases them (with its contact regression beside it)
- `widths/`: the heads of the true sizes (16, 24, 32 and 64 wide) and stored half precision (f16, bf16)
- `inputs/*.faa`: pieces of UniProt proteins (CC BY 4.0) from Debian's mmseqs2-examples; headers say which, and what was altered
- `cases.json`: for each case the input file, the options, and each record's id, length and status
- `expected.safetensors`: `CASE/POOLING/LAYER` [records, hidden] and `CASE/none/LAYER/RECORD` [residues, hidden]

How the expected vectors are made: fair-esm and transformers both run each case in fp32, all of a file's records
in one padded batch, and must agree to 1e-5 in every token of every layer asked for; transformers' values are kept. Layer k is
fair-esm's repr_layers[k] and transformers' hidden_states[k]: only the last has the final layer norm.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import esm2
import numpy as np
import torch
from safetensors.torch import save_file

LAYERS, HIDDEN, HEADS, SEED = 3, 48, 4, 20240
LAYERS_ASKED = [3, 1]
AGREE = 1e-5

# name -> layers, hidden, heads, format, dtype, seed: a head of the true width each.
WIDTHS = {
    "head16-f16": (2, 32, 2, "safetensors", "float16", 16),
    "head24-bf16": (2, 48, 2, "safetensors", "bfloat16", 24),
    "head32-f16": (2, 32, 1, "safetensors", "float16", 32),
    "esm2_head64-f16": (1, 64, 1, "pt", "float16", 64),
}


def write_inputs(folder: Path, proteins_from: Path) -> None:
    """The FASTA files. A piece's header is `accession/first-last`, then what was altered."""
    proteins = {header.split("|")[1]: sequence for header, sequence in esm2.read_fasta(proteins_from)}

    def piece(accession: str, first: int, length: int, put: dict[int, str] | None = None, note: str = ""):
        letters = list(proteins[accession][first - 1 : first - 1 + length])
        assert len(letters) == length, accession
        for position, letter in (put or {}).items():
            letters[position - 1] = letter
        altered = "".join(f" {position}:{letter}" for position, letter in (put or {}).items())
        header = f"{accession}/{first}-{first + length - 1}" + (f" altered{altered}" if altered else "") + note
        return header, "".join(letters)

    folder.mkdir(parents=True)
    esm2.write_fasta(
        folder / "mixed.faa",
        [
            piece("W0FSK4", 1, 64),
            piece("M4KW32", 1, 1),
            piece("Q8AWH3", 1, 257),
            piece("A7YWM6", 1, 2),
            piece("P53508", 1, 15),
            piece("P02135", 1, 140),  # has a Z and a B of its own
            piece("A7YWM6", 20, 16),
            piece("M4KW32", 30, 17),
            piece("I3L1A0", 1, 111),  # has an X of its own
            piece("Q54UN2", 1, 100),
            piece("M4CKE4", 10, 31, {5: "U", 12: "O", 20: "X", 21: "X"}),
            piece("C5CGQ5", 1, 101),
        ],
    )
    # Lower case, a terminal star, gaps; then letters that ESM-2 does not know, alone and in a run.
    esm2.write_fasta(
        folder / "letters.faa",
        [
            (lambda header, sequence: (header + " lower case, terminal star", sequence.lower() + "*"))(
                *piece("A7YWM6", 1, 40)
            ),
            piece("P53508", 20, 30, {7: "-", 8: "-", 15: "."}),
            piece("M4KW32", 100, 25, {4: "J"}),
            piece("M4KW32", 200, 33, {10: "J", 11: "J", 12: "J", 20: "*"}),
            piece("Q8AWH3", 50, 20),
        ],
    )
    esm2.write_fasta(
        folder / "long.faa",
        [
            piece("Q8AWH3", 1, 257),
            piece("Q54UN2", 1, 100),
            piece("C5CGQ5", 1, 101),
            piece("W0FSK4", 1, 160),
            piece("W0FSK4", 201, 161),
        ],
    )


def write_checkpoints(folder: Path) -> dict[str, Path]:
    """The same weights in every format."""
    state = esm2.random_state(LAYERS, HIDDEN, HEADS, SEED)
    config = esm2.hub_config(LAYERS, HIDDEN, HEADS)
    tensors = esm2.as_torch(state)
    esm2.write_safetensors(folder / "hub-safetensors", state, config)

    def shards(names: list[str], count: int) -> list[list[str]]:
        return [part.tolist() for part in np.array_split(names, count)]

    def index(path: Path, where: dict[str, str]) -> None:
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        path.write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": where}, indent=1) + "\n")

    sharded = folder / "hub-safetensors-sharded"
    esm2.write_hub_sidecars(sharded, config)
    names = [name for name in tensors if name != "lm_head.decoder.weight"]
    where: dict[str, str] = {}
    for number, part in enumerate(shards(names, 3), 1):
        file = f"model-{number:05}-of-00003.safetensors"
        save_file({name: tensors[name] for name in part}, sharded / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(part, file))
    index(sharded / "model.safetensors.index.json", where)

    single = folder / "hub-bin"
    esm2.write_hub_sidecars(single, config)
    torch.save({**tensors, **esm2.unused_tensors(config)}, single / "pytorch_model.bin")

    sharded = folder / "hub-bin-sharded"
    esm2.write_hub_sidecars(sharded, config)
    where = {}
    for number, part in enumerate(shards(list(tensors), 2), 1):
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, sharded / file)
        where.update(dict.fromkeys(part, file))
    index(sharded / "pytorch_model.bin.index.json", where)

    saved = folder / "hub-transformers5"
    torch.manual_seed(SEED)  # it adds a contact head of its own
    esm2.load_transformers(folder / "hub-safetensors").save_pretrained(saved)
    (saved / "vocab.txt").write_text("\n".join(esm2.VOCAB))

    esm2.write_fair_esm(folder / "esm2_small.pt", state, LAYERS, HIDDEN, HEADS)
    return {
        name: folder / name
        for name in (
            "hub-safetensors",
            "hub-safetensors-sharded",
            "hub-bin",
            "hub-bin-sharded",
            "hub-transformers5",
            "esm2_small.pt",
        )
    }


class Reference:
    """A model by fair-esm and by transformers, run side by side."""

    def __init__(self, folder: Path, pt: Path) -> None:
        self.transformers = esm2.load_transformers(folder)
        self.fair_esm = esm2.load_fair_esm(pt)
        self.largest = 0.0

    def run(self, sequences: list[str], layers: list[int]) -> list[list[np.ndarray]]:
        """[layer][sequence] -> token vectors, checked."""
        rows = [esm2.token_ids(sequence) for sequence in sequences]
        ours = esm2.hidden_transformers(self.transformers, rows, layers)
        theirs = esm2.hidden_fair_esm(self.fair_esm, rows, layers)
        for a, b in zip(sum(ours, []), sum(theirs, [])):
            self.largest = max(self.largest, float(np.abs(a - b).max()))
        assert self.largest <= AGREE, f"fair-esm and transformers differ by {self.largest:.2e}"
        return ours


def check_tokenizers(records: list[tuple[str, str]], folder: Path) -> None:
    """Both packages' own tokenizers give our ids for sequences of known letters."""
    import esm
    from transformers import EsmTokenizer

    alphabet = esm.Alphabet.from_architecture("ESM-1b")
    tokenizer = EsmTokenizer.from_pretrained(folder)
    for header, sequence in records:
        ids = esm2.token_ids(sequence)
        assert alphabet.get_batch_converter()([(header, sequence)])[2][0].tolist() == ids, header
        assert tokenizer(sequence)["input_ids"] == ids, header


def attention_spread(model, rows: list[list[int]]) -> float:
    """Mean entropy of attention as a share of uniform attention's: 1 is uniform."""
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        attentions = model(input_ids=esm2.padded(rows[:1]), output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    shares = [-(a * a.clamp_min(1e-30).log()).sum(-1).mean() / np.log(a.shape[-1]) for a in attentions]
    return float(torch.stack(shares).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "tests/fixtures/esm2")
    parser.add_argument("--proteins-from", type=Path, help="FASTA file (default: Debian's mmseqs2-examples)")
    arguments = parser.parse_args()
    out: Path = arguments.out
    torch.set_num_threads(1)
    shutil.rmtree(out, ignore_errors=True)
    write_inputs(out / "inputs", arguments.proteins_from or esm2.find_example_proteins())
    inputs = {path.stem: esm2.read_fasta(path) for path in sorted((out / "inputs").iterdir())}
    checkpoints = write_checkpoints(out / "checkpoints")

    check_tokenizers(inputs["mixed"], checkpoints["hub-safetensors"])
    reference = Reference(checkpoints["hub-safetensors"], checkpoints["esm2_small.pt"])
    expected: dict[str, np.ndarray] = {}
    cases: list[dict] = []

    def add(case: str, file: str, options: list[str], status: list[str], vectors, per_token: list[int]) -> None:
        """Records one case. `vectors` is [layer][record], `<cls>` and `<eos>` included."""
        about = {"name": case, "input": f"inputs/{file}.faa", "options": options, "status": status}
        esm2.add_case(cases, expected, about, inputs[file], vectors, LAYERS_ASKED, per_token)

    def whole(file: str) -> list[str]:
        return [sequence for _, sequence in inputs[file]]

    # All of a file in one batch.
    mixed = reference.run(whole("mixed"), LAYERS_ASKED)
    add("mixed", "mixed", [], ["ok"] * len(mixed[0]), mixed, [1, 4, 6, 7])
    letters = reference.run(whole("letters"), LAYERS_ASKED)

    add("letters", "letters", [], [esm2.status(sequence) for sequence in whole("letters")], letters, [3])

    # Truncated to the first 100 residues.
    width, overlap = 100, 40
    cut = [sequence[:width] for sequence in whole("long")]
    too_long = [len(sequence) > width for sequence in whole("long")]
    add(
        "truncated",
        "long",
        ["--long", "truncate", "--max-length", str(width)],
        ["truncated" if t else "ok" for t in too_long],
        reference.run(cut, LAYERS_ASKED),
        [],
    )

    # Windows: each run as a sequence of its own, alone in its batch, then joined.
    joined: list[list[np.ndarray]] = [[] for _ in LAYERS_ASKED]
    for sequence in whole("long"):
        starts = esm2.windows(len(sequence), width, overlap)
        parts = [reference.run([sequence[start : start + width]], LAYERS_ASKED) for start in starts]
        for layer in range(len(LAYERS_ASKED)):
            joined[layer].append(esm2.join([part[layer][0] for part in parts], starts, len(sequence), width))
    add(
        "windowed",
        "long",
        ["--long", "window", "--max-length", str(width), "--overlap", str(overlap)],
        ["windowed" if t else "ok" for t in too_long],
        joined,
        [4],
    )

    # Every checkpoint, read by the library that it is for, gives the same.
    for name, path in checkpoints.items():
        rows = [esm2.token_ids(sequence) for sequence in whole("mixed")]
        if path.suffix == ".pt":
            again = esm2.hidden_fair_esm(esm2.load_fair_esm(path), rows, LAYERS_ASKED)
        else:
            again = esm2.hidden_transformers(esm2.load_transformers(path), rows, LAYERS_ASKED)
        worst = max(float(np.abs(a - b).max()) for a, b in zip(sum(mixed, []), sum(again, [])))
        print(f"{name:26} largest difference {worst:.1e}")
        assert worst <= AGREE

    # The heads of the true sizes, from weights rounded to half precision and computed in fp32.
    widths = []
    for name, (layers, hidden, heads, form, dtype, seed) in WIDTHS.items():
        state = esm2.random_state(layers, hidden, heads, seed)
        rounded = {key: tensor.float().numpy() for key, tensor in esm2.as_torch(state, dtype).items()}
        config = esm2.hub_config(layers, hidden, heads, dtype)
        scratch = out / "scratch"
        esm2.write_safetensors(scratch / "hub", rounded, esm2.hub_config(layers, hidden, heads))
        esm2.write_fair_esm(scratch / "esm2_scratch.pt", rounded, layers, hidden, heads)
        pair = Reference(scratch / "hub", scratch / "esm2_scratch.pt")
        vectors = pair.run(whole("mixed"), [layers])[0]
        shutil.rmtree(scratch)
        expected[f"{name}/mean/{layers}"] = np.stack([esm2.pool(row, "mean") for row in vectors])
        if form == "pt":
            where = out / "widths" / f"{name}.pt"
            esm2.write_fair_esm(where, state, layers, hidden, heads, dtype)
            # The file's rotary frequencies are rounded to half precision as well, as in the released 3B and 15B:
            # nobody should compute with those.
            model = esm2.load_fair_esm(where)
            for layer in model.layers:
                layer.self_attn.rot_emb.inv_freq = torch.from_numpy(esm2.inverse_frequencies(hidden, heads))
            again = esm2.hidden_fair_esm(model, rows, [layers])[0]
        else:
            where = out / "widths" / name
            esm2.write_safetensors(where, state, config, dtype)
            again = esm2.hidden_transformers(esm2.load_transformers(where), rows, [layers])[0]
        assert max(float(np.abs(a - b).max()) for a, b in zip(vectors, again)) <= AGREE
        print(f"{name:26} fair-esm against transformers {pair.largest:.1e}")
        widths.append({"name": name, "checkpoint": str(where.relative_to(out)), "layer": layers, "hidden": hidden})

    save_file({name: torch.from_numpy(array.copy()) for name, array in expected.items()}, out / "expected.safetensors")
    summary = {
        "hidden": HIDDEN,
        "layers": LAYERS,
        "checkpoints": [str(path.relative_to(out)) for path in checkpoints.values()],
        "widths": {"input": "inputs/mixed.faa", "models": widths},
        "cases": cases,
        "fair_esm_against_transformers": reference.largest,
    }
    (out / "cases.json").write_text(json.dumps(summary, indent=1) + "\n")
    rows = [esm2.token_ids(sequence) for sequence in whole("mixed")]
    rms = float(np.sqrt(np.mean(np.concatenate(mixed[0]) ** 2)))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"fair-esm against transformers: largest difference {reference.largest:.1e} (RMS of the last layer {rms:.2f})")
    print(f"entropy of attention: {attention_spread(reference.transformers, rows):.2f} of uniform attention's")
    print(f"{size / 1e6:.2f} MB in {out}")


if __name__ == "__main__":
    main()
