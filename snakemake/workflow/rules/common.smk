# Reads the configuration and the sample sheet, and splits the files into groups; each group becomes one job.
import csv
import difflib
import hashlib
import io
import json
import os
import re
import sys
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator
from snakemake.exceptions import WorkflowError
from snakemake.utils import validate


def read_schema():
    """The schema of the columns of the sample sheet."""
    path = Path(workflow.basedir) / "schemas/samples.schema.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def sheet_rows(path):
    """(line, cells) of each row that is not empty. Spreadsheets write byte order marks, and empty rows and columns."""
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise WorkflowError(
            f"{path}:{line}: the text is not valid UTF-8: save the sheet as UTF-8"
        )
    delimiter = "," if str(path).lower().endswith(".csv") else "\t"
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    line = 1
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise WorkflowError(f"{path}:{line}: {error}")


def read_columns(where, header, known):
    """The names of the columns, and the mistakes in them."""
    columns = [name.replace("-", "_") for name in header]
    mistakes = []
    for name in filter(None, columns):
        if name not in known:
            meant = difflib.get_close_matches(name.lower(), known, 1)
            hint = (
                f"did you mean `{meant[0]}`?"
                if meant
                else f"the known ones are {', '.join(known)}"
            )
            mistakes.append(f"{where}: unknown column `{name}`: {hint}")
        elif columns.count(name) > 1:
            mistakes.append(f"{where}: the column `{name}` occurs twice")
    for name in ("sample", "fasta"):
        if name not in columns:
            mistakes.append(
                f"{where}: the column `{name}` is missing (columns are separated by tabs; in a .csv, by commas)"
            )
    return columns, list(dict.fromkeys(mistakes))


def as_type(text, about):
    """The value of a cell, converted to the type in the schema if possible."""
    if about.get("type") == "integer" and re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    if about.get("type") == "boolean" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    return text.lower() if "enum" in about else text


def row_mistakes(row, schema):
    """The mistakes in a row according to the schema."""
    properties = schema["properties"]
    typed = {key: as_type(text, properties[key]) for key, text in row.items()}
    for error in Draft202012Validator(schema).iter_errors(typed):
        key = error.path[0] if error.path else None
        about = properties.get(key, {})
        if key is None:
            yield error.message
        elif "enum" in about:
            yield f"invalid value `{row[key]}` for `{key}`: expected one of {', '.join(about['enum'])}"
        else:
            yield f"invalid value {row[key]!r} for `{key}`: {about.get('errorMessage', error.message)}"


def read_samples(path):
    """The rows of the sample sheet, without empty cells. All mistakes are reported together."""
    schema = read_schema()
    rows = sheet_rows(path)
    line, header = next(rows, (1, []))
    columns, mistakes = read_columns(f"{path}:{line}", header, [*schema["properties"]])
    if mistakes:
        raise WorkflowError("\n".join(mistakes))
    samples = []
    lines = {}
    for line, cells in rows:
        where = f"{path}:{line}"
        cells += [""] * (len(columns) - len(cells))
        for number, cell in enumerate(cells):
            if cell and (number >= len(columns) or not columns[number]):
                mistakes.append(
                    f"{where}: `{cell}` is in column {number + 1}, which has no name in the first row"
                )
        row = {name: cell for name, cell in zip(columns, cells) if name and cell}
        mistakes += [f"{where}: {mistake}" for mistake in row_mistakes(row, schema)]
        sample = row.get("sample")
        if sample in lines:
            mistakes.append(
                f"{where}: the sample name `{sample}` is already used on line {lines[sample]}"
            )
        elif sample is not None:
            lines[sample] = line
        samples.append(row)
    if not samples:
        mistakes.append(f"{path}: the sample sheet has no rows below the first")
    if len(mistakes) > 1:
        mistakes.append(f"{len(mistakes)} mistakes found; nothing was run")
    if mistakes:
        raise WorkflowError("\n".join(mistakes))
    return samples


def group_samples(samples, files_per_job):
    """The rows of each job: those with the same `group`, or up to `files_per_job` consecutive rows with the same model."""
    groups = {}
    by_model = {}
    for row in samples:
        if row.get("group") is not None:
            groups.setdefault(row["group"], []).append(row)
        else:
            by_model.setdefault(row.get("model", config["model"]), []).append(row)
    for model, rows in by_model.items():
        # The name is used for a rule and for files.
        stem = re.sub(r"[^A-Za-z0-9_.-]", "_", Path(model).name)
        while rows:
            count = length_of_group(rows, files_per_job)
            name = f"{stem}_{hash_of(rows[0]['sample'])[:12]}"
            groups.setdefault(name, []).extend(rows[:count])
            rows = rows[count:]
    places = {row["sample"]: place for place, row in enumerate(samples)}
    in_order = sorted(groups.items(), key=lambda group: places[group[1][0]["sample"]])
    return dict(in_order)


