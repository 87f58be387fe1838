"""Snakemake wrapper for seqembed: embeds many sequence files with one load of the model."""

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
    """The name of a file without its extensions."""
    path = Path(fasta)
    return (path.with_suffix("") if path.suffix[1:] in COMPRESSIONS else path).stem


fastas = paths(snakemake.input.get("fasta", snakemake.input[:1]))
embeddings = paths(snakemake.output.get("embeddings", snakemake.output[:1]))
options = snakemake.params.get("options") or [{} for _ in fastas]
# The output is either a folder with one file per input, or the files themselves.
folder = len(embeddings) == 1 and Path(embeddings[0]).suffix[1:] not in FORMATS
counted = [("param `options`", options)]
if not folder:
    counted.append(("output `embeddings`", embeddings))
for name, values in counted:
    if len(values) != len(fastas):
        raise ValueError(
            f"there are {len(fastas)} input files, but {len(values)} entries in the {name}"
        )

allow_failed = snakemake.params.get("allow_failed", False)
if allow_failed and not folder:
    raise ValueError(
        "`allow_failed` needs a folder as the output, because Snakemake deletes all outputs of a job if one is missing"
    )

formats = (
    {snakemake.params.get("format", "parquet")}
    if folder
    else {Path(path).suffix.lstrip(".") for path in embeddings}
)
if len(formats) != 1:
    raise ValueError(
        f"all embeddings of a job must have the same format, not {sorted(formats)}"
    )
output_format = formats.pop()
if output_format == "npy" and not folder:
    raise ValueError(
        "npy has three files per sample: use npz, or a folder as the output"
    )

# These options go to the top level of the manifest, because the command line would override the options of single files.
head = {"format": output_format}
model = snakemake.input.get("model") or snakemake.params.get("model")
if model:
    # A path is relative to the working directory, not to the manifest.
    head["model"] = str(Path(model).absolute()) if Path(model).exists() else model

# A job uses only the GPUs it requested, even if the node has more.
gpus = int(snakemake.resources.get("gpu", 0))
device = f"cuda:{','.join(map(str, range(gpus)))}" if gpus else "cpu"
device = "" if "--device" in extra else f"--device {device}"

# The work folder is next to the outputs, so that they can be moved by renaming, and is the same for each attempt, so that nothing is left
# behind. The cache is likewise a separate folder for each job.
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

# Samples are named after the files if the names are unique, so that the provenance of the outputs has the names of the files.
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

# Exit code 3: finished, but some files failed; the report lists them.
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
# If files failed, the next run computes only these, and takes the others from the cache.
if kept and not totals["failed_files"] + totals["failed_records"]:
    shutil.rmtree(kept, ignore_errors=True)

# The log has the paths in the work folder: replace those of files that were moved. The others were deleted with the folder.
for path in map(Path, snakemake.log[:1]):
    text = path.read_text(errors="surrogateescape")
    for made, now in moved.items():
        text = text.replace(str(made), str(now))
    if not folder:
        text = text.replace(str(report), "(not kept)")
        text = text.replace(str(work), str(Path(embeddings[0]).parent))
    path.write_text(text, errors="surrogateescape")
