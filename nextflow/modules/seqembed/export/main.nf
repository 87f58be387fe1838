process SEQEMBED_EXPORT {
    tag "${meta.id}"
    label 'process_single'

    container 'quay.io/nf-core/seqembed:0.1.0'

    input:
    tuple val(meta), path(checkpoint, stageAs: 'checkpoint/*')

    output:
    tuple val(meta), path("${prefix}", type: 'dir'), emit: model
    tuple val("${task.process}"), val('seqembed'), eval("seqembed --version | cut -d ' ' -f 2"), emit: versions_seqembed, topic: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    seqembed export \\
        ${args} \\
        ${checkpoint} \\
        --output ${prefix}
    """

    stub:
    def args = task.ext.args ?: ''
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    echo ${args}

    mkdir -p ${prefix}
    touch ${prefix}/seqembed.json
    """
}
