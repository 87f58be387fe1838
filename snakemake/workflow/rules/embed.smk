# A rule for each group of files: so each file is an output of its own, and all have one job.
for group, rows in GROUPS.items():

    rule:
        name:
            f"embed_{group}"
        input:
            fasta=[row["fasta"] for row in rows],
        output:
            embeddings=[
                f"results/embeddings/{row['sample']}.{config['format']}"
                for row in rows
            ],
            report=f"results/reports/{group}.json",
        log:
            f"logs/embed/{group}.log",
        threads: config["threads"]
        resources:
            gpu=config["gpus"],
        params:
            model=config["model"],
            options=[own_options(row) for row in rows],
            cache_dir=config["cache_dir"],
            extra=config["extra"],
        message:
            f"Embedding {len(rows)} files of {group} ({{threads}} threads, {{resources.gpu}} GPUs)"
        wrapper:
            WRAPPER
