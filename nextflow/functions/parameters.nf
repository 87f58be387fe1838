// The parameters' check and their help, both from nextflow_schema.json.

// name -> what the schema says of it
def schema() {
    def text = file("${projectDir}/nextflow_schema.json").text
    def groups = new groovy.json.JsonSlurper().parseText(text)['$defs']
    return groups.collectEntries { _name, group -> group.properties.collectEntries { name, about -> [name, about + [group: group.title]] } }
}

// Stops at parameters that are not there, have the wrong type or are too small: all are told together.
def checkParameters() {
    def known = schema()
    def mistakes = []
    // Nextflow itself adds the camelCase form of each name with a hyphen.
    params.keySet().findAll { name -> !known.containsKey(name) && !name.contains('-') }.each { name ->
        def meant = name.replaceAll(/([A-Z])/, '_$1').toLowerCase()
        mistakes << "--${name}: there is no such parameter${known.containsKey(meant) ? ": it is --${meant}" : ' (--help lists them)'}"
    }
    known.each { name, about ->
        def value = params[name]
        if (about.type == 'integer' && value != null && !(value instanceof Integer || value instanceof Long)) {
            mistakes << "--${name} ${value}: a whole number is needed"
        }
        else if (about.minimum != null && value != null && value < about.minimum) {
            mistakes << "--${name} ${value}: it must be at least ${about.minimum}"
        }
        else if (about.type == 'boolean' && !(value in [true, false, null])) {
            mistakes << "--${name} ${value}: it is true or false"
        }
        else if (about['enum'] && value != null && !(value in about['enum'])) {
            mistakes << "--${name} ${value}: one of ${about['enum'].join(', ')} is needed"
        }
    }
    if (params.cache_dir && !params.cache_dir.toString().startsWith('/')) {
        mistakes << "--cache_dir ${params.cache_dir}: an absolute path is needed, of a folder that all tasks see"
    }
    ['cache_dir', 'model', 'pooling', 'precision'].each { name ->
        if (params[name].toString() ==~ /(?s).*[\$`'"\x00-\x1f\x7f].*/) {
            mistakes << "--${name} ${params[name]}: it has a `\$`, a backtick, a quote or a control character, which shells would not take as it is"
        }
    }
    if (!params.input) {
        mistakes << '--input is needed: a samplesheet with the columns sample,fasta'
    }
    if (mistakes) {
        error(mistakes.join('\n'))
    }
}

// `1 file`, `2 files`.
def counted(number, noun) {
    return "${number} ${noun}${number == 1 ? '' : 's'}".toString()
}

// The help.
def usage() {
    def lines = ['nextflow run main.nf --input samplesheet.csv --model MODEL --outdir results -profile slurm,singularity,gpu']
    schema().groupBy { _name, about -> about.group }.each { group, parameters ->
        lines << "\n${group}"
        parameters.each { name, about ->
            def preset = about.default != null ? " [${about.default}]" : ''
            lines << "  ${"--${name}".padRight(22)} ${about.description}${preset}"
        }
    }
    return lines.join('\n')
}
