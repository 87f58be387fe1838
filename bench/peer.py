"""One run of another tool: reads a FASTA file and writes one mean vector per record. compare.py starts one process per run.

    python bench/peer.py transformers|fair-esm|esm-cpp|dnabert2|transformers-FAMILY --model PATH --fasta FILE --out FOLDER --budget N --threads N

Prints one line of JSON: seconds to import and load, and from there until the last file is on disk. Vectors that are not
written as one array in the timed part are collected afterwards, so that they can be compared.
"""

from __future__ import annotations

import argparse
import json
import time

START = time.perf_counter()

from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
from common import esm2  # noqa: E402


def save(folder: Path, records: list[tuple[str, str]], vectors: np.ndarray) -> None:
    """ids and vectors as npz."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "vectors.npz", ids=np.array([h.split()[0] for h, _ in records]), embeddings=vectors)


def sorted_batches(rows: list[list[int]], budget: int) -> list[list[int]]:
    """The rows' numbers, longest row first, in batches that are within the token budget when they are padded."""
    batches, batch = [], []
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i])):  # the first of a batch is its longest
        if batch and len(rows[batch[0]]) * (len(batch) + 1) > budget:
            batches.append(batch)
            batch = []
        batch.append(i)
    return [*batches, batch]


def means(states, mask, front: int = 1, behind: int = 1):
    """Means of token vectors [batch, tokens, hidden] over all that `mask` has but the special ones: at most one on either side."""
    import torch

    lengths = mask.sum(1)
    kept = mask.clone()
    kept[:, :front] = 0
    if behind:
        kept[torch.arange(len(mask)), lengths - 1] = 0
    return torch.einsum("bsh,bs->bh", states, kept.float()) / (lengths - front - behind)[:, None]


def transformers(arguments, family: str | None = None) -> tuple[float, float]:
    """ESM-2, or another family, with SDPA: sorted by length, longest first, padded batches under a token budget."""
    import torch

    torch.set_num_threads(arguments.threads)
    if family:
        import families

        model, tokens = families.load(family, arguments.model), families.tokenizer(family)
        token_ids, special, pad = tokens.encode, (tokens.front, tokens.behind), tokens.pad
    else:
        model, token_ids, special, pad = esm2.load_transformers(arguments.model), esm2.token_ids, (1, 1), esm2.PAD
    loaded = time.perf_counter()

    records = esm2.read_fasta(arguments.fasta)
    rows = [token_ids(sequence) for _, sequence in records]
    vectors = np.empty((len(rows), model.config.hidden_size), np.float32)
    with torch.inference_mode():
        for batch in sorted_batches(rows, arguments.budget):
            ids = esm2.padded([rows[i] for i in batch], pad)
            mask = (ids != pad).long()
            states = model(input_ids=ids, attention_mask=mask).last_hidden_state
            vectors[batch] = means(states, mask, *special).numpy()
    save(arguments.out, records, vectors)
    return loaded, time.perf_counter()


def fair_esm(arguments) -> tuple[float, float]:
    """What fair-esm's extraction script does (`--include mean`), by the same calls: its batches under toks_per_batch
    from a DataLoader with two workers, the whole forward pass, and a `.pt` a sequence."""
    import torch
    from esm import FastaBatchedDataset

    torch.set_num_threads(arguments.threads)
    model = esm2.load_fair_esm(arguments.model)
    loaded = time.perf_counter()

    data = FastaBatchedDataset.from_file(arguments.fasta)
    loader = torch.utils.data.DataLoader(
        data,
        batch_sampler=data.get_batch_indices(arguments.budget, extra_toks_per_seq=1),
        collate_fn=model.alphabet.get_batch_converter(1022),
        num_workers=2,
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    last = model.num_layers
    name = lambda label: arguments.out / (label.split()[0].replace("/", "_") + ".pt")  # noqa: E731
    with torch.no_grad():
        for labels, sequences, tokens in loader:
            states = model(tokens, repr_layers=[last])["representations"][last]
            for i, label in enumerate(labels):
                mean = states[i, 1 : len(sequences[i]) + 1].mean(0).clone()
                torch.save({"label": label, "mean_representations": {last: mean}}, name(label))
    done = time.perf_counter()

    records = esm2.read_fasta(arguments.fasta)
    vectors = [torch.load(name(header))["mean_representations"][last].numpy() for header, _ in records]
    save(arguments.out, records, np.stack(vectors))
    return loaded, done


def esm_cpp(arguments) -> tuple[float, float]:
    """esm-cpp in fp32, a sequence at a time: the one call of its Python interface that returns hidden states."""
    import esm_cpp as package

    assert package.Model.num_threads == arguments.threads, "OMP_NUM_THREADS sets its threads"
    model = package.Model.load_from_safetensors(str(arguments.model / "model.safetensors"))
    loaded = time.perf_counter()

    records = esm2.read_fasta(arguments.fasta)
    vectors = np.empty((len(records), model.config.hidden_size), np.float32)
    for i, (_, sequence) in enumerate(records):
        _, states = model.forward_with_hidden_states(np.asarray(esm2.token_ids(sequence), np.int32))
        vectors[i] = states[-1][1:-1].mean(0)
    save(arguments.out, records, vectors)
    return loaded, time.perf_counter()


def dnabert2(arguments) -> tuple[float, float]:
    """DNABERT-2 as transformers would run it (dnabert2.py), with the `tokenizers` library: sorted by length, longest
    first, padded batches under a token budget."""
    import torch
    from dnabert2 import Dnabert2
    from tokenizers import Tokenizer

    torch.set_num_threads(arguments.threads)
    model = Dnabert2.load(arguments.model)
    tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    pad = tokenizer.token_to_id("[PAD]")
    loaded = time.perf_counter()

    records = esm2.read_fasta(arguments.fasta)
    rows = [encoded.ids for encoded in tokenizer.encode_batch([sequence.upper() for _, sequence in records])]
    vectors = np.empty((len(rows), model.hidden), np.float32)
    with torch.inference_mode():
        for batch in sorted_batches(rows, arguments.budget):
            lengths = torch.tensor([len(rows[i]) for i in batch])
            ids = torch.full((len(batch), int(lengths.max())), pad)
            for row, i in enumerate(batch):
                ids[row, : len(rows[i])] = torch.tensor(rows[i])
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
            vectors[batch] = means(model(ids, mask), mask).numpy()
    save(arguments.out, records, vectors)
    return loaded, time.perf_counter()


PEERS = {"transformers": transformers, "fair-esm": fair_esm, "esm-cpp": esm_cpp, "dnabert2": dnabert2}
PEERS |= {f"transformers-{family}": partial(transformers, family=family) for family in ("esmc", "esm1b", "nt", "protbert", "prott5")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=list(PEERS))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--fasta", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=int, default=0, help="tokens per batch")
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    loaded, done = PEERS[arguments.peer](arguments)
    # Of this program alone: what wait4 tells counts the parent too, whose memory a child holds until it is another program.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 1024
    print(json.dumps({"load_seconds": loaded - START, "seconds": done - loaded, "peak_mib": peak}))


if __name__ == "__main__":
    main()
