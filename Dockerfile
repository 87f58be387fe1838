# seqembed for CPUs: about 130 MB. It runs without a network, without root, and with a read-only root file system:
#
#     docker build -t seqembed .
#     docker run --rm --network none --read-only -u "$(id -u)" -v "$PWD:/work" -v models:/models:ro \
#         seqembed seqembed run manifest.yaml -o out
#
# There is no entry point, because workflow engines start their own shell.

FROM rust:1.92-slim-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs ./
COPY src src
COPY onnx onnx
COPY bench/tokenize.rs bench/tokenize.rs
# The commit, which `seqembed --version` prints: --build-arg COMMIT="$(git rev-parse --short=10 HEAD)"
ARG COMMIT=""
RUN SEQEMBED_COMMIT="$COMMIT" cargo build --release --locked --bin seqembed && strip target/release/seqembed

# The library from the Python wheel, which does not depend on Python.
FROM python:3.13-slim-bookworm AS libraries
WORKDIR /scripts
COPY scripts/onnxruntime.py ./
RUN python onnxruntime.py /onnxruntime onnxruntime==1.32.0

FROM debian:bookworm-slim
# `ps` is used by Nextflow to measure tasks.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends procps \
    && rm -rf /var/lib/apt/lists/* \
    && mkdir /models /work \
    && chown 1000:1000 /models /work
COPY --from=libraries /onnxruntime/libonnxruntime.so.1.32.0 /usr/local/lib/
COPY --from=libraries /onnxruntime/LICENSE /onnxruntime/ThirdPartyNotices.txt /usr/local/share/doc/onnxruntime/
COPY --from=build /src/target/release/seqembed /usr/local/bin/
# Exported models, and the hub's cache for `seqembed fetch`.
ENV SEQEMBED_CACHE=/models/seqembed HF_HOME=/models/huggingface
USER 1000:1000
WORKDIR /work
CMD ["seqembed", "--help"]