def length_of_group(rows, most):
    """
    How many of these rows make the next job.

    It is between half of `most` and `most`: the job ends before the row whose sample name has the smallest hash. So a row that is added
    or removed changes its own job, and sometimes the next ones, but not all jobs behind it.
    """
    if len(rows) <= most:
        return len(rows)
    ends = range((most + 1) // 2, most + 1)
    return min(ends, key=lambda count: hash_of(rows[count]["sample"]))


def hash_of(sample):
    """A hash that is the same in every process."""
    return hashlib.sha256(sample.encode()).hexdigest()


def own_options(row):
    """The sample name and the options of seqembed in a row, by column."""
    return {key: value for key, value in row.items() if key not in ("fasta", "group")}


def write_manifest(path, model, fastas, options):
    """Writes the manifest of a job. Paths in it are absolute, as it is in another folder."""
    known = Path(model).exists()
    files = [
        {**own, "fasta": str(Path(fasta).absolute())}
        for own, fasta in zip(options, fastas)
    ]
    content = {
        "model": str(Path(model).absolute()) if known else model,
        "files": files,
    }
    # JSON is YAML.
    Path(path).write_text(json.dumps(content, indent=1), encoding="utf-8")


def device_of(gpus):
    """The device of a job: it uses only the GPUs it requested, even if the node has more."""
    return f"cuda:{','.join(map(str, range(gpus)))}" if gpus else "cpu"


def write_table(path, columns, rows):
    """Writes a TSV; tabs and line breaks in cells become spaces."""
    lines = ["\t".join(columns)]
    for row in rows:
        cells = ["" if row.get(name) is None else str(row[name]) for name in columns]
        lines.append("\t".join(" ".join(cell.split()) for cell in cells))
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def collect_jobs(jobs, reports, output):
    """Links all embeddings into one folder, and writes a table of all samples and one of the failed ones."""
    embeddings = Path(output.embeddings)
    embeddings.mkdir(parents=True)
    for job in jobs:
        for path in Path(job).iterdir():
            if path.is_file() and not path.name.startswith("."):
                try:
                    os.link(path, embeddings / path.name)
                except OSError:
                    target = os.path.relpath(path, embeddings)
                    (embeddings / path.name).symlink_to(target)
    entries = []
    for path in map(Path, reports):
        for entry in json.loads(path.read_text(encoding="utf-8"))["files"]:
            made = entry["output"] and str(embeddings / Path(entry["output"]).name)
            entries.append({**entry, "group": path.stem, "output": made})
    counts = "records tokens windowed truncated replaced gaps skipped".split()
    columns = ["sample", "group", "model", *counts, "source", "output", "error"]
    write_table(output.samples, columns, entries)
    failed = [entry for entry in entries if entry["error"] or entry["failed_records"]]
    for entry in failed:
        number = entry["failed_records"]
        noun = "1 sequence" if number == 1 else f"{number} sequences"
        entry["error"] = (
            entry["error"]
            or f"{noun} failed: see the column `status` of {entry['output']}"
        )
    write_table(output.failed, ["sample", "source", "error"], failed)


def check_failed(table, allow_failed):
    """Ends the workflow with an error if files failed, unless `allow_failed` is set."""
    with open(table, newline="", encoding="utf-8") as file:
        failed = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not failed:
        return
    number = "1 file" if len(failed) == 1 else f"{len(failed)} files"
    lines = [
        f"{number} failed. The results of all other files are in results/embeddings; {table} lists the failures:"
    ]
    lines += [f"  {row['sample']}: {row['error']}" for row in failed[:10]]
    if len(failed) > 10:
        lines.append(f"  and {len(failed) - 10} more")
    if not allow_failed:
        lines.append(
            "Correct or remove the failed files and run the workflow again, or accept the failures with `allow_failed: true` in the configuration"
        )
        raise WorkflowError("\n".join(lines))
    # This runs in the process of the rule, whose logger output is not shown.
    print("\n".join(lines), file=sys.stderr)


validate(config, schema="../schemas/config.schema.yaml")
GROUPS = group_samples(read_samples(config["samples"]), config["files_per_job"])
# The wrapper in this repository. In a copy of only the workflow, use "vX.Y.Z/bio/seqembed", of the Snakemake wrapper repository.
WRAPPER = config.get("wrapper") or f"file:{Path(workflow.basedir).parent / 'wrapper'}"
