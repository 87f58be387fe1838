process SEQEMBED {
    tag "${meta.id}"
    label 'process_medium'
    label 'process_gpu'

    conda "${task.accelerator ? "${moduleDir}/environment.gpu.yml" : "${moduleDir}/environment.yml"}"
    container "${task.accelerator ? 'seqembed:0.1.0-gpu' : 'seqembed:0.1.0'}"

    input:
    tuple val(meta), val(samples), path(sequences, stageAs: 'inputs/?/*', arity: '1..*')
    tuple val(meta2), path(model, stageAs: 'model/*')

    output:
    tuple val(meta), path("${prefix}/*.{parquet,npz,npy,tsv,provenance.json,h5,safetensors,pt}"), emit: embeddings, optional: true
    tuple val(meta), path("${prefix}.report.json"), emit: report
    tuple val("${task.process}"), val('seqembed'), eval("seqembed --version | sed 's/seqembed //'"), emit: versions_seqembed, topic: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    prefix = task.ext.prefix ?: "${meta.id}"
    def rows = manifestRows(samples, sequences)
    def from = model ? "--model ${model}" : ''
    def device = task.accelerator ? '--device cuda:all' : ''
    // A retry gets a new work folder, so what was already computed is kept in the cache.
    def cache = task.ext.cache_dir ? "--resume --cache-dir '${task.ext.cache_dir}/${prefix}'" : ''
    // Exit code 3: finished, but some files failed; the report lists them.
    def allow = task.ext.allow_failed ? '|| { status=$?; [ $status -eq 3 ] || exit $status; }' : ''
    """
    cat > ${prefix}.manifest.csv <<'END_OF_MANIFEST'
    ${rows.join('\n    ')}
    END_OF_MANIFEST

    seqembed run \\
        ${prefix}.manifest.csv \\
        ${from} \\
        --threads ${task.cpus} \\
        ${device} \\
        ${cache} \\
        ${args} \\
        --out ${prefix} ${allow}

    mv ${prefix}/report.json ${prefix}.report.json
    """

    stub:
    def args = task.ext.args ?: ''
    prefix = task.ext.prefix ?: "${meta.id}"
    def rows = manifestRows(samples, sequences)
    def format = (args =~ /--format[ =](\w+)/).collect { match -> match[1] }
    def suffix = format ? format.last() : 'parquet'
    def suffixes = suffix == 'npy' ? ['npy', 'tsv', 'provenance.json'] : [suffix]
    def names = sampleNames(samples, sequences)
    def files = names.collect { name -> groovy.json.JsonOutput.toJson([sample: name, output: "${prefix}/${name}.${suffix}".toString()]) }
    """
    cat > ${prefix}.manifest.csv <<'END_OF_MANIFEST'
    ${rows.join('\n    ')}
    END_OF_MANIFEST

    mkdir -p ${prefix}
    while IFS= read -r name; do touch ${suffixes.collect { end -> "\"${prefix}/\$name.${end}\"" }.join(' ')}; done <<'END_OF_NAMES'
    ${names.join('\n    ')}
    END_OF_NAMES

    cat > ${prefix}.report.json <<'END_OF_REPORT'
    {"loads": [], "totals": {}, "files": [
    ${files.join(',\n    ')}
    ]}
    END_OF_REPORT
    """
}

// A sample is a name, or a map with `sample` and options of the manifest; without samples, they are named after the files.
def sampleMaps(samples, sequences) {
    return sequences.withIndex().collect { file, index ->
        def sample = samples ? samples[index] : file.name.tokenize('/').last().replaceFirst(/\.(gz|bgz|bz2|xz|zst)$/, '').replaceFirst(/\.[^.]+$/, '')
        sample instanceof Map ? sample : [sample: sample]
    }
}

def sampleNames(samples, sequences) {
    return sampleMaps(samples, sequences).collect { sample -> sample.sample }
}

// The manifest of the staged files, as CSV, in which any name can be quoted.
def manifestRows(samples, sequences) {
    def maps = sampleMaps(samples, sequences)
    def options = maps.collectMany { sample -> sample.keySet() as List }.unique() - ['sample', 'fasta']
    def columns = ['sample'] + options
    def rows = maps.withIndex().collect { sample, index ->
        // `name` is the unquoted path in the task's folder; the path as text would be quoted for a shell.
        def cells = columns.collect { column -> sample[column] } + [sequences[index].name]
        cells.collect { cell -> cell == null ? '' : "\"${cell.toString().replace('"', '""')}\"" }.join(',')
    }
    return [(columns + ['fasta']).join(',')] + rows
}
