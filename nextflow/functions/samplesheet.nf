// From a samplesheet to groups of files, each of them one task.

// The samplesheet's rows: sample, file, model, and options of the manifest. All mistakes are told together, with their lines.
def readSamplesheet(sheet, defaultModel) {
    def known = sheetSchema()
    def rows = sheetRows(sheet)
    if (!rows) {
        error("${sheet}: no files in it. It is a CSV or TSV with the columns sample,fasta[,model,...]")
    }
    def columns = rows[0].cells.collect { name -> name.replace('-', '_') }
    def mistakes = columnMistakes(columns, known).collect { text -> "${sheet}:${rows[0].line}: ${text}" }
    if (mistakes) {
        stop(mistakes)
    }
    if (rows.size() == 1) {
        error("${sheet}: no files in it: there are columns but no rows")
    }
    def lines = [:]
    def read = rows.drop(1).collect { row ->
        def where = "${sheet}:${row.line}"
        def tell = { text -> mistakes << "${where}: ${text}" }
        row.cells.eachWithIndex { cell, index ->
            if (cell && !columns[index]) {
                tell.call("`${cell}` stands in column ${index + 1}, which has no name in the first row")
            }
        }
        def values = [columns, row.cells].transpose().findAll { name, cell -> name && cell }.collectEntries { name, cell -> [name, cell] }
        values.each { name, cell ->
            def trouble = cellMistake(name, cell, known[name])
            if (trouble) {
                tell.call(trouble)
            }
        }
        def sample = values.sample
        if (!sample) {
            tell.call('no sample name')
        }
        else if (lines.containsKey(sample)) {
            tell.call("the sample `${sample}` is in line ${lines[sample]} already")
        }
        lines.putIfAbsent(sample, row.line)
        def model = values.model ?: defaultModel
        if (!model) {
            tell.call('no model: give --model, or a column `model`')
        }
        def paths = ['fasta', 'fastq'].collect { name -> values[name] }.findAll { path -> path }
        if (!paths) {
            tell.call("no file for the sample `${sample}`")
        }
        if (paths.size() > 1) {
            tell.call('both `fasta` and `fastq`: a sample has one file')
        }
        // The samplesheet's own folder is in a relative path, too.
        def input = paths ? resolve(sheet, paths[0]) : null
        def staged = input instanceof List || !input ? null : unstageable(input.toString())
        if (staged) {
            tell.call("${paths[0]}: Nextflow can't stage a path with ${staged}: rename it")
        }
        else if (paths && (input instanceof List || !input.exists() || input.isDirectory())) {
            tell.call("${paths[0]}: no such file (relative to the samplesheet)")
        }
        def options = values.findAll { name, _cell -> !(name in ['sample', 'fasta', 'fastq', 'model']) }
        [sample: sample, file: input, model: model, options: options]
    }
    if (mistakes) {
        stop(mistakes)
    }
    return read
}

def stop(mistakes) {
    error(mistakes.join('\n') + (mistakes.size() > 1 ? "\n${mistakes.size()} mistakes: nothing was done" : ''))
}

// name -> what assets/schema_input.json says of a column
def sheetSchema() {
    return new groovy.json.JsonSlurper().parseText(file("${projectDir}/assets/schema_input.json").text).items.properties
}

