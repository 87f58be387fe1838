#!/bin/bash
set -euo pipefail

# The licences of the linked crates.
cargo-bundle-licenses --format yaml --output THIRDPARTY.yml
cargo install --locked --no-track --root "${PREFIX}" --path .

# The executable cannot be run when cross-compiling.
if [[ "${build_platform:-${target_platform}}" == "${target_platform}" ]]; then
    seqembed="${PREFIX}/bin/seqembed"
    share="${PREFIX}/share"
    mkdir -p "${share}/bash-completion/completions" "${share}/zsh/site-functions" "${share}/fish/vendor_completions.d"
    "${seqembed}" man --output "${share}/man/man1"
    "${seqembed}" completions bash > "${share}/bash-completion/completions/seqembed"
    "${seqembed}" completions zsh > "${share}/zsh/site-functions/_seqembed"
    "${seqembed}" completions fish > "${share}/fish/vendor_completions.d/seqembed.fish"
fi
