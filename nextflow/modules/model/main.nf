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
        # The task's own folder is the one that can be written everywhere; a hub's cache that is set is used.
        export SEQEMBED_CACHE="\$PWD/cache" HF_HOME="\${HF_HOME:-\$PWD/hub}"
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
