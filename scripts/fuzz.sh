#!/bin/sh
# Fuzzes each reader for some seconds, starting from fuzz/seeds and files of the tests. It stops at the first finding; move
# its file from fuzz/artifacts/TARGET to fuzz/findings/TARGET, where `cargo test --test library regressions::` checks it.
set -eu
seconds=${1:-60}
cd "$(dirname "$0")/.."
command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
fixtures=tests/fixtures
for target in records manifest safetensors pickle pytorch tokenizer journal rows; do
    corpus=fuzz/corpus/$target
    mkdir -p "$corpus"
    for seed in fuzz/seeds/$target/* fuzz/findings/$target/*; do
        if [ -f "$seed" ]; then cp "$seed" "$corpus/"; fi
    done
    case $target in
    records) cp $fixtures/esm2/inputs/letters.faa $fixtures/dna/inputs/letters.fna "$corpus/" ;;
    # The header and some of the tensors, as in a truncated file.
    safetensors) head -c 6000 $fixtures/esm2/checkpoints/hub-safetensors/model.safetensors >"$corpus/cut" ;;
    pickle) unzip -p $fixtures/esm2/checkpoints/esm2_small.pt '*data.pkl' >"$corpus/esm2" ;;
    pytorch) cp $fixtures/pytorch/*.pt "$corpus/" ;;
    # The kind of tokenizer, followed by its file.
    tokenizer)
        { printf 0 && cat $fixtures/esm2/checkpoints/hub-bin/vocab.txt; } >"$corpus/esm"
        { printf 1 && cat $fixtures/dna/dnabert-3/vocab.txt; } >"$corpus/kmers"
        { printf 2 && cat $fixtures/dna/dnabert2/tokenizer.json; } >"$corpus/bpe"
        { printf 3 && cat $fixtures/nt/checkpoints/v1-bin/vocab.txt; } >"$corpus/non-overlapping"
        { printf 4 && cat $fixtures/saprot/checkpoints/hub/vocab.txt; } >"$corpus/pairs"
        ;;
    esac
    echo "== $target, $seconds s"
    cargo +nightly fuzz run --dev --sanitizer none "$target" "$corpus" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=16384 -print_final_stats=1
done
