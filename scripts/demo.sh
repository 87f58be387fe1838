#!/bin/sh
# The examples, embedded and shown: real weights if the hub can be reached, random ones of the same shape if not.
set -eu
seqembed=target/release/seqembed
model=esm2_t6_8M_UR50D
out=demo
random=

if ! "$seqembed" fetch --no-export "$model" >/dev/null; then
    random=.seqembed/random/$model
    echo
    echo "**** $model can't be downloaded (see above). Going on with RANDOM weights of the same shape: all of it works, but"
    echo "**** the vectors mean nothing. With a mirror, HF_ENDPOINT=URL make demo."
    echo
    "$seqembed" export --random "$model" --force -o "$random"
fi
rm -rf "$out"
"$seqembed" run examples/manifest.yaml -o "$out" -m "${random:-$model}"
"$seqembed" plot "$out" -o "$out/plot.svg"
"$seqembed" report "$out" -o "$out/report.html"
[ -z "$random" ] || echo "RANDOM weights: neither the vectors nor the picture mean anything."
