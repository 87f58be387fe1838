// Merges the reports of the tasks, and reports failed files. This runs in Nextflow itself, without a container or job.

process MERGE_REPORTS {
    executor 'local'
    errorStrategy 'finish'

    input:
    val reports
    val sources

    output:
    path 'report.json', emit: report
    path 'samples.tsv', emit: samples
    path 'failed.tsv', emit: failed

    exec:
    def whole = mergeReports(reports, sources)
    task.workDir.resolve('report.json').text = groovy.json.JsonOutput.prettyPrint(groovy.json.JsonOutput.toJson(whole)) + '\n'
    def columns = ['sample', 'group', 'model', 'records', 'tokens', 'windowed', 'truncated', 'replaced', 'gaps', 'skipped', 'source', 'output', 'error']
    task.workDir.resolve('samples.tsv').text = table(whole.files, columns)
    task.workDir.resolve('failed.tsv').text = table(failures(whole.files), ['sample', 'source', 'error'])
}

// Runs after everything is published: reports failed files to the user, and makes the run fail unless they are allowed.
process FAILED_FILES {
    executor 'local'
    errorStrategy 'finish'
    cache false

    input:
    val failed

    exec:
    tell(failed)
}

// One report in the format of the parts, in the order of the samplesheet; `group` names the task of
// each load and file.
def mergeReports(reports, sources) {
    def rows = sources.keySet().toList().withIndex().collectEntries { sample, row -> [sample, row] }
    def parts = reports
        .collect { path -> [group: path.name - '.report.json'] + new groovy.json.JsonSlurper().parseText(path.text) }
        .sort { part -> part.files.collect { entry -> rows[entry.sample] }.min() }
    def whole = [:]
    parts.each { part -> whole += part.findAll { key, value -> value != null && !(key in ['group', 'loads', 'totals', 'files']) } }
    whole.tasks = parts.size()
    whole.loads = parts.collectMany { part -> part.loads.collect { load -> [group: part.group] + load } }
    whole.totals = mergeTotals(parts.collect { part -> part.totals })
    whole.files = parts.collectMany { part ->
        part.files.collect { entry ->
            def output = entry.output ? "embeddings/${entry.output.tokenize('/').last()}".toString() : null
            [group: part.group] + entry + [source: sources[entry.sample], output: output]
        }
    }
    return whole
}

// The files that failed, and those in which sequences failed.
def failures(entries) {
    return entries.findAll { entry -> entry.error || entry.failed_records }.collect { entry ->
        def number = entry.failed_records == 1 ? '1 sequence' : "${entry.failed_records} sequences"
        entry + [error: entry.error ?: "${number} failed: see the column `status` of ${entry.output}".toString()]
    }
}

// Sums the totals; rates, shares and peaks are recomputed.
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
    // This is meaningful only for a single task.
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

def table(entries, columns) {
    def lines = entries.collect { entry ->
        columns.collect { column -> entry[column] == null ? '' : entry[column].toString().replaceAll(/\s+/, ' ') }.join('\t')
    }
    return ([columns.join('\t')] + lines).join('\n') + '\n'
}

def tell(failed) {
    def lines = failed.readLines().drop(1)
    def shown = lines.take(10).collect { line -> "  ${line.tokenize('\t').first()}: ${line.tokenize('\t').last()}" }
    def more = lines.size() > 10 ? ["  and ${lines.size() - 10} more"] : []
    def number = lines.size() == 1 ? '1 file' : "${lines.size()} files"
    def text = (["${number} failed. All other files are published; ${params.outdir}/failed.tsv lists the failures:"] + shown + more).join('\n')
    if (!params.allow_failed) {
        error("${text}\nCorrect or remove the failed files and run again with -resume, or accept the failures with --allow_failed")
    }
    log.warn(text)
}
