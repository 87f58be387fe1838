#!/usr/bin/env nextflow
/*
 * Embeds many sequence files, several per task, so that each task loads its model only once.
 * samplesheet -> groups of files -> SEQEMBED_RUN -> outdir/embeddings/SAMPLE.*, outdir/report.json, outdir/samples.tsv
 */

include { SEQEMBED_RUN                              } from './modules/seqembed/run/main'
include { SEQEMBED_EXPORT                           } from './modules/seqembed/export/main'
include { FETCH_MODEL                               } from './modules/fetch/main'
include { MERGE_REPORTS ; FAILED_FILES              } from './modules/reports/main'
include { checkParameters ; counted ; usage         } from './functions/parameters'
include { groupFiles ; isExported ; readSamplesheet } from './functions/samplesheet'

workflow {
    main:
    if (params.help) {
        log.info(usage())
        exit(0)
    }
    checkParameters()
    if (params.cache_dir) {
        // Containers mount it, and podman refuses a folder that is not there.
        file(params.cache_dir).mkdirs()
    }

    def rows = readSamplesheet(file(params.input, checkIfExists: true), params.model)
    def groups = groupFiles(rows, params.group_tokens, params.group_files)
    log.info("${counted(rows.size(), 'file')} in ${counted(groups.size(), 'task')}, loading the model once per task")

    // A model that is not exported yet is exported in a task of its own, not in each task.
    def names = rows.collect { row -> row.model }.unique()
    def (exported, others) = names.split { name -> isExported(name) }
    def (checkpoints, known) = others.split { name -> file(name).exists() }
    SEQEMBED_EXPORT(channel.fromList(checkpoints.collect { name -> [[id: name], file(name)] }))
    FETCH_MODEL(channel.fromList(known))
    def models = channel.fromList(exported.collect { name -> [name, file(name)] })
        .mix(SEQEMBED_EXPORT.out.model.map { meta, folder -> [meta.id, folder] }, FETCH_MODEL.out.model)

    // [model, meta, samples, files] with [model, folder]
    def tasks = channel.fromList(groups.collect { group -> [group.model, group.meta, group.samples, group.files] })
        .combine(models, by: 0)
        .multiMap { name, meta, samples, files, folder ->
            sequences: [meta, samples, files]
            model: [[id: name], folder]
        }
    SEQEMBED_RUN(tasks.sequences, tasks.model, params.format ?: '')

    MERGE_REPORTS(SEQEMBED_RUN.out.report.map { _meta, report -> report }.collect(), rows.collectEntries { row -> [row.sample, row.file.toUriString()] })
    FAILED_FILES(MERGE_REPORTS.out.failed.filter { table -> table.readLines().size() > 1 })

    channel.topic('versions')
        .unique()
        .map { process, tool, version -> "${process.tokenize(':').last()}:\n    ${tool}: ${version}\n" }
        .collectFile(name: 'versions.yml', storeDir: "${params.outdir}/pipeline_info", sort: true)
}
