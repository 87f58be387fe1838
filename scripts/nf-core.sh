#!/bin/sh
# Checks the modules in nextflow/modules/seqembed with nf-core's linter, as in a clone of
# nf-core/modules: scripts/nf-core.sh [CLONE]
# CLONE: a clone of nf-core/modules, into which the modules are copied, for a pull request. Without
# one, a temporary folder in its layout is used.
# Needs git, Java, and nf-core/tools in PATH (pip install nf-core), which clones nf-core/modules
# once for its schemas.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
modules=$root/nextflow/modules/seqembed

command -v nf-core >/dev/null || {
    echo "error: nf-core was not found: install it (pip install nf-core)" >&2
    exit 1
}
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
if [ $# -gt 0 ]; then
    clone=$1
else
    clone=$temporary/modules
    git init --quiet "$clone"
    printf 'repository_type: modules\norg_path: nf-core\n' >"$clone/.nf-core.yml"
    mkdir -p "$clone/tests/config"
    : >"$clone/tests/config/nextflow.config"
fi
[ -f "$clone/.nf-core.yml" ] || {
    echo "error: $clone is not a clone of nf-core/modules: it has no .nf-core.yml" >&2
    exit 1
}
mkdir -p "$clone/modules/nf-core"
rm -rf "$clone/modules/nf-core/seqembed"
cp -r "$modules" "$clone/modules/nf-core/seqembed"

# The linter asks Nextflow for the images.
mkdir "$temporary/bin"
printf '#!/bin/sh\nexec "%s/scripts/nextflow.sh" "$@"\n' "$root" >"$temporary/bin/nextflow"
chmod +x "$temporary/bin/nextflow"
PATH=$temporary/bin:$PATH
export PATH
for module in "$modules"/*/main.nf; do
    nf-core --hide-progress modules lint "seqembed/$(basename "$(dirname "$module")")" --dir "$clone" --fail-warned
done
