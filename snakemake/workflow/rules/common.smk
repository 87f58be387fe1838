# Reads the configuration and the sample sheet, and puts the files into groups, each of which is one job.
import csv
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import validate


def read_samples(path):
    """The rows of the sample sheet, each without its empty cells."""
    with open(path, newline="") as sheet:
        rows = list(csv.DictReader(sheet, delimiter="\t"))
    rows = [{key: cell for key, cell in row.items() if cell} for row in rows]
    seen = set()
    for row in rows:
        validate(row, schema="../schemas/samples.schema.yaml")
        if row["sample"] in seen:
            raise WorkflowError(
                f"{path}: the sample {row['sample']} stands there twice"
            )
        seen.add(row["sample"])
    return rows


def group_samples(samples, files_per_job):
    """The rows of each job: those of one `group`, or the next `files_per_job` of those that have the same model."""
    groups = {}
    counts = {}
    for row in samples:
        name = row.get("group")
        if name is None:
            model = row.get("model", config["model"])
            number = counts.get(model, 0)
            counts[model] = number + 1
            name = f"{Path(model).name}_{number // files_per_job:04}"
        groups.setdefault(name, []).append(row)
    return groups


def own_options(row):
    """What the sheet says about a file beside where it is: options of seqembed, in the columns' names."""
    return {
        key: value
        for key, value in row.items()
        if key not in ("sample", "fasta", "group")
    }


validate(config, schema="../schemas/config.schema.yaml")
GROUPS = group_samples(read_samples(config["samples"]), config["files_per_job"])
OUTPUTS = [
    f"{row['sample']}.{config['format']}" for rows in GROUPS.values() for row in rows
]
# Of this repository. In a copy of the workflow alone: "vX.Y.Z/bio/seqembed", of the Snakemake wrapper repository.
WRAPPER = config.get("wrapper") or f"file:{Path(workflow.basedir).parent / 'wrapper'}"
