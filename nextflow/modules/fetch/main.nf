// Downloads a model by its name from the hub and exports it.
process FETCH_MODEL {
    tag "${name}"
    label 'process_single'

    input:
    val name

    output:
    tuple val(name), path('exported/*', type: 'dir'), emit: model
    tuple val("${task.process}"), val('seqembed'), eval("seqembed --version | cut -d ' ' -f 2"), emit: versions_seqembed, topic: versions

    script:
    def folder = name.tokenize('/').last().replaceAll(/[^\w.-]/, '_')
    """
    mkdir exported
    # In a container, only the task's folder is writable. Use the hub's cache if it is writable.
    export SEQEMBED_CACHE="\$PWD/cache"
    [ -w "\${HF_HOME:-/nowhere}" ] || export HF_HOME="\$PWD/hub"
    folder=\$(seqembed fetch '${name}')
    mv "\$folder" exported/${folder}
    """

    stub:
    def folder = name.tokenize('/').last().replaceAll(/[^\w.-]/, '_')
    """
    mkdir -p exported/${folder}
    touch exported/${folder}/seqembed.json
    """
}
