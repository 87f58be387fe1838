"""Creates `tests/fixtures/esm1/`: small ESM-1b and ESM-1v checkpoints in every layout, and the expected vectors.

    python onnx/reference/esm1_fixtures.py [--out tests/fixtures/esm1]

Rerun it with the versions of requirements.txt: seeds are fixed. The inputs are those of `tests/fixtures/esm2/inputs`.

What it writes
- `checkpoints/`: for `esm1b` (a layer norm behind the embeddings) and `esm1v` (none), 2 layers, hidden size 32, 2 heads of
  16, feed-forward 128, 300 positions:
    NAME-safetensors/   as on the hub: config.json, vocab.txt, model.safetensors
    NAME-bin/           pytorch_model.bin
    NAME_small.pt       as fair-esm released them: `args` with roberta-style names (its contact regression, which the loader
                        of ESM-1b asks for, is not kept)
- `cases.json`, `expected.safetensors`: as in `tests/fixtures/esm2`; a case's name begins with the model's

fair-esm and transformers both run each case in fp32, all of a file's records in one padded batch, and must agree to 1e-5
in every token of every layer. Typical mistakes are made on purpose in transformers' model, and how far each moves the
mean is printed.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
from collections import OrderedDict
from pathlib import Path

import esm2
import numpy as np
import torch
from safetensors.torch import save_file

LAYERS, HIDDEN, HEADS, POSITIONS = 2, 32, 2, 300
ROWS = POSITIONS + 2
LAYERS_ASKED = [2, 1]
AGREE = 1e-5
MODELS = {"esm1b": (True, 1), "esm1v": (False, 2)}


def random_state(norm_before: bool, seed: int) -> OrderedDict[str, np.ndarray]:
    """ESM-2's weights with a table of positions, whose rows for padding are not zero, and a norm behind the embeddings."""
    state = esm2.random_state(LAYERS, HIDDEN, HEADS, seed)
    rng = np.random.default_rng(1000 + seed)
    out = OrderedDict()
    for name, array in state.items():
        out[name] = array
        if name == "esm.embeddings.word_embeddings.weight":
            out["esm.embeddings.position_embeddings.weight"] = rng.standard_normal((ROWS, HIDDEN), dtype=np.float32)
            if norm_before:
                out["esm.embeddings.layer_norm.weight"] = 1 + 0.25 * rng.standard_normal(HIDDEN, dtype=np.float32)
                out["esm.embeddings.layer_norm.bias"] = 0.15 * rng.standard_normal(HIDDEN, dtype=np.float32)
    out["lm_head.decoder.weight"] = out["esm.embeddings.word_embeddings.weight"]
    return out


def config(norm_before: bool) -> dict:
    """config.json as the hub has it."""
    return {
        **esm2.hub_config(LAYERS, HIDDEN, HEADS),
        "position_embedding_type": "absolute",
        "emb_layer_norm_before": norm_before,
        "max_position_embeddings": ROWS,
    }


def unused() -> dict:
    """What the hub's files hold beside the weights."""
    return {
        "esm.embeddings.position_ids": torch.arange(ROWS)[None],
        "esm.contact_head.regression.weight": torch.zeros(1, LAYERS * HEADS),
        "esm.contact_head.regression.bias": torch.zeros(1),
    }


def write_fair_esm(path: Path, state: OrderedDict[str, np.ndarray]) -> None:
    """The layout before ESM-2's: `args`, with fairseq's names."""
    names = esm2.fair_esm_state(state, HIDDEN, HEADS)
    renames = {
        "esm.embeddings.position_embeddings.": "encoder.sentence_encoder.embed_positions.",
        "esm.embeddings.layer_norm.": "encoder.sentence_encoder.emb_layer_norm_before.",
    }
    tensors = OrderedDict()
    for name, array in names.items():
        if name.endswith("inv_freq"):
            continue
        for old, new in renames.items():
            name = name.replace(old, new)
        # The oldest files call it so; fair-esm takes both.
        tensors[name.replace("lm_head.weight", "encoder.lm_head.weight") if name == "lm_head.weight" else name] = array
    arguments = argparse.Namespace(
        arch="roberta_large",
        encoder_layers=LAYERS,
        encoder_embed_dim=HIDDEN,
        encoder_ffn_embed_dim=4 * HIDDEN,
        encoder_attention_heads=HEADS,
        max_positions=POSITIONS,
        token_dropout=True,
        dropout=0.0,
        activation_fn="gelu",
        final_bias=True,
    )
    torch.save({"args": arguments, "model": esm2.as_torch(tensors)}, path)
    regression = {"contact_head.regression.weight": torch.zeros(1, LAYERS * HEADS)}
    regression["contact_head.regression.bias"] = torch.zeros(1)
    torch.save({"model": regression}, path.with_name(path.stem + "-contact-regression.pt"))


