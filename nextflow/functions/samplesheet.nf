// Reads the samplesheet, and splits the files into groups; each group becomes one task.

// The rows of the samplesheet: sample, file, model, and options of the manifest. All mistakes are reported together, with line numbers.
def readSamplesheet(sheet, defaultModel) {
    def known = sheetSchema()
    def rows = sheetRows(sheet)
    if (!rows) {
        error("${sheet}: the samplesheet is empty. It must be CSV or TSV with the columns sample,fasta[,model,...]")
    }
    def columns = rows[0].cells.collect { name -> name.replace('-', '_') }
    def mistakes = columnMistakes(columns, known).collect { text -> "${sheet}:${rows[0].line}: ${text}" }
    if (mistakes) {
        stop(mistakes)
    }
    if (rows.size() == 1) {
        error("${sheet}: the samplesheet has no rows below the first")
    }
    def lines = [:]
    def read = rows.drop(1).collect { row ->
        def where = "${sheet}:${row.line}"
        def tell = { text -> mistakes << "${where}: ${text}" }
        row.cells.eachWithIndex { cell, index ->
            if (cell && !columns[index]) {
                tell.call("`${cell}` is in column ${index + 1}, which has no name in the first row")
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
            tell.call('`sample` is missing; it names the output file')
        }
        else if (lines.containsKey(sample)) {
            tell.call("the sample name `${sample}` is already used on line ${lines[sample]}")
        }
        lines.putIfAbsent(sample, row.line)
        def model = values.model ?: defaultModel
        if (!model) {
            tell.call('no model is named: give --model, or add a column `model`')
        }
        def paths = ['fasta', 'fastq'].collect { name -> values[name] }.findAll { path -> path }
        if (!paths) {
            tell.call("`fasta` is missing for the sample `${sample}`")
        }
        if (paths.size() > 1) {
            tell.call('`fasta` and `fastq` are both set, but a sample has one file')
        }
        // A relative path includes the folder of the samplesheet.
        def input = paths ? resolve(sheet, paths[0]) : null
        def staged = input instanceof List || !input ? null : unstageable(input.toString())
        if (staged) {
            tell.call("${paths[0]}: Nextflow cannot stage a path with ${staged}: rename the file")
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
    error(mistakes.join('\n') + (mistakes.size() > 1 ? "\n${mistakes.size()} mistakes found; nothing was run" : ''))
}

// The entries of assets/schema_input.json by column name.
def sheetSchema() {
    return new groovy.json.JsonSlurper().parseText(file("${projectDir}/assets/schema_input.json").text).items.properties
}

// [line, cells] of each row that is not empty, starting with the column names. Spreadsheets write byte order marks, and empty rows and columns.
def sheetRows(sheet) {
    def whole = sheet.getText('UTF-8').replace('\r\n', '\n').replace('\r', '\n')
    def text = whole.startsWith('\uFEFF') ? whole.substring(1) : whole
    if (text.contains('\uFFFD')) {
        def line = text.substring(0, text.indexOf('\uFFFD')).count('\n') + 1
        error("${sheet}:${line}: the text is not valid UTF-8: save the samplesheet as UTF-8")
    }
    def head = text.readLines().find { row -> row.trim() } ?: ''
    def separator = sheet.name ==~ /.*\.(tsv|tab|txt)/ ? '\t' : (head.contains(';') && !head.contains(',') ? ';' : ',')
    // A quoted cell, in which a doubled quote stands for one, or a plain cell; followed by a separator or a line end.
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
    // Pads rows to the number of columns; longer rows are kept if the extra cells have text.
    def width = rows ? rows[0].cells.size() : 0
    return rows.collect { row ->
        def filled = row.cells.findLastIndexOf { cell -> cell } + 1
        def size = [width, filled].max()
        [line: row.line, cells: row.cells.take(size) + [''] * (size - row.cells.take(size).size())]
    }
}

// Mistakes in the names of the columns.
def columnMistakes(columns, known) {
    def names = columns.findAll { name -> name }
    def unknown = names.findAll { name -> !known.containsKey(name) }.unique(false).collect { name ->
        def nearest = known.keySet().min { other -> distance(name.toLowerCase(), other) }
        def meant = distance(name.toLowerCase(), nearest) <= (nearest.size() + 2).intdiv(3)
        "unknown column `${name}`: ${meant ? "did you mean `${nearest}`?" : "the known ones are ${known.keySet().join(', ')}"}"
    }
    def twice = names.findAll { name -> names.count(name) > 1 }.unique(false).collect { name -> "the column `${name}` occurs twice" }
    def lacks = !('sample' in names) || !names.any { name -> name in ['fasta', 'fastq'] }
        ? ["the columns `sample` and `fasta` are required, but the columns are: ${names.join(', ')}"] : []
    return unknown + twice + lacks
}

// Levenshtein distance between two words.
def distance(from, to) {
    return from.toList().inject((0..to.size()).toList()) { row, letter ->
        to.toList().withIndex().inject([row[0] + 1]) { next, other ->
            def (wanted, at) = other
            next + [[next.last() + 1, row[at + 1] + 1, row[at] + (wanted == letter ? 0 : 1)].min()]
        }
    }.last()
}

// The mistake in a cell according to the schema, or null.
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
    return "invalid value `${shown}` for `${name}`: ${about['enum'] ? "expected one of ${about['enum'].join(', ')}" : about.errorMessage}"
}

// A character that Nextflow's own scripts do not quote in paths, in words; or null.
def unstageable(path) {
    if (path.contains('$')) {
        return 'a `$`'
    }
    if (path.contains('`')) {
        return 'a backtick'
    }
    // In a file name, these would be read as a glob pattern.
    if (path.tokenize('/').last().contains('*') || path.tokenize('/').last().contains('?')) {
        return 'a `*` or `?`'
    }
    return path ==~ /(?s).*[\x00-\x1f\x7f].*/ ? 'a control character' : null
}

// Paths are relative to the samplesheet, as in a manifest; URLs (s3://...) are unchanged.
def resolve(sheet, path) {
    return path.startsWith('/') || path ==~ /\w+:\/\/.*/ ? file(path, glob: false) : file(sheet).parent.resolve(path)
}

// Whether a model is a model folder made by `seqembed export`.
def isExported(model) {
    return file("${model}/seqembed.json", glob: false).exists()
}

// Groups of files in the order of the samplesheet, with one model per group and at most `tokens`
// tokens and `files` files.
//
// Of the rows that a group could end before when it is at least half full, it ends before the one
// whose sample name has the smallest hash; it is named by the hash of its first sample. So a row
// that is added or removed changes its own group, and sometimes the next ones, but not all groups
// after it: `-resume` reuses the others.
def groupFiles(rows, tokens, files) {
    def groups = []
    rows.groupBy { row -> row.model }.each { model, rowsOfModel ->
        def all = rowsOfModel.collect { row -> [row: row, tokens: tokensOf(row.file), hash: row.sample.md5()] }
        def next = 0
        all.eachWithIndex { _entry, start ->
            if (start == next) {
                next = start + lengthOfGroup(all.subList(start, all.size()), tokens, files)
                groups << [model: model, rows: all.subList(start, next).collect { entry -> entry.row }]
            }
        }
    }
    return groups.collect { group ->
        [
            model: group.model,
            meta: [id: "group_${group.rows[0].sample.md5().take(12)}".toString()],
            samples: group.rows.collect { row -> [sample: row.sample] + row.options },
            files: group.rows.collect { row -> row.file },
        ]
    }
}

// How many of these rows make the next group.
def lengthOfGroup(left, tokens, files) {
    def sum = 0L
    def sums = []
    left.find { entry ->
        sum += entry.tokens
        sums << sum
        (tokens && sum > tokens) || (files && sums.size() >= files)
    }
    def most = [1, sums.count { upTo -> !tokens || upTo <= tokens }].max()
    if (most == left.size()) {
        return most
    }
    // Ends at which the group is at least half as large as it may be.
    def ends = (1..most).findAll { count -> 2 * count >= (files ?: 0) || (tokens && 2 * sums[count - 1] >= tokens) }
    return ends ? ends.min { count -> left[count].hash } : most
}

// Estimated number of tokens: one per byte, or two per byte if the file is compressed.
def tokensOf(file) {
    return file.size() * (file.name ==~ /.*\.(gz|bgz|bz2|xz|zst)/ ? 2 : 1)
}
