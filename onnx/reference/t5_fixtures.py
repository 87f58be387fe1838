"""Creates `tests/fixtures/t5/`: small checkpoints of ProtT5's and ProstT5's layouts, and the vectors that they must give by transformers.

    python onnx/reference/t5_fixtures.py [--out tests/fixtures/t5]

Rerun it with the versions of requirements.txt: seeds are fixed. The inputs are those of `tests/fixtures/esm2/inputs`,
and proteins of up to 1,500 residues, by far longer than the distance from which on the bias is constant.

What it writes
- checkpoints (2 layers, hidden size 40, 3 heads of 16, feed-forward 64)
    prott5/   as published: pytorch_model.bin in half precision, with decoder, head and the table of words under three names, and spiece.model
    prostt5/  model.safetensors of the encoder alone, the table of words as `shared.weight`; no vocabulary
    gated/    feed-forward layers gated by GELU, 64 buckets; a tokenizer.json
- `inputs/long.faa`
- `tokens.json`: sequences and their ids, by SentencePiece on texts made as the authors make them
- `cases.json`, `expected.safetensors`: as in `tests/fixtures/esm2`; a case's name begins with the model's

Vectors are those of transformers' T5EncoderModel in fp64, all of a file's records in one padded batch. Typical mistakes are made on
purpose, and how far each moves a mean is printed.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import re
import shutil
import tempfile
from pathlib import Path

import esm2
import numpy as np
import sentencepiece
import torch
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention

LAYERS, HIDDEN, HEADS, WIDTH, INNER = 2, 40, 3, 16, 64
LAYERS_ASKED = [2, 1]
RESIDUES = "ALGVSREDTIPKFQNYMHWCXBOUZ"
PAD, END, UNK, FIRST = 0, 1, 2, 3
FROM_RESIDUES = 149
POOLINGS = ["mean", "mean-all", "max"]


def config(rows: int, gated: bool) -> dict:
    """config.json as the hub has it."""
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "d_ff": INNER,
        "d_kv": WIDTH,
        "d_model": HIDDEN,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.1,
        "eos_token_id": END,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-06,
        "model_type": "t5",
        "num_heads": HEADS,
        "num_layers": LAYERS,
        "num_decoder_layers": 1,
        "pad_token_id": PAD,
        "relative_attention_num_buckets": 64 if gated else 32,
        "vocab_size": rows,
    }


def random_model(settings: dict, seed: int, kind=T5EncoderModel):
    """Random, but not bland: scores, which nothing scales, of about 2.5, and norms that spread around 1."""
    torch.manual_seed(seed)
    model = kind(T5Config(**{key: value for key, value in settings.items() if key != "architectures"})).eval()
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape)
        if parameter.dim() == 1:
            values = values * 0.25 + 1
        elif "relative_attention_bias" not in name and name not in ("shared.weight", "lm_head.weight"):
            gain = 1.6 / WIDTH**0.25 if name.endswith((".q.weight", ".k.weight")) else 0.8
            values = values * gain / math.sqrt(parameter.shape[1])
        parameter.data.copy_(values.half().float())
    return model


def write_pieces(path: Path) -> sentencepiece.SentencePieceProcessor:
    """A spiece.model of ProtT5's pieces, in its order."""
    from sentencepiece import sentencepiece_model_pb2 as protobuf

    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text"
        text.write_text((" ".join(RESIDUES) + "\n") * 50)
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=f"{folder}/spiece", vocab_size=len(RESIDUES) + 4, pad_id=PAD, eos_id=END, unk_id=UNK,
            bos_id=-1, model_type="unigram", normalization_rule_name="identity", hard_vocab_limit=False, minloglevel=3,
        )
        model = protobuf.ModelProto.FromString(Path(f"{folder}/spiece.model").read_bytes())
    del model.pieces[FIRST:]
    for letter in RESIDUES:
        model.pieces.add(piece="\u2581" + letter, score=-3.0)
    for field in ("input", "model_prefix"):
        model.trainer_spec.ClearField(field)
    path.write_bytes(model.SerializeToString())
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def write_json(path: Path, rows: int) -> None:
    from tokenizers import Tokenizer, models

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *(("\u2581" + letter, -3.0) for letter in RESIDUES)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=UNK))
    tokenizer.add_special_tokens([f"<extra_id_{number}>" for number in range(rows - len(pieces))])
    path.write_text(json.dumps(json.loads(tokenizer.to_str()), separators=(",", ":")))


