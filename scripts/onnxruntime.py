"""Unpacks ONNX Runtime's library from its Python wheel into a folder, with nothing but Python and pip.

    python3 scripts/onnxruntime.py FOLDER REQUIREMENT

FOLDER gets libonnxruntime and its licences; nothing is done if it holds REQUIREMENT already. The library does not depend on
Python, so any version's wheel will do.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


def fail(message):
    sys.exit(f"error: {message}")


def download(requirement, folder):
    """The wheel's path. A Python that is too new for a wheel of its own takes another one's."""
    pip = [sys.executable, "-m", "pip"]
    if subprocess.run([*pip, "--version"], capture_output=True).returncode != 0:
        fail(f"{sys.executable} has no pip: install it (Debian and Ubuntu: apt install python3-pip)")
    command = [*pip, "download", "--no-deps", "--only-binary=:all:", "--quiet", "--dest", str(folder), requirement]
    said = ""
    for other in [], ["--python-version", "3.13"], ["--python-version", "3.12"]:
        done = subprocess.run([*command, *other], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        wheels = list(folder.glob("*.whl"))
        if done.returncode == 0 and wheels:
            return wheels[0]
        said = said or done.stderr.strip()
    fail(
        f"pip can't download {requirement}:\n{said}\n"
        "Without a network: install the wheel `onnxruntime` any other way, and set ORT_DYLIB_PATH to its folder onnxruntime/capi."
    )


def unpack(wheel, folder):
    """The library, without links to it, and the licences."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            path = Path(name)
            library = path.parent.name == "capi" and path.name.startswith(("libonnxruntime", "onnxruntime.dll"))
            if library or path.name in ("LICENSE", "ThirdPartyNotices.txt") and path.parts[0] == "onnxruntime":
                with archive.open(name) as source, open(folder / path.name, "wb") as target:
                    shutil.copyfileobj(source, target)
    if not any(folder.glob("*onnxruntime*")):
        fail(f"{wheel.name} holds no ONNX Runtime library")


def main():
    if len(sys.argv) != 3:
        fail(__doc__)
    folder, requirement = Path(sys.argv[1]), sys.argv[2]
    stamp = folder / "requirement.txt"
    if stamp.exists() and stamp.read_text() == requirement:
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    print(f"unpacking {requirement} into {folder}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        wheel = download(requirement, Path(work))
        unpacked = Path(work) / "unpacked"
        unpacked.mkdir()
        unpack(wheel, unpacked)
        (unpacked / "wheel.txt").write_text(wheel.name + "\n")
        (unpacked / "requirement.txt").write_text(requirement)
        shutil.rmtree(folder, ignore_errors=True)
        unpacked.rename(folder)


main()
