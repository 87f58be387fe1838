#!/bin/sh
# Creates a virtual environment with the packages of a requirements file: scripts/python-env.sh FOLDER REQUIREMENTS
# Does nothing if they are already installed. On Debian, python3-venv is not needed, only pip.
set -eu
folder=$1
requirements=$2
python=${PYTHON:-python3}
stamp=$folder/requirements.txt

command -v "$python" >/dev/null || {
    echo "error: $python was not found: install Python 3 (Debian and Ubuntu: apt install python3 python3-pip)" >&2
    exit 1
}
if [ -x "$folder/bin/python" ] && cmp -s "$requirements" "$stamp" && "$folder/bin/python" -c '' 2>/dev/null; then
    exit 0
fi
"$python" -m pip --version >/dev/null 2>&1 || {
    echo "error: $python has no pip: install it (Debian and Ubuntu: apt install python3-pip)" >&2
    exit 1
}
echo "installing $requirements into $folder" >&2
rm -rf "$folder"
"$python" -m venv --without-pip "$folder" || {
    echo "error: $python cannot create a virtual environment (Debian and Ubuntu: apt install python3-venv)" >&2
    exit 1
}
if ! "$python" -m pip --python "$folder/bin/python" install --quiet --disable-pip-version-check -r "$requirements"; then
    echo "error: pip cannot install $requirements (see its message above; pip before 22.3 cannot install into another" >&2
    echo "environment: $python -m pip install --upgrade pip)" >&2
    exit 1
fi
cp "$requirements" "$stamp"
