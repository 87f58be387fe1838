"""Prints the licences of all crates that are linked into the executable, for archives and wheels: python3 scripts/licences.py [TARGET] > LICENSE-THIRDPARTY

The crates come from `cargo metadata`, without those that only build or test, and their texts from the crates themselves. A crate without a text
is listed with the name of its licence.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = ("seqembed", "seqembed-onnx")
TEXT = re.compile(r"(licen[cs]e|copying|notice|unlicense)", re.IGNORECASE)


def metadata(target):
    """`cargo metadata` for a target, such as x86_64-unknown-linux-gnu."""
    command = ["cargo", "metadata", "--format-version=1", "--locked"]
    if target:
        command.append(f"--filter-platform={target}")
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def linked(data):
    """The packages that the executable is linked from, in the order of their names."""
    nodes = {node["id"]: node for node in data["resolve"]["nodes"]}
    packages = {package["id"]: package for package in data["packages"]}
    waiting = [identity for identity, package in packages.items() if package["name"] == "seqembed"]
    seen = set()
    while waiting:
        identity = waiting.pop()
        if identity in seen:
            continue
        seen.add(identity)
        # Procedural macros run in the compiler and are not linked, nor is what they depend on.
        if any("proc-macro" in target["kind"] for target in packages[identity]["targets"]):
            continue
        for dependency in nodes[identity]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                waiting.append(dependency["pkg"])
    found = [packages[identity] for identity in seen if packages[identity]["name"] not in OURS]
    return sorted(found, key=lambda package: (package["name"], package["version"]))


def texts(package):
    """The licence files of a package, also of the C libraries in it: (path in the package, text)."""
    folder = Path(package["manifest_path"]).parent
    for path in sorted(folder.rglob("*")):
        if path.is_file() and TEXT.match(path.name) and path.suffix not in (".rs", ".toml", ".py", ".h", ".c", ".sh"):
            yield path.relative_to(folder), path.read_text(encoding="utf-8", errors="replace").strip()


def main():
    """Prints the list of crates, then each text once with the crates that it is from."""
    packages = linked(metadata(sys.argv[1] if len(sys.argv) > 1 else None))
    print(f"The executable seqembed is linked from seqembed, Rust's standard library and these {len(packages)} crates:\n")
    sources = {}
    for package in packages:
        print(f"{package['name']} {package['version']}: {package['license'] or 'see its text below'}")
        for path, text in texts(package):
            sources.setdefault(text, []).append(f"{package['name']} {package['version']}, {path}")
    for text, names in sources.items():
        print(f"\n{'=' * 80}\n" + "\n".join(names) + f"\n{'-' * 80}\n\n{text}")


if __name__ == "__main__":
    main()
