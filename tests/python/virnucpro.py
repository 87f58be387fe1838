# Checks an output folder of `seqembed virnucpro` against VirNucPro's rules, told here a second time: chunks, reading frames,
# file names, keys, types and order. Arguments: the contigs, the folder, the chunk's size, records a file, the truncation.
# Stands behind torch_file.py.
import glob, os, sys

contigs, out, size, per_file, truncation = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
stem = os.path.join(out, os.path.basename(contigs).split(".")[0])


def fasta(path):
    records = []
    for line in open(path):
        line = line.rstrip("\n")
        if line.startswith(">"):
            records.append((line[1:].split()[0] if line[1:].split() else "", []))
        else:
            records[-1][1].append(line)
    return [(name, "".join(lines)) for name, lines in records]


def chunks(length):
    n = -(-length // size)
    repeated = n * size - length
    low = repeated // n if n else 0
    need = repeated - low * (n - 1)
    steps = [low + 1] * need + [low] * (n - 1 - need) + [0]
    start = 0
    for i in range(n):
        yield i * size - start, i * size - start + size
        start += steps[i]


order = "TCAG"
amino = "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
code = {a + b + c: amino[16 * i + 4 * j + k] for i, a in enumerate(order) for j, b in enumerate(order) for k, c in enumerate(order)}
want_chunks, want = [], []
for name, sequence in fasta(contigs):
    for number, (start, end) in enumerate(chunks(len(sequence)), 1):
        chunk = sequence[start:end]
        want_chunks.append((f"{name}_chunk_{number}", chunk))
        plus = chunk.upper()
        minus = plus[::-1].translate(str.maketrans("ACGT", "TGCA"))
        for strand, letter in ((plus, "F"), (minus, "R")):
            for f in (1, 2, 3):
                codons = [strand[i : i + 3] for i in range(f - 1, len(strand) - 2, 3)]
                protein = "".join(code.get(codon, "") for codon in codons)
                if protein and "*" not in protein:
                    bases = strand[f - 1 : f + 3 * len(protein)]
                    want.append((f"{name}_chunk_{number}{letter}{f}", bases, protein))

assert fasta(f"{stem}_chunked{size}.fa") == want_chunks
assert all(len(line) <= 61 for line in open(f"{stem}_chunked{size}.fa") if line[0] != ">")
assert fasta(f"{stem}_identified_nucleotide.fa") == [(name, bases) for name, bases, _ in want]
assert fasta(f"{stem}_identified_protein.faa") == [(name, protein) for name, _, protein in want]
parts = [want[i : i + per_file] for i in range(0, len(want), per_file)]
assert len(glob.glob(f"{stem}_merged/*")) == len(parts) > 1
assert sorted(os.listdir(f"{stem}_protein")) == sorted(
    name for i in range(1, len(parts) + 1) for name in (f"output_{i}.fa", f"output_{i}_ESM.pt")
)
assert not glob.glob(f"{out}/*.safetensors"), "what stands between is gone"
for i, part in enumerate(parts, 1):
    ids = [name for name, _, _ in part]
    assert fasta(f"{stem}_nucleotide/output_{i}.fa") == [(name, bases) for name, bases, _ in part]
    assert fasta(f"{stem}_protein/output_{i}.fa") == [(name, protein) for name, _, protein in part]
    dna = load_pt(f"{stem}_nucleotide/output_{i}_DNABERT_S.pt")
    assert list(dna) == ["nucleotide", "data"] and dna["nucleotide"] == ids
    assert [list(item) for item in dna["data"]] == [["label", "mean_representation"]] * len(ids)
    assert [item["label"] for item in dna["data"]] == ids
    assert all(type(value) is float for item in dna["data"] for value in item["mean_representation"])
    esm = load_pt(f"{stem}_protein/output_{i}_ESM.pt")
    assert list(esm) == ["proteins", "data"]
    by = sorted(range(len(part)), key=lambda at: len(part[at][2])) if truncation == "vanilla" else list(range(len(part)))
    assert esm["proteins"] == [ids[at] for at in by]
    assert all(vector.dtype == np.float32 and vector.ndim == 1 for vector in esm["data"])
    merged = load_pt(f"{stem}_merged/output_{i}_merged.pt")
    assert list(merged) == ["ids", "data"] and merged["ids"] == ids
    protein = [None] * len(ids)
    for at, vector in zip(by, esm["data"]):
        protein[at] = vector
    left = np.array([item["mean_representation"] for item in dna["data"]], np.float32)
    assert merged["data"].dtype == np.float32
    assert (merged["data"] == np.concatenate([left, np.stack(protein)], axis=1)).all()
print(len(want), len(parts))
