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


fastas = paths(snakemake.input.get("fasta", snakemake.input[:1]))
embeddings = paths(snakemake.output.get("embeddings", snakemake.output[:1]))
options = snakemake.params.get("options") or [{} for _ in fastas]
for name, values in [("output `embeddings`", embeddings), ("param `options`", options)]:
    if len(values) != len(fastas):
        raise ValueError(
            f"{len(fastas)} input files need as many in the {name}, which has {len(values)}"
        )

formats = {Path(path).suffix.lstrip(".") for path in embeddings}
if len(formats) != 1:
    raise ValueError(
        f"the embeddings of one job have one format, not {sorted(formats)}"
    )
output_format = formats.pop()
if output_format == "npy":
    raise ValueError("npy is three files a sample: take npz")

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
kept = snakemake.params.get("cache_dir", "")
cache_dir = ""
if kept:
    kept = Path(kept) / unique
    cache_dir = f"--cache-dir {shlex.quote(str(kept))}"

# The stems where each is another one; names in the output's provenance are then those of the files.
stems = [Path(path).stem for path in embeddings]
if len(set(stems)) != len(stems):
    stems = [f"{number:06}_{stem}" for number, stem in enumerate(stems)]
files = [
    {"sample": stem, "fasta": str(Path(fasta).absolute()), **own}
    for stem, fasta, own in zip(stems, fastas, options)
]
manifest = work / "manifest.yaml"
# JSON is YAML.
manifest.write_text(json.dumps({**head, "files": files}, indent=1))

shell(
    "seqembed run {manifest:q}"
    " --out {work:q}"
    " --threads {snakemake.threads}"
    " {device}"
    " {cache_dir}"
    " {extra}"
    " {log}"
)

for stem, path in zip(stems, embeddings):
    shutil.move(work / f"{stem}.{output_format}", path)
if snakemake.output.get("report"):
    shutil.move(work / "report.json", snakemake.output.report)
shutil.rmtree(work)
if kept:
    shutil.rmtree(kept, ignore_errors=True)
