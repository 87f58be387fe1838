process SEQEMBED_MODEL {
    tag "${name}"
    label 'process_single'

    conda "${moduleDir}/../seqembed/environment.yml"
    container 'seqembed:0.1.0'

    input:
    tuple val(name), path(checkpoint, stageAs: 'checkpoint/*')

    output:
    tuple val(name), path('exported/*', type: 'dir'), emit: model
    tuple val("${task.process}"), val('seqembed'), eval("seqembed --version | sed 's/seqembed //'"), emit: versions_seqembed, topic: versions

    script:
    def folder = name.toString().tokenize('/').last().replaceAll(/[^\w.-]/, '_')
    if (checkpoint) {
        """
        mkdir exported
        seqembed export ${checkpoint} -o exported/${folder}
        """
    }
    else {
        """
        mkdir exported
        # In a container, only the task's folder is writable. Use the hub's cache if it is writable.
        export SEQEMBED_CACHE="\$PWD/cache"
        [ -w "\${HF_HOME:-/nowhere}" ] || export HF_HOME="\$PWD/hub"
        folder=\$(seqembed fetch '${name}')
        mv "\$folder" exported/${folder}
        """
    }

    stub:
    def folder = name.toString().tokenize('/').last().replaceAll(/[^\w.-]/, '_')
    """
    mkdir -p exported/${folder}
    touch exported/${folder}/seqembed.json
    """
}