def write_checkpoints(folder: Path, name: str, norm_before: bool, seed: int) -> list[Path]:
    """The same weights in every layout."""
    state, settings = random_state(norm_before, seed), config(norm_before)
    tensors = esm2.as_torch(state)
    paths = [folder / f"{name}-safetensors", folder / f"{name}-bin", folder / f"{name}_small.pt"]
    esm2.write_hub_sidecars(paths[0], settings)
    untied = {key: tensor for key, tensor in tensors.items() if key != "lm_head.decoder.weight"}
    save_file({**untied, **unused()}, paths[0] / "model.safetensors", metadata={"format": "pt"})
    esm2.write_hub_sidecars(paths[1], settings)
    torch.save({**tensors, **unused()}, paths[1] / "pytorch_model.bin")
    write_fair_esm(paths[2], state)
    return paths


def mistakes(model, rows: list[list[int]]) -> dict[str, float]:
    """How far typical mistakes move a mean of the last layer."""

    def means(changed) -> np.ndarray:
        vectors = esm2.hidden_transformers(changed, rows, [LAYERS])[0]
        return np.stack([esm2.pool(row, "mean") for row in vectors])

    right = means(model)

    def moved(change) -> float:
        changed = copy.deepcopy(model)
        change(changed)
        return float(np.abs(means(changed) - right).max())

    def shift(changed) -> None:
        table = changed.embeddings.position_embeddings.weight.data
        table.copy_(torch.roll(table, 2, 0))

    def no_norm(changed) -> None:
        changed.embeddings.layer_norm = torch.nn.Identity()

    found = {
        "positions off by two": moved(shift),
        "no positions": moved(lambda m: m.embeddings.position_embeddings.weight.data.zero_()),
        "no factor 0.88": moved(lambda m: setattr(m.embeddings, "token_dropout", False)),
    }
    if model.embeddings.layer_norm is not None:
        found["no norm behind the embeddings"] = moved(no_norm)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    fixtures = Path(__file__).parents[2] / "tests/fixtures"
    parser.add_argument("--out", type=Path, default=fixtures / "esm1")
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    shutil.rmtree(out, ignore_errors=True)
    (out / "checkpoints").mkdir(parents=True)
    expected: dict[str, np.ndarray] = {}
    cases = []
    largest = 0.0
    for name, (norm_before, seed) in MODELS.items():
        paths = write_checkpoints(out / "checkpoints", name, norm_before, seed)
        regression = paths[2].with_name(paths[2].stem + "-contact-regression.pt")
        folders = [esm2.load_transformers(path) for path in paths[:2]]
        # fair-esm looks for the regression beside the file, but not for ESM-1v.
        fair_esm = esm2.load_fair_esm(paths[2])
        regression.unlink()
        for file in ("mixed", "letters"):
            records = esm2.read_fasta(fixtures / f"esm2/inputs/{file}.faa")
            rows = [esm2.token_ids(sequence) for _, sequence in records]
            vectors = esm2.hidden_transformers(folders[0], rows, LAYERS_ASKED)
            others = [
                esm2.hidden_transformers(folders[1], rows, LAYERS_ASKED),
                esm2.hidden_fair_esm(fair_esm, rows, LAYERS_ASKED),
            ]
            for other in others:
                pairs = zip(sum(vectors, []), sum(other, []))
                largest = max(largest, *(float(np.abs(a - b).max()) for a, b in pairs))
            assert largest <= AGREE, f"fair-esm and transformers differ by {largest:.2e}"
            case = f"{name}-{file}"
            per_token = [1, 4] if file == "mixed" else []
            about = {
                "name": case,
                "models": [str(path.relative_to(out)) for path in paths],
                "input": f"../esm2/inputs/{file}.faa",
                "options": [],
                "status": [esm2.status(sequence) for _, sequence in records],
            }
            esm2.add_case(cases, expected, about, records, vectors, LAYERS_ASKED, per_token)
            if file == "mixed":
                for what, by in mistakes(folders[0], rows).items():
                    print(f"{name}: {what} moves a mean by {by:.2f}")
                    assert by > 2e-3, what
    save_file({key: torch.from_numpy(array.copy()) for key, array in expected.items()}, out / "expected.safetensors")
    summary = {"hidden": HIDDEN, "layers": LAYERS, "positions": POSITIONS, "cases": cases}
    summary["fair_esm_against_transformers"] = largest
    (out / "cases.json").write_text(json.dumps(summary, indent=1) + "\n")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"fair-esm against transformers: largest difference {largest:.1e}; {size / 1e6:.2f} MB in {out}")


if __name__ == "__main__":
    main()
