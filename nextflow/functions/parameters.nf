// Checks the parameters and prints their help, both according to nextflow_schema.json.

// The entries of the schema by parameter name.
def schema() {
    def text = file("${projectDir}/nextflow_schema.json").text
    def groups = new groovy.json.JsonSlurper().parseText(text)['$defs']
    return groups.collectEntries { _name, group -> group.properties.collectEntries { name, about -> [name, about + [group: group.title]] } }
}

// Stops with an error for unknown parameters, wrong types and values that are out of range. All mistakes are reported together.
def checkParameters() {
    def known = schema()
    def mistakes = []
    // Nextflow itself adds the camelCase form of each name with a hyphen.
    params.keySet().findAll { name -> !known.containsKey(name) && !name.contains('-') }.each { name ->
        def meant = name.replaceAll(/([A-Z])/, '_$1').toLowerCase()
        mistakes << "--${name}: unknown parameter${known.containsKey(meant) ? ": did you mean --${meant}?" : ' (run with --help for the list)'}"
    }
    known.each { name, about ->
        def value = params[name]
        if (about.type == 'integer' && value != null && !(value instanceof Integer || value instanceof Long)) {
            mistakes << "--${name} ${value}: expected a whole number"
        }
        else if (about.minimum != null && value != null && value < about.minimum) {
            mistakes << "--${name} ${value}: expected at least ${about.minimum}"
        }
        else if (about.type == 'boolean' && !(value in [true, false, null])) {
            mistakes << "--${name} ${value}: expected true or false"
        }
        else if (about['enum'] && value != null && !(value in about['enum'])) {
            mistakes << "--${name} ${value}: expected one of ${about['enum'].join(', ')}"
        }
    }
    if (params.cache_dir && !params.cache_dir.toString().startsWith('/')) {
        mistakes << "--cache_dir ${params.cache_dir}: expected the absolute path of a folder shared by all tasks"
    }
    ['cache_dir', 'model', 'pooling', 'precision'].each { name ->
        if (params[name].toString() ==~ /(?s).*[\$`'"\x00-\x1f\x7f].*/) {
            mistakes << "--${name} ${params[name]}: it must not contain a `\$`, a backtick, a quote or a control character, because it is passed to a shell"
        }
    }
    if (!params.input) {
        mistakes << '--input is missing: give a samplesheet with the columns sample,fasta'
    }
    if (mistakes) {
        error(mistakes.join('\n'))
    }
}

// `1 file`, `2 files`.
def counted(number, noun) {
    return "${number} ${noun}${number == 1 ? '' : 's'}".toString()
}

// The text of --help.
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
