#!/bin/sh
# Embeds and plots the examples, with real weights if the hub can be reached, or else with random weights in the same shape.
set -eu
seqembed=target/release/seqembed
model=esm2_t6_8M_UR50D
out=demo
random=

if ! "$seqembed" fetch --no-export "$model" >/dev/null; then
    random=.seqembed/random/$model
    echo
    echo "**** $model could not be downloaded (see above). Continuing with RANDOM weights in the same shape: everything works, but"
    echo "**** the embeddings are meaningless. To use a mirror, run HF_ENDPOINT=URL make demo."
    echo
    "$seqembed" export --random "$model" --force -o "$random"
fi
[ -n "$random" ] || "$seqembed" verify "$model"
rm -rf "$out"
"$seqembed" run examples/manifest.yaml -o "$out" -m "${random:-$model}"
"$seqembed" plot "$out" -o "$out/plot.svg"
"$seqembed" report "$out" -o "$out/report.html"
[ -z "$random" ] || echo "RANDOM weights: the embeddings and the plot are meaningless."
