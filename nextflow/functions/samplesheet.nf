// From a samplesheet to groups of files, each of them one task.

// The samplesheet's rows: sample, file, model, and options of the manifest. All mistakes are told together.
def readSamplesheet(sheet, defaultModel) {
    def separator = sheet.name ==~ /.*\.(tsv|tab|txt)/ ? '\t' : ','
    def rows = sheet.splitCsv(header: true, sep: separator, quote: '"', strip: true)
    def mistakes = []
    if (!rows) {
        error("${sheet}: no files in it. It is a CSV or TSV with the columns sample,fasta[,model,...]")
    }
    def inputs = ['fasta', 'fastq'].findAll { column -> rows[0].containsKey(column) }
    if (!rows[0].containsKey('sample') || !inputs) {
        error("${sheet}:1: there must be columns `sample` and `fasta`, but these are there: ${rows[0].keySet().join(', ')}")
    }
    def lines = [:]
    def read = rows.withIndex().collect { row, index ->
        def line = index + 2
        def sample = row.sample
        def path = inputs.collect { column -> row[column] }.find { value -> value }
        def model = row.model ?: defaultModel
        if (!sample) {
            mistakes << "${sheet}:${line}: no sample name"
        }
        else if (sample ==~ /.*[\/\\\n].*/ || sample.startsWith('.') || sample.startsWith('-')) {
            mistakes << "${sheet}:${line}: the sample name `${sample}` can't name a file"
        }
        else if (lines.containsKey(sample)) {
            mistakes << "${sheet}:${line}: the sample `${sample}` is in line ${lines[sample]} already"
        }
        lines.putIfAbsent(sample, line)
        if (!model) {
            mistakes << "${sheet}:${line}: no model: give --model, or a column `model`"
        }
        def input = path ? resolve(sheet, path) : null
        if (!path) {
            mistakes << "${sheet}:${line}: no file for the sample `${sample}`"
        }
        else if (input instanceof List || !input.exists() || input.isDirectory()) {
            mistakes << "${sheet}:${line}: ${path}: no such file (relative to the samplesheet)"
        }
        def options = row.findAll { column, value -> value && !(column in ['sample', 'fasta', 'fastq', 'model']) }
        [sample: sample, file: input, model: model, options: options]
    }
    if (mistakes) {
        error(mistakes.join('\n') + (mistakes.size() > 1 ? "\n${mistakes.size()} mistakes: nothing was done" : ''))
    }
    return read
}

// Paths are relative to the samplesheet, as in a manifest of seqembed; addresses (s3://...) stay.
def resolve(sheet, path) {
    return path.startsWith('/') || path ==~ /\w+:\/\/.*/ ? file(path, glob: false) : file(sheet).parent.resolve(path)
}

// Whether a model is a folder that seqembed has exported.
def isExported(model) {
    return file("${model}/seqembed.json", glob: false).exists()
}

// Files in the samplesheet's order, one model a group; a group ends before it would have more than so many tokens or files.
// Rows added at the end change the last group alone, so that `-resume` finds the others.
def groupFiles(rows, tokens, files) {
    def groups = []
    rows.groupBy { row -> row.model }.each { model, rowsOfModel ->
        def group = []
        def sum = 0L
        rowsOfModel.each { row ->
            def estimate = tokensOf(row.file)
            if (group && ((tokens && sum + estimate > tokens) || (files && group.size() >= files))) {
                groups << [model: model, rows: group]
                group = []
                sum = 0L
            }
            group << row
            sum += estimate
        }
        groups << [model: model, rows: group]
    }
    return groups.withIndex().collect { group, index ->
        [
            model: group.model,
            meta: [id: "group_${(index + 1).toString().padLeft(5, '0')}".toString()],
            samples: group.rows.collect { row -> [sample: row.sample] + row.options },
            files: group.rows.collect { row -> row.file },
        ]
    }
}

// An estimate: a byte a token, and two where the file is compressed.
def tokensOf(file) {
    return file.size() * (file.name ==~ /.*\.(gz|bgz|bz2|xz|zst)/ ? 2 : 1)
}
