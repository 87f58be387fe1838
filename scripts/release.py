"""Versions and notes of a release (RELEASING.md).

    python3 scripts/release.py check [TAG]    # all files have the version of Cargo.toml; with a tag (v1.2.3), it is that of the tag and
                                              # the changelog has its section
    python3 scripts/release.py set VERSION    # writes a new version into all files, and dates the changelog's section "Unreleased"
    python3 scripts/release.py notes VERSION  # prints the section of the changelog
"""

import argparse
import datetime
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

VERSION = r"\d+\.\d+\.\d+(?:-[a-z]+\.?\d+)?"

# Where the version of seqembed is written: files, and what is around it (<VERSION>) there. Each
# must occur.
PLACES = [
    ("Cargo.toml", r'(?m)^version = "<VERSION>"'),
    ("Cargo.toml", r'seqembed-onnx = \{ version = "<VERSION>"'),
    ("onnx/Cargo.toml", r'(?m)^version = "<VERSION>"'),
    ("Cargo.lock", r'name = "seqembed(?:-onnx)?"\nversion = "<VERSION>"'),
    ("fuzz/Cargo.lock", r'name = "seqembed(?:-onnx)?"\nversion = "<VERSION>"'),
    ("CITATION.cff", r"(?m)^version: <VERSION>"),
    ("conda/recipe/recipe.yaml", r'version: "<VERSION>"'),
    ("conda/bioconda/meta.yaml", r'version = "<VERSION>"'),
    ("galaxy/macros.xml", r'"@TOOL_VERSION@"><VERSION><'),
    ("nextflow/README.md", r"seqembed:<VERSION>"),
    ("nextflow/conf/environment.yml", r"seqembed=<VERSION>"),
    ("nextflow/conf/environment.gpu.yml", r"seqembed=<VERSION>"),
    ("nextflow/modules/seqembed/Dockerfile", r'ARG VERSION="<VERSION>"'),
    ("nextflow/modules/seqembed/export/main.nf", r"seqembed:<VERSION>"),
    ("nextflow/modules/seqembed/run/main.nf", r"seqembed:<VERSION>"),
    ("nextflow/modules/seqembed/export/tests/main.nf.test.snap", r'"seqembed",\s*"<VERSION>"'),
    ("nextflow/modules/seqembed/run/tests/main.nf.test.snap", r'"seqembed",\s*"<VERSION>"'),
    ("nextflow/nextflow.config", r"seqembed:<VERSION>"),
    ("nextflow/nextflow.config", r"version         = '<VERSION>'"),
    ("nextflow/nextflow_schema.json", r"seqembed:<VERSION>"),
    ("tests/it/nextflow.rs", r"seqembed:<VERSION>"),
]

# Wrappers of Snakemake pin the major and minor version.
SHORT_PLACES = [
    ("snakemake/wrapper/environment.yaml", r"seqembed =(\d+\.\d+)"),
]


def places():
    """(path, pattern, shorten) of each place, where `shorten` makes what stands there of a version."""
    for path, pattern in PLACES:
        yield ROOT / path, re.compile(pattern.replace("<VERSION>", f"({VERSION})")), lambda version: version
    for path, pattern in SHORT_PLACES:
        yield ROOT / path, re.compile(pattern), lambda version: ".".join(version.split(".")[:2])


def current():
    """The version in Cargo.toml."""
    return re.search(rf'(?m)^version = "({VERSION})"', (ROOT / "Cargo.toml").read_text())[1]


def section(version):
    """The lines of the changelog below the heading of a version, or None."""
    parts = re.split(r"(?m)^## ", (ROOT / "CHANGELOG.md").read_text())
    for part in parts[1:]:
        heading, _, text = part.partition("\n")
        if heading.startswith(f"[{version}]"):
            return text.strip()
    return None


def check(tag):
    """The mistakes in the versions, one a line."""
    version = current()
    for path, pattern, shorten in places():
        name = path.relative_to(ROOT)
        found = {match[1] for match in pattern.finditer(path.read_text())}
        if found != {shorten(version)}:
            yield f"{name}: {' and '.join(sorted(found)) or 'no version'} instead of {shorten(version)} (`{pattern.pattern}`)"
    if tag and tag != f"v{version}":
        yield f"the tag is {tag}, but the version in Cargo.toml is {version}"
    if tag and not section(version):
        yield f"CHANGELOG.md: no section [{version}]"


def set_version(version):
    """Writes a version into all files, and the date into the changelog."""
    if not re.fullmatch(VERSION, version):
        sys.exit(f"error: {version} is not a version (such as 1.2.3)")
    for path, pattern, shorten in places():
        text = path.read_text()
        new = pattern.sub(lambda match: match[0].replace(match[1], shorten(version)), text)
        path.write_text(new)
    changelog = ROOT / "CHANGELOG.md"
    text = changelog.read_text()
    if section(version) is None:
        day = datetime.date.today().isoformat()
        changelog.write_text(text.replace("## [Unreleased]\n", f"## [Unreleased]\n\n## [{version}] - {day}\n", 1))


def main():
    """Runs a subcommand."""
    parser = argparse.ArgumentParser(description="Versions and notes of a release")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="compare all files with Cargo.toml").add_argument("tag", nargs="?")
    commands.add_parser("set", help="write a new version into all files").add_argument("version")
    commands.add_parser("notes", help="print the changelog's section").add_argument("version")
    arguments = parser.parse_args()
    if arguments.command == "set":
        set_version(arguments.version)
    elif arguments.command == "notes":
        text = section(arguments.version)
        if not text:
            sys.exit(f"error: CHANGELOG.md: no section [{arguments.version}]")
        print(text)
    else:
        mistakes = list(check(arguments.tag))
        for mistake in mistakes:
            print(f"error: {mistake}", file=sys.stderr)
        sys.exit(1 if mistakes else 0)


if __name__ == "__main__":
    main()