// [line, cells] of each row with text, the columns first. Spreadsheets write byte order marks, and empty rows and columns.
def sheetRows(sheet) {
    def whole = sheet.getText('UTF-8').replace('\r\n', '\n').replace('\r', '\n')
    def text = whole.startsWith('\uFEFF') ? whole.substring(1) : whole
    if (text.contains('\uFFFD')) {
        def line = text.substring(0, text.indexOf('\uFFFD')).count('\n') + 1
        error("${sheet}:${line}: the text is not UTF-8: save the samplesheet as UTF-8")
    }
    def head = text.readLines().find { row -> row.trim() } ?: ''
    def separator = sheet.name ==~ /.*\.(tsv|tab|txt)/ ? '\t' : (head.contains(';') && !head.contains(',') ? ';' : ',')
    // A cell in quotes, in which two of them are one, or a plain one; and what ends it.
    def pattern = '\\G(?: *"([^"]*+(?:""[^"]*+)*+)" *|([^' + separator + '\\n]*+))(' + separator + '|\\n|\\z)'
    def rows = []
    def cells = []
    def line = 1
    def start = 1
    (text =~ pattern).each { match ->
        def quoted = match[1]
        cells = cells + [(quoted == null ? match[2] : quoted.replace('""', '"')).trim()]
        line = line + match[0].count('\n')
        if (match[3] != separator) {
            if (cells.any { cell -> cell }) {
                rows << [line: start, cells: cells]
            }
            cells = []
            start = line
        }
    }
    // As many cells a row as there are columns, or more where there is text in them.
    def width = rows ? rows[0].cells.size() : 0
    return rows.collect { row ->
        def filled = row.cells.findLastIndexOf { cell -> cell } + 1
        def size = [width, filled].max()
        [line: row.line, cells: row.cells.take(size) + [''] * (size - row.cells.take(size).size())]
    }
}

// What is wrong with the columns' names.
def columnMistakes(columns, known) {
    def names = columns.findAll { name -> name }
    def unknown = names.findAll { name -> !known.containsKey(name) }.unique(false).collect { name ->
        def nearest = known.keySet().min { other -> distance(name.toLowerCase(), other) }
        def meant = distance(name.toLowerCase(), nearest) <= (nearest.size() + 2).intdiv(3)
        "there is no column `${name}`: ${meant ? "did you mean `${nearest}`?" : "there are ${known.keySet().join(', ')}"}"
    }
    def twice = names.findAll { name -> names.count(name) > 1 }.unique(false).collect { name -> "the column `${name}` is there twice" }
    def lacks = !('sample' in names) || !names.any { name -> name in ['fasta', 'fastq'] }
        ? ["there must be columns `sample` and `fasta`, but these are there: ${names.join(', ')}"] : []
    return unknown + twice + lacks
}

// How many letters must be changed, put in or left out to make one word of the other.
def distance(from, to) {
    return from.toList().inject((0..to.size()).toList()) { row, letter ->
        to.toList().withIndex().inject([row[0] + 1]) { next, other ->
            def (wanted, at) = other
            next + [[next.last() + 1, row[at + 1] + 1, row[at] + (wanted == letter ? 0 : 1)].min()]
        }
    }.last()
}

// What the schema says against a cell, or null.
def cellMistake(name, cell, about) {
    def number = about.type == 'integer' && cell ==~ /[+-]?\d{1,18}/ ? cell as long : null
    def fits = about['enum'] ? cell.toLowerCase() in about['enum']
        : about.type == 'integer' ? number != null && (about.minimum == null || number >= about.minimum)
        : about.type == 'boolean' ? cell.toLowerCase() in ['true', 'false']
        : !about.pattern || java.util.regex.Pattern.compile(about.pattern).matcher(cell).find()
    if (fits) {
        return null
    }
    def shown = cell.replaceAll(/\s/, ' ')
    return "`${name}` can't be `${shown}`: ${about['enum'] ? "it is one of ${about['enum'].join(', ')}" : about.errorMessage}"
}

// The character of a path that Nextflow's own scripts would not take for itself, in words; or null.
def unstageable(path) {
    if (path.contains('$')) {
        return 'a `$`'
    }
    if (path.contains('`')) {
        return 'a backtick'
    }
    // Of a file's name it would make a pattern.
    if (path.tokenize('/').last().contains('*') || path.tokenize('/').last().contains('?')) {
        return 'a `*` or `?`'
    }
    return path ==~ /(?s).*[\x00-\x1f\x7f].*/ ? 'a control character' : null
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
