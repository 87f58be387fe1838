#!/bin/sh
# Finds temporary files of workflow engines, Python, editors and desktops: `git ls-files | sh scripts/leftovers.sh` lists them, and exits
# with 1 if there are any.
found=$(grep -E \
    -e '(^|/)(\.snakemake|\.nextflow|\.nf-test|work|results|logs|__pycache__|\.ipynb_checkpoints|\.pytest_cache|\.ruff_cache|\.seqembed|\.venv[^/]*|target)/' \
    -e '(^|/)(\.nextflow\.log[.0-9]*|\.nf-test\.log|\.command\.[a-z]+|\.exitcode|\.DS_Store|Thumbs\.db|nohup\.out|core\.[0-9]+)$' \
    -e '\.(py[co]|sw[op]|orig|rej|tmp|partial)$' -e '~$' | grep -v '^bench/results/')
if [ -n "$found" ]; then
    echo "error: these files were left behind by tools and must not be committed (run git rm --cached, and add them to .gitignore):" >&2
    printf '%s\n' "$found" | sed 's/^/  /' >&2
    exit 1
fi
