"""One run of one peer: a FASTA file on disk -> one mean vector a record on disk. Started by cpu.py, a process a run.

    python bench/peer.py transformers|fair-esm|esm-cpp --model PATH --fasta FILE --out FOLDER --budget N --threads N

Prints one line of JSON: seconds to import and load, and from there until the last file is on disk. Vectors that are not
written as one array in the timed part are collected afterwards, so that they can be compared.
"""

from __future__ import annotations

import argparse
import json
import time

START = time.perf_counter()

from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
from common import esm2  # noqa: E402


def save(folder: Path, records: list[tuple[str, str]], vectors: np.ndarray) -> None:
    """ids and vectors as npz."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "vectors.npz", ids=np.array([h.split()[0] for h, _ in records]), embeddings=vectors)


def transformers(arguments) -> tuple[float, float]:
    """EsmModel with SDPA: sorted by length, longest first, padded batches under a token budget."""
    import torch

    torch.set_num_threads(arguments.threads)
    model = esm2.load_transformers(arguments.model)
    loaded = time.perf_counter()

    records = esm2.read_fasta(arguments.fasta)
    rows = [esm2.token_ids(sequence) for _, sequence in records]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    batches, batch = [], []
    for i in order:  # the first of a batch is its longest
        if batch and len(rows[batch[0]]) * (len(batch) + 1) > arguments.budget:
            batches.append(batch)
            batch = []
        batch.append(i)
    batches.append(batch)
    vectors = np.empty((len(rows), model.config.hidden_size), np.float32)
    with torch.inference_mode():
        for batch in batches:
            ids = esm2.padded([rows[i] for i in batch])
            mask = (ids != esm2.PAD).long()
            states = model(input_ids=ids, attention_mask=mask).last_hidden_state
            lengths = mask.sum(1)
            residues = mask.clone()
            residues[:, 0] = 0
            residues[torch.arange(len(batch)), lengths - 1] = 0
            means = torch.einsum("bsh,bs->bh", states, residues.float()) / (lengths - 2)[:, None]
            vectors[batch] = means.numpy()
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=["transformers", "fair-esm", "esm-cpp"])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--fasta", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=int, default=0, help="tokens a batch")
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    run = {"transformers": transformers, "fair-esm": fair_esm, "esm-cpp": esm_cpp}[arguments.peer]
    loaded, done = run(arguments)
    print(json.dumps({"load_seconds": loaded - START, "seconds": done - loaded}))


if __name__ == "__main__":
    main()
