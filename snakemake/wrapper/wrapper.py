"""Snakemake wrapper for seqembed: many sequence files, one load of the model."""

__author__ = "The seqembed authors"
__copyright__ = "Copyright 2026, The seqembed authors"
__license__ = "MIT"

import hashlib
import json
import shlex
import shutil
from pathlib import Path

from snakemake.shell import shell

extra = snakemake.params.get("extra", "")
log = snakemake.log_fmt_shell(stdout=True, stderr=True)


def paths(value):
    """One path or a list of them, as a list."""
    return [str(value)] if isinstance(value, str) else [str(path) for path in value]


FORMATS = ("parquet", "npz", "npy", "h5", "safetensors", "pt")
COMPRESSIONS = ("gz", "bgz", "bgzf", "bz2", "xz", "zst", "zstd", "gzip")


def sample_of(fasta):
    """A file's name without its suffixes."""
    path = Path(fasta)
    return (path.with_suffix("") if path.suffix[1:] in COMPRESSIONS else path).stem


fastas = paths(snakemake.input.get("fasta", snakemake.input[:1]))
embeddings = paths(snakemake.output.get("embeddings", snakemake.output[:1]))
options = snakemake.params.get("options") or [{} for _ in fastas]
# A folder, which holds a file for each input; or the files themselves.
folder = len(embeddings) == 1 and Path(embeddings[0]).suffix[1:] not in FORMATS
counted = [("param `options`", options)]
if not folder:
    counted.append(("output `embeddings`", embeddings))
for name, values in counted:
    if len(values) != len(fastas):
        raise ValueError(
            f"{len(fastas)} input files need as many in the {name}, which has {len(values)}"
        )

allow_failed = snakemake.params.get("allow_failed", False)
if allow_failed and not folder:
    raise ValueError(
        "`allow_failed` needs a folder as the output: Snakemake deletes all outputs of a job where one is missing"
    )

formats = (
    {snakemake.params.get("format", "parquet")}
    if folder
    else {Path(path).suffix.lstrip(".") for path in embeddings}
)
if len(formats) != 1:
    raise ValueError(
        f"the embeddings of one job have one format, not {sorted(formats)}"
    )
output_format = formats.pop()
if output_format == "npy" and not folder:
    raise ValueError("npy is three files a sample: take npz, or a folder as the output")

# In the manifest's head, and not on the command line: there it would go before a file's own.
head = {"format": output_format}
model = snakemake.input.get("model") or snakemake.params.get("model")
if model:
    # A path is meant from here, not from the manifest.
    head["model"] = str(Path(model).absolute()) if Path(model).exists() else model

# A job computes on what it asked for, whatever else the node has.
gpus = int(snakemake.resources.get("gpu", 0))
device = f"cuda:{','.join(map(str, range(gpus)))}" if gpus else "cpu"
device = "" if "--device" in extra else f"--device {device}"

# Beside the outputs, so that they are moved by renaming; the same folder for each attempt, so that none leaves rubbish behind.
# Likewise for what is kept from one attempt to the next: a folder of its own for each job.
unique = hashlib.sha256("\n".join(embeddings).encode()).hexdigest()[:16]
work = Path(embeddings[0]).absolute().parent / f".seqembed-{unique}"
shutil.rmtree(work, ignore_errors=True)
work.mkdir(parents=True)
out = Path(embeddings[0]).absolute() if folder else work
kept = snakemake.params.get("cache_dir", "")
cache_dir = ""
if kept:
    kept = Path(kept) / unique
    cache_dir = f"--cache-dir {shlex.quote(str(kept))}"

# The stems where each is another one; names in the output's provenance are then those of the files.
stems = [sample_of(path) for path in fastas]
if not folder:
    stems = [Path(path).stem for path in embeddings]
if not folder and len(set(stems)) != len(stems):
    stems = [f"{number:06}_{stem}" for number, stem in enumerate(stems)]
files = [
    {"sample": stem, "fasta": str(Path(fasta).absolute()), **own}
    for stem, fasta, own in zip(stems, fastas, options)
]
manifest = work / "manifest.yaml"
# JSON is YAML.
manifest.write_text(json.dumps({**head, "files": files}, indent=1))

# 3: done, but for files that the report names.
allow = "|| [ $? -eq 3 ]" if allow_failed else ""
shell(
    "seqembed run {manifest:q}"
    " --out {out:q}"
    " --threads {snakemake.threads}"
    " {device}"
    " {cache_dir}"
    " {extra}"
    " {log}"
    " {allow}"
)

report = out / "report.json"
totals = json.loads(report.read_text())["totals"]
moved = {}
if snakemake.output.get("report"):
    moved[report] = snakemake.output.report
if not folder:
    for stem, path in zip(stems, embeddings):
        moved[work / f"{stem}.{output_format}"] = path
for made, path in moved.items():
    shutil.move(made, path)
shutil.rmtree(work)
shutil.rmtree(out / ".seqembed", ignore_errors=True)
# What failed is computed by the next run, which takes the rest from here.
if kept and not totals["failed_files"] + totals["failed_records"]:
    shutil.rmtree(kept, ignore_errors=True)

# The log tells of files where they were made: what moved is told where it is, and the rest is gone with its folder.
for path in map(Path, snakemake.log[:1]):
    text = path.read_text(errors="surrogateescape")
    for made, now in moved.items():
        text = text.replace(str(made), str(now))
    if not folder:
        text = text.replace(str(report), "(not kept)")
        text = text.replace(str(work), str(Path(embeddings[0]).parent))
    path.write_text(text, errors="surrogateescape")
