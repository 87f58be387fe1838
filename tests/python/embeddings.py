# Reads a file of embeddings into the same names, as a user would: each format by its own ecosystem's reader.
# Stands behind torch_file.py.
import json, sys
import numpy as np

path = sys.argv[1]


def rows_of(embeddings, offsets):
    if offsets is None:
        return embeddings
    return [embeddings[a:b] for a, b in zip(offsets, offsets[1:])]


if path.endswith(".npz"):
    z = np.load(path, allow_pickle=False)
    ids, headers, status = (z[k].tolist() for k in ("ids", "headers", "status"))
    lengths, embeddings = z["lengths"], z["embeddings"]
    provenance = json.loads(str(z["provenance"]))
    rows = rows_of(embeddings, z["offsets"] if "offsets" in z else None)
elif path.endswith(".npy"):
    import pandas as pd

    embeddings = np.load(path, mmap_mode="r")
    t = pd.read_csv(path[:-3] + "tsv", sep="\t", keep_default_na=False, dtype={"ids": str, "headers": str, "status": str})
    assert t.columns.tolist() in (
        ["ids", "lengths", "status", "headers"],
        ["ids", "lengths", "status", "start", "end", "headers"],
    ), t.columns
    ids, headers, status = (t[k].tolist() for k in ("ids", "headers", "status"))
    lengths = t["lengths"].to_numpy().astype(np.int64)
    provenance = json.load(open(path[:-3] + "provenance.json"))
    rows = [embeddings[a:b] for a, b in zip(t["start"], t["end"])] if "start" in t else embeddings
elif path.endswith(".h5"):
    import h5py

    f = h5py.File(path)
    provenance = dict(f.attrs)
    if "hidden" not in f.attrs:
        assert sorted(f) == ["embeddings", "headers", "ids", "lengths", "status"]
        ids, headers, status = (f[k].asstr()[:].tolist() for k in ("ids", "headers", "status"))
        lengths, embeddings = f["lengths"][:], f["embeddings"][:]
        rows = embeddings
    else:
        width = int(provenance.pop("hidden"))
        records = sorted(f.values(), key=lambda d: d.attrs["row"])
        assert [d.attrs["row"] for d in records] == list(range(len(records)))
        ids, headers, status = ([d.attrs[k] for d in records] for k in ("id", "header", "status"))
        lengths = np.array([d.attrs["length"] for d in records], np.int64)
        rows = [d[:] for d in records]
        embeddings = np.concatenate(rows) if rows else np.zeros((0, width), np.float32)
        names = [d.name[1:] for d in records]
elif path.endswith(".safetensors"):
    from safetensors import safe_open

    f = safe_open(path, "numpy")
    provenance = f.metadata() or {}
    lengths, embeddings = f.get_tensor("lengths"), f.get_tensor("embeddings")
    ids, headers, status = (
        f.get_tensor(k).tobytes().decode().split("\n")[: len(lengths)] for k in ("ids", "headers", "status")
    )
    rows = rows_of(embeddings, f.get_tensor("offsets") if "offsets" in f.keys() else None)
elif path.endswith(".pt"):
    t = load_pt(path)
    ids, headers, status, provenance = (t[k] for k in ("ids", "headers", "status", "provenance"))
    lengths, embeddings = t["lengths"], t["data"]
    rows = rows_of(embeddings, t.get("offsets"))
else:
    import pyarrow.parquet as pq

    t = pq.read_table(path)
    assert t.column_names == ["ids", "headers", "lengths", "status", "embeddings"], t.column_names
    ids, headers, status = (t[k].to_pylist() for k in ("ids", "headers", "status"))
    lengths = t["lengths"].to_numpy()
    column = t["embeddings"].combine_chunks()
    if str(column.type).startswith("fixed_size_list"):
        embeddings = column.flatten().to_numpy().reshape(-1, column.type.list_size)
        rows = embeddings
    else:
        width = column.type.value_type.list_size
        embeddings = column.flatten().flatten().to_numpy().reshape(-1, width)
        rows = [embeddings[a.as_py() : b.as_py()] for a, b in zip(column.offsets, column.offsets[1:])]
    provenance = {k.decode()[9:]: v.decode() for k, v in t.schema.metadata.items() if k.startswith(b"seqembed.")}
assert lengths.dtype == np.int64, lengths.dtype
