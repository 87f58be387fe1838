# One rule per group of files, as for embeddings, if the configuration asks for scores. Files that fail are missing in its folder, and
# the report gives the reasons.
if config["scores"]:

    for group, rows in GROUPS.items():

        rule:
            name:
                f"score_manifest_{group}"
            input:
                fasta=[row["fasta"] for row in rows],
            output:
                manifest=temp(f"results/score_manifests/{group}.yaml"),
            log:
                f"logs/score_manifest/{group}.log",
            localrule: True
            params:
                model=config["model"],
                options=[own_options(row) for row in rows],
            run:
                write_manifest(
                    output.manifest, params.model, input.fasta, params.options
                )

        rule:
            name:
                f"score_{group}"
            input:
                fasta=[row["fasta"] for row in rows],
                manifest=f"results/score_manifests/{group}.yaml",
            output:
                scores=directory(f"results/scores/{group}"),
                report=f"results/score_reports/{group}.json",
            log:
                f"logs/score/{group}.log",
            conda:
                "../../wrapper/environment.yaml"
            threads: config["threads"]
            resources:
                gpu=config["gpus"],
            params:
                device=device_of(config["gpus"]),
                cache_dir=f"{config['cache_dir']}/scores-{group}",
                extra=config["score_extra"],
            message:
                f"Scoring {len(rows)} {'file' if len(rows) == 1 else 'files'} of {group} (threads: {{threads}}, GPUs: {{resources.gpu}})"
            shell:
                "seqembed score --manifest {input.manifest:q} --out {output.scores:q} --threads {threads} --device {params.device}"
                " --cache-dir {params.cache_dir:q} --allow-failed {params.extra} > {log:q} 2>&1"
                " && mv {output.scores:q}/report.json {output.report:q}"
                " && rm -rf {output.scores:q}/.seqembed"
                # If files failed, the next run computes only these, and takes the others from the cache.
                " && if grep -q '\"failed_files\": 0' {output.report:q}; then rm -rf {params.cache_dir:q}; fi"