def hidden(model, rows: list[list[int]], layers: list[int]) -> list[list[np.ndarray]]:
    """Token vectors with special tokens, for each layer and each row, all rows in one batch, in fp64."""
    ids = torch.full((len(rows), max(map(len, rows))), PAD, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
    with torch.inference_mode():
        states = model.double()(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    return [[states[layer][i, : len(row)].float().numpy() for i, row in enumerate(rows)] for layer in layers]


def pool(tokens: np.ndarray, how: str, front: int) -> np.ndarray:
    residues = tokens[front:-1]
    if how == "max":
        return residues.max(0)
    return (tokens if how == "mean-all" else residues).mean(0, dtype=np.float64).astype(np.float32)


def mistakes(model, rows: list[list[int]], raw: list[list[int]], front: int) -> dict[str, float]:
    """How far typical mistakes move a mean of the last layer."""

    def means(changed, rows, front=front, how="mean") -> np.ndarray:
        return np.stack([pool(row, how, front) for row in hidden(changed, rows, [LAYERS])[0]])

    right = means(copy.deepcopy(model), rows)

    def moved(change) -> float:
        changed = copy.deepcopy(model)
        change(changed.encoder)
        return float(np.abs(means(changed, rows) - right).max())

    def scaled(encoder):
        for block in encoder.block:
            block.layer[0].SelfAttention.q.weight.data /= math.sqrt(WIDTH)

    def other_direction(encoder):
        bias = encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
        bias.data = torch.cat(list(bias.data.chunk(2))[::-1])

    def other_activation(encoder):
        for block in encoder.block:
            block.layer[1].DenseReluDense.act = torch.nn.GELU()

    def first_layer_only(encoder):
        attention = encoder.block[1].layer[0].SelfAttention
        attention.has_relative_attention_bias = False
        forward = attention.forward
        attention.forward = lambda *args, **kw: forward(*args, **{**kw, "position_bias": torch.zeros_like(kw["position_bias"])})

    def layer_norms(encoder):
        for block in encoder.block:
            for half in block.layer:
                norm = torch.nn.LayerNorm(HIDDEN, bias=False, eps=1e-6)
                norm.weight.data = half.layer_norm.weight.data
                half.layer_norm = norm

    def without_final_norm(encoder):
        encoder.final_layer_norm = torch.nn.Identity()

    def with_buckets(nearest: int):
        original = T5Attention._relative_position_bucket
        wrong = lambda position, bidirectional=True, num_buckets=32, max_distance=128: original(  # noqa: E731
            position, bidirectional, num_buckets, nearest
        )
        T5Attention._relative_position_bucket = staticmethod(wrong)
        try:
            return float(np.abs(means(copy.deepcopy(model), rows) - right).max())
        finally:
            T5Attention._relative_position_bucket = staticmethod(original)

    found = {
        "scaled scores": moved(scaled),
        "the buckets of the other direction": moved(other_direction),
        "buckets up to 64": with_buckets(64),
        "no bias behind the first layer": moved(first_layer_only),
        "erf GELU" if model.config.is_gated_act else "GELU for ReLU": moved(other_activation),
        "layer norms for RMS norms": moved(layer_norms),
        "no last norm": moved(without_final_norm),
        "special tokens in the mean": float(np.abs(means(copy.deepcopy(model), rows, how="mean-all") - right).max()),
        "U, Z, O and B as they are": float(np.abs(means(copy.deepcopy(model), raw) - right).max()),
    }
    if front:
        found["no <AA2fold>"] = float(np.abs(means(copy.deepcopy(model), [row[1:] for row in rows], 0) - right).max())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    fixtures = Path(__file__).parents[2] / "tests/fixtures"
    parser.add_argument("--out", type=Path, default=fixtures / "t5")
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    shutil.rmtree(out, ignore_errors=True)
    folders = {name: out / "checkpoints" / name for name in ("prott5", "prostt5", "gated")}
    for folder in [*folders.values(), out / "inputs"]:
        folder.mkdir(parents=True)

    whole = random_model(config(128, False), 51, T5ForConditionalGeneration)
    prott5 = T5EncoderModel(whole.config)
    prott5.load_state_dict({name: tensor for name, tensor in whole.state_dict().items() if name.startswith(("shared", "encoder"))})
    prott5.eval()
    models = {"prott5": prott5, "prostt5": random_model(config(150, False), 52), "gated": random_model(config(128, True), 53)}
    half = {name: tensor.half() for name, tensor in whole.state_dict().items()}
    assert {"shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"} <= set(half)
    torch.save(half, folders["prott5"] / "pytorch_model.bin")
    for name in ("prostt5", "gated"):
        state = {key: tensor.half().contiguous() for key, tensor in models[name].state_dict().items() if "embed_tokens" not in key}
        save_file(state, folders[name] / "model.safetensors", metadata={"format": "pt"})
    for name, folder in folders.items():
        settings = config(models[name].config.vocab_size, name == "gated")
        (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    pieces = write_pieces(folders["prott5"] / "spiece.model")
    write_json(folders["gated"] / "tokenizer.json", 128)

    mixed = [sequence for _, sequence in esm2.read_fasta(fixtures / "esm2/inputs/mixed.faa")]
    residues = "".join(re.sub("[^A-Z]", "", sequence.upper()) for sequence in mixed)
    long = [(f"of_{length}", (residues * (1 + 1500 // len(residues)))[length % 7 :][:length]) for length in (300, 1, 1400, 129)]
    esm2.write_fasta(out / "inputs/long.faa", long)

    def token_ids(sequence: str, front: list[int], replace: bool = True) -> list[int]:
        sequence = sequence.upper()
        sequence = sequence[:-1] if sequence.endswith("*") else sequence
        sequence = re.sub("[UZOB]", "X", sequence) if replace else sequence
        # A letter at a time, because a run of unknown ones becomes one.
        return [*front, *(pieces.encode(letter)[-1] for letter in sequence), END]

    expected: dict[str, np.ndarray] = {}
    cases: list[dict] = []
    tokens: dict[str, list[dict]] = {name: [] for name in models}
    for name, model in models.items():
        front = [FROM_RESIDUES] if name == "prostt5" else []
        for file in ("../esm2/inputs/mixed.faa", "../esm2/inputs/letters.faa", "inputs/long.faa"):
            records = esm2.read_fasta(out / file)
            rows = [token_ids(sequence, front) for _, sequence in records]
            case = f"{name}-{Path(file).stem}"
            if "long" not in case:
                tokens[name] += [{"sequence": sequence, "ids": row} for (_, sequence), row in zip(records, rows)]
            vectors = hidden(copy.deepcopy(model), rows, LAYERS_ASKED)
            per_token = [1, 2] if "long" not in case else [1]
            for layer, by_row in zip(LAYERS_ASKED, vectors):
                for how in POOLINGS:
                    expected[f"{case}/{how}/{layer}"] = np.stack([pool(row, how, len(front)) for row in by_row])
                for record in per_token:
                    expected[f"{case}/none/{layer}/{record}"] = np.ascontiguousarray(by_row[record][len(front) : -1])
            known = dict.fromkeys(RESIDUES + "|")
            cases.append({
                "name": case, "models": [f"checkpoints/{name}"], "input": file, "options": [], "layers": LAYERS_ASKED,
                "poolings": POOLINGS, "per_token_records": per_token, "ids": [header.split()[0] for header, _ in records],
                "lengths": [len(sequence.rstrip("*")) for _, sequence in records],
                "status": [esm2.status(sequence, known) for _, sequence in records],
            })
            if case.endswith("mixed"):
                raw = [token_ids(sequence, front, replace=False) for _, sequence in records]
                for what, by in mistakes(model, rows, raw, len(front)).items():
                    print(f"{case}: {what} moves a mean by {by:.2g}")
                    assert by > (2e-5 if what == "erf GELU" else 2e-3), what
    tensors = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in expected.items()}
    save_file(tensors, out / "expected.safetensors")
    (out / "cases.json").write_text(json.dumps({"hidden": HIDDEN, "layers": LAYERS, "cases": cases}, indent=1) + "\n")
    (out / "tokens.json").write_text(json.dumps(tokens, separators=(",", ":")) + "\n")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{size / 1e6:.2f} MB in {out}")


if __name__ == "__main__":
    main()
