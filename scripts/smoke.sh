#!/bin/sh
# Checks that an installed executable works: scripts/smoke.sh EXECUTABLE
# It finds ONNX Runtime, and embeds a sequence with a model of random weights. Nothing is
# downloaded.
set -eu
executable=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"$executable" --version
"$executable" doctor
"$executable" export --random esm2_t6_8M_UR50D --output model
printf '>a\nMKTAYIAKQR\n>b\nMKV\n' >two.faa
"$executable" embed two.faa --model model --device cpu --out out
test -s out/two.parquet
