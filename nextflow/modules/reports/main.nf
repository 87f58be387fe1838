// The tasks' reports as one, and what is said when files failed. Runs in Nextflow itself: no container, no job.

process MERGE_REPORTS {
    errorStrategy 'finish'

    input:
    val reports

    output:
    path 'report.json', emit: report
    path 'samples.tsv', emit: samples
    path 'failed.tsv', emit: failed

    exec:
    def parts = reports
        .collect { path -> [group: path.name - '.report.json'] + new groovy.json.JsonSlurper().parseText(path.text) }
        .sort { part -> part.group }
    def files = parts.collectMany { part -> part.files.collect { entry -> [group: part.group] + entry } }
    def whole = parts.inject([:]) { sum, part -> sum + part.findAll { key, _value -> !(key in ['group', 'loads', 'totals', 'files']) } }
    whole.tasks = parts.size()
    whole.loads = parts.collectMany { part -> part.loads.collect { load -> [group: part.group] + load } }
    whole.totals = mergeTotals(parts.collect { part -> part.totals })
    whole.files = files
    task.workDir.resolve('report.json').text = groovy.json.JsonOutput.prettyPrint(groovy.json.JsonOutput.toJson(whole)) + '\n'

    def columns = ['sample', 'group', 'model', 'records', 'tokens', 'windowed', 'truncated', 'replaced', 'skipped', 'output', 'error']
    def table = files.collect { entry ->
        def row = entry + [output: entry.output ? "embeddings/${entry.output.tokenize('/').last()}" : '']
        columns.collect { column -> (row[column] == null ? '' : row[column].toString()).replaceAll(/\s+/, ' ') }.join('\t')
    }
    task.workDir.resolve('samples.tsv').text = ([columns.join('\t')] + table).join('\n') + '\n'

    def failed = files.findAll { entry -> entry.error }.collect { entry -> "${entry.sample}\t${entry.error.replaceAll(/\s+/, ' ')}" }
    task.workDir.resolve('failed.tsv').text = (['sample\terror'] + failed).join('\n') + '\n'

    stub:
    """
    touch report.json samples.tsv
    echo 'sample\terror' > failed.tsv
    """
}

// All is published by now: this tells the user, and makes the run's exit code speak.
process FAILED_FILES {
    errorStrategy 'finish'
    cache false

    input:
    val failed

    exec:
    def lines = failed.readLines().drop(1)
    def shown = lines.take(10).collect { line -> '  ' + line.replace('\t', ': ') }
    def more = lines.size() > 10 ? "\n  and ${lines.size() - 10} more" : ''
    def text = "${lines.size()} files failed; all others are published, and failed.tsv lists them:\n${shown.join('\n')}${more}"
    if (params.allow_failed) {
        log.warn(text)
    }
    else {
        error("${text}\nMend or remove them and run again with -resume, or accept them with --allow_failed")
    }
}

// Sums; but rates, shares and peaks are derived.
def mergeTotals(totals) {
    def sums = [:]
    totals.each { part ->
        part.each { key, value ->
            if (value instanceof Map) {
                sums[key] = mergeTotals([sums[key] ?: [:], value])
            }
            else if (value instanceof Number) {
                sums[key] = key.startsWith('peak_') ? [sums[key] ?: 0, value].max() : (sums[key] ?: 0) + value
            }
        }
    }
    // Of a single task: no sum means anything.
    sums.remove('first_embedding_seconds')
    if (sums.device_tokens) {
        sums.padding = 1 - sums.tokens / sums.device_tokens
    }
    if (sums.containsKey('tokens_per_second')) {
        def seconds = sums.seconds - sums.load_seconds
        sums.tokens_per_second = seconds > 0 ? sums.tokens / seconds : 0
    }
    return sums
}
