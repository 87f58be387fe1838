// A model of the smallest ESM-2's shape, with random weights: nothing is downloaded.
process RANDOM_MODEL {
    conda "${moduleDir}/../environment.yml"
    container 'seqembed:0.1.0'

    output:
    path 'random', emit: model

    script:
    """
    seqembed export --random esm2_t6_8M_UR50D -o random
    """

    stub:
    """
    mkdir random
    """
}
