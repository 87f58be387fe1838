# One rule per group of files, so one job and one load of the model. Files that fail are missing in its folder, and the report gives
# the reasons. A job in which some files failed counts as finished, and is not retried.
for group, rows in GROUPS.items():

    rule:
        name:
            f"embed_{group}"
        input:
            fasta=[row["fasta"] for row in rows],
        output:
            embeddings=directory(f"results/jobs/{group}"),
            report=f"results/reports/{group}.json",
        log:
            f"logs/embed/{group}.log",
        threads: config["threads"]
        resources:
            gpu=config["gpus"],
        params:
            model=config["model"],
            format=config["format"],
            options=[own_options(row) for row in rows],
            allow_failed=True,
            cache_dir=config["cache_dir"],
            extra=config["extra"],
        message:
            f"Embedding {len(rows)} {'file' if len(rows) == 1 else 'files'} of {group} (threads: {{threads}}, GPUs: {{resources.gpu}})"
        wrapper:
            WRAPPER


rule results:
    input:
        embeddings=collect("results/jobs/{group}", group=GROUPS),
        reports=collect("results/reports/{group}.json", group=GROUPS),
    output:
        embeddings=directory("results/embeddings"),
        samples="results/samples.tsv",
        failed="results/failed.tsv",
    log:
        "logs/results.log",
    retries: 0
    localrule: True
    run:
        collect_jobs(input.embeddings, input.reports, output)


rule check:
    input:
        "results/failed.tsv",
    output:
        touch("results/.checked"),
    log:
        "logs/check.log",
    retries: 0
    localrule: True
    params:
        allow_failed=config["allow_failed"],
    run:
        check_failed(input[0], params.allow_failed)
