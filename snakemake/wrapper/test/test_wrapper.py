# The test of this wrapper in test_wrappers.py of the Snakemake wrapper repository, whose fixture
# `run` it takes.


def test_seqembed(run):
    run(
        "bio/seqembed",
        [
            "snakemake",
            "embeddings/hepatitis_b.parquet",
            "embeddings/phix174.parquet",
            "embeddings/report.json",
            "embeddings/phix174.npz",
        ],
        cores=2,
    )
