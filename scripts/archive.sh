#!/bin/sh
# Packs the executable with its manual pages, completions and licences:
# scripts/archive.sh EXECUTABLE TARGET FOLDER
# Prints the path of the archive, FOLDER/seqembed-VERSION-TARGET.tar.gz. The executable must run on
# this machine.
set -eu
[ $# -eq 3 ] || {
    echo "usage: scripts/archive.sh EXECUTABLE TARGET FOLDER" >&2
    exit 2
}
executable=$1
target=$2
out=$3
root=$(cd "$(dirname "$0")/.." && pwd)
version=$("$executable" --version | cut -d ' ' -f 2)
name=seqembed-$version-$target
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
folder=$temporary/$name

mkdir -p "$folder/bin" "$folder/share/man/man1" "$folder/share/bash-completion/completions" \
    "$folder/share/zsh/site-functions" "$folder/share/fish/vendor_completions.d" "$out"
cp "$executable" "$folder/bin/seqembed"
"$executable" man --output "$folder/share/man/man1"
"$executable" completions bash >"$folder/share/bash-completion/completions/seqembed"
"$executable" completions zsh >"$folder/share/zsh/site-functions/_seqembed"
"$executable" completions fish >"$folder/share/fish/vendor_completions.d/seqembed.fish"
cp "$root/LICENSE-MIT" "$root/LICENSE-APACHE" "$root/README.md" "$root/CHANGELOG.md" "$folder/"
"${PYTHON:-python3}" "$root/scripts/licences.py" "$target" >"$folder/LICENSE-THIRDPARTY"
# The same files give the same bytes, whoever packs them.
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@${SOURCE_DATE_EPOCH:-0}" -C "$temporary" -cf - "$name" |
    gzip -9n >"$out/$name.tar.gz"
echo "$out/$name.tar.gz"
