process SEQEMBED_SCORE {
    tag "${meta.id}"
    label 'process_medium'

    container "${task.accelerator ? 'quay.io/nf-core/seqembed:0.1.0-gpu' : 'quay.io/nf-core/seqembed:0.1.0'}"

    input:
    tuple val(meta), val(samples), path(sequences, stageAs: 'inputs/?/*', arity: '1..*'), path(variants, stageAs: 'variants/*')
    tuple val(meta2), path(model, stageAs: 'model/*')
    val format

    output:
    tuple val(meta), path("${prefix}/*.{parquet,tsv,csv}"), emit: scores, optional: true
    tuple val(meta), path("${prefix}.report.json"), emit: report
    tuple val("${task.process}"), val('seqembed'), eval("seqembed --version | cut -d ' ' -f 2"), emit: versions_seqembed, topic: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    prefix = task.ext.prefix ?: "${meta.id}"
    def model_arg = model ? "--model ${model}" : ''
    def format_arg = format ? "--format ${format}" : ''
    def variants_arg = variants ? "--variants ${variants}" : ''
    def device_arg = task.accelerator ? '--device cuda:all' : ''
    // Without sample names, samples are named after the files. In a manifest, in quotes, any name
    // can be written.
    def files = samples ? "--manifest ${prefix}.manifest.yaml" : "${sequences}"
    def quoted = { value -> "'${value.toString().replace("'", "''")}'" }
    def rows = [samples ?: [], sequences].transpose().collect { sample, file ->
        (sample + [fasta: file.name]).collect { key, value -> "${key}: ${quoted.call(value)}" }.join(', ')
    }
    """
    cat > ${prefix}.manifest.yaml <<'END_OF_MANIFEST'
    files:
    ${rows.collect { row -> "- {${row}}" }.join('\n    ')}
    END_OF_MANIFEST

    seqembed score ${files} \\
        ${model_arg} \\
        ${variants_arg} \\
        ${format_arg} \\
        --threads ${task.cpus} \\
        ${device_arg} \\
        ${args} \\
        --out ${prefix}

    mv ${prefix}/report.json ${prefix}.report.json
    """

    stub:
    def args = task.ext.args ?: ''
    prefix = task.ext.prefix ?: "${meta.id}"
    def suffix = "${variants ? 'variants.' : ''}${format ?: 'parquet'}"
    def names = samples ? samples.collect { sample -> sample.sample } : sequences.collect { file -> file.simpleName }
    def entries = names.collect { name -> groovy.json.JsonOutput.toJson([sample: name, output: "${prefix}/${name}.${suffix}".toString()]) }
    """
    echo ${args}

    mkdir -p ${prefix}
    while IFS= read -r name; do touch "${prefix}/\$name.${suffix}"; done <<'END_OF_NAMES'
    ${names.join('\n    ')}
    END_OF_NAMES

    cat > ${prefix}.report.json <<'END_OF_REPORT'
    {"loads": [], "totals": {}, "files": [
    ${entries.join(',\n    ')}
    ]}
    END_OF_REPORT
    """
}
