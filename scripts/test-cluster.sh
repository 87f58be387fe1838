#!/bin/bash
# Runs the workflows and the array script on a SLURM of this machine:
# scripts/test-cluster.sh EXECUTABLE
# The controller and two nodes are real, from Debian's packages (slurmctld, slurmd, munge), and run
# in a temporary folder as this user (root). They are ended at the end by their process ids. If
# SLURM is not installed, its packages are unpacked in .seqembed/slurm, and nothing is installed.
# SNAKEMAKE names an environment with Snakemake and its plugin for SLURM (.venv-snakemake).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
[ $# -eq 1 ] || {
    echo "usage: scripts/test-cluster.sh EXECUTABLE" >&2
    exit 2
}
executable=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
snakemake=${SNAKEMAKE:-$root/.venv-snakemake}
export ORT_DYLIB_PATH=${ORT_DYLIB_PATH:-$root/.seqembed/onnxruntime}

folder=$(mktemp -d)
pids=()
end() {
    local code=$?
    [ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null || true
    wait
    if [ "$code" -eq 0 ]; then rm -rf "$folder"; else echo "failed; logs are in $folder" >&2; fi
}
trap end EXIT
trap 'exit 1' INT TERM
fail() {
    echo "error: $*" >&2
    exit 1
}

# --- SLURM ---

unpack_slurm() {
    local packages=$root/.seqembed/slurm
    if [ ! -x "$packages/usr/sbin/slurmctld-wlm" ]; then
        command -v apt-get >/dev/null || fail "SLURM is not installed: install slurmctld, slurmd, slurm-client and munge"
        mkdir -p "$packages/archives"
        (cd "$packages/archives" && apt-get download -qq libhwloc15 liblua5.1-0 libmunge2 munge slurm-wlm-basic-plugins slurm-client slurmctld slurmd)
        for package in "$packages"/archives/*.deb; do dpkg -x "$package" "$packages"; done
    fi
    slurm=$packages
    library=$slurm/usr/lib/$(uname -m)-linux-gnu
    export LD_LIBRARY_PATH=$library:$library/slurm-wlm
    export PATH=$slurm/usr/bin:$slurm/usr/sbin:$PATH
}

start_slurm() {
    local host
    host=$(hostname -s)
    mkdir "$folder/state" "$folder/log"
    (umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
    munged --force --foreground --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munge.pid" \
        --log-file="$folder/log/munged" --seed-file="$folder/munge.seed" >"$folder/log/munged.out" 2>&1 &
    pids+=($!)
    export SLURM_CONF=$folder/slurm.conf
    cat >"$SLURM_CONF" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
${library:+PluginDir=$library/slurm-wlm}
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/slurmd.%n
SlurmctldPort=16817
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=5
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/jobs.txt
NodeName=node[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[17001-17002] CPUs=1 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=12:00:00 State=UP
END
    slurmctld-wlm -D >"$folder/log/slurmctld.out" 2>&1 &
    pids+=($!)
    sleep 2
    for node in node1 node2; do
        slurmd-wlm -D -N "$node" -d "$(command -v slurmstepd-wlm)" >"$folder/log/$node.out" 2>&1 &
        pids+=($!)
    done
    for _ in $(seq 60); do
        [ "$(sinfo --noheader --Node --format %t 2>/dev/null | grep -c idle)" -eq 2 ] && return
        sleep 0.5
    done
    fail "the nodes of SLURM did not start"
}

# Snakemake's plugin removes SLURM_CONF from the environment of its jobs, so the commands set it
# themselves.
wrap_commands() {
    mkdir "$folder/commands"
    for command in sbatch srun squeue scancel scontrol sinfo sacct sacctmgr; do
        printf '#!/bin/sh\nexport SLURM_CONF=%s LD_LIBRARY_PATH=%s\nexec %s "$@"\n' "$SLURM_CONF" "${LD_LIBRARY_PATH:-}" "$(command -v $command)" \
            >"$folder/commands/$command"
    done
    chmod +x "$folder"/commands/*
    PATH=$folder/commands:$PATH
}

# --- what runs on it ---

# A folder with `seqembed` for jobs: the first `run` or `embed` of the folder does the commands in
# $2 instead.
executable_that() {
    mkdir -p "$1"
    cat >"$1/seqembed" <<END
#!/bin/bash
case \$1 in run | embed) if mkdir '$1/first' 2>/dev/null; then $2; fi ;; esac
exec '$executable' "\$@"
END
    chmod +x "$1/seqembed"
}

# The name and number of 60 files, in the form of a samplesheet: $1 is the separator.
samplesheet() {
    local number=0 file
    echo "sample$1fasta"
    while [ $number -lt 60 ]; do
        for file in phix174 lassa measles hiv_1 hepatitis_b; do
            number=$((number + 1))
            echo "s$number$1$root/examples/$file.faa"
        done
    done
}

# Cancels the first job that has saved rows in the cache $1.
cancel_when_saved() {
    local job waited=0
    until [ -n "$(find "$1" -path '*rows*' -size +0 2>/dev/null | head -1)" ]; do
        waited=$((waited + 1))
        [ $waited -lt 600 ] || return
        sleep 0.2
    done
    job=$(squeue --noheader --states running --format %A | head -1)
    scancel "$job"
    echo "$job" >"$folder/cancelled"
}

# All 60 outputs in folder $1 have the vectors of the direct run, to the byte.
same_as_direct() {
    local made=$PWD/vectors file count=0
    "$executable" convert "$1" -o "$made" --format npy >/dev/null 2>&1
    for file in "$folder"/vectors/*.npy; do
        cmp "$file" "$made/$(basename "$file")" || fail "$(basename "$file") differs from that of a direct run"
        count=$((count + 1))
    done
    [ "$count" -eq 60 ] || fail "$count outputs instead of 60"
}

direct() {
    "$executable" export --random esm2_t6_8M_UR50D --output "$folder/model"
    samplesheet , >"$folder/direct.csv"
    "$executable" run "$folder/direct.csv" --model "$folder/model" --threads 1 --out "$folder/direct" --quiet
    "$executable" convert "$folder/direct" -o "$folder/vectors" --format npy >/dev/null 2>&1
}

array() {
    mkdir "$folder/array" && cd "$folder/array"
    executable_that "$PWD/bin" ":"
    "$executable" manifest "$root"/examples/*.faa -m "$folder/model" --split 2 -o jobs.yaml
    # The script of docs/slurm.md, for two tasks without GPUs.
    sed -n '/^#!\/bin\/bash/,/^```/p' "$root/docs/slurm.md" | sed '/^```/d; /--gpus/d; s/array=1-8/array=1-2/; s/cpus-per-task=8/cpus-per-task=1/; s/mem=16G/mem=2G/' >array.sh
    PATH=$PWD/bin:$PATH sbatch --wait array.sh
    [ "$(find out -name '*.parquet' | wc -l)" -eq 7 ] || fail "the array job made $(find out -name '*.parquet') instead of 7 outputs"
    echo "passed: the array script of docs/slurm.md"
}

nextflow() {
    mkdir "$folder/nextflow" && cd "$folder/nextflow"
    # The first task is slow, so that it is cancelled in the middle; the bad file is not tried
    # again.
    executable_that "$PWD/bin" "export SEQEMBED_INJECT=slow=300"
    samplesheet , >samples.csv
    printf 'MKV without a header\n' >bad.faa
    echo "bad,$PWD/bad.faa" >>samples.csv
    cat >fast.config <<END
executor { pollInterval = '1s'; queueStatInterval = '2s'; exitReadTimeout = '20s'; submitRateLimit = '5sec' }
END
    cancel_when_saved "$PWD/cache" &
    local code=0
    PATH=$PWD/bin:$PATH "$root/scripts/nextflow.sh" run "$root/nextflow" -profile slurm -c fast.config --input samples.csv --model "$folder/model" \
        --cpus 1 --memory '2 GB' --group_files 10 --cache_dir "$PWD/cache" >log 2>&1 || code=$?
    if [ "$code" -ne 1 ] || ! grep -q '1 file failed' log || ! grep -q 'bad: ' log; then fail "the bad file was not reported: $(tail -5 log)"; fi
    [ -f "$folder/cancelled" ] || fail "no job was cancelled"
    [ "$(grep -c 'Execution is retried' log)" -eq 1 ] || fail "not one task was retried: $(grep retried log)"
    grep -q '"restored": [1-9]' results/reports/*.json || fail "the retry did not take anything from the cache"
    same_as_direct "$PWD/results/embeddings"
    echo "passed: Nextflow, 60 files in groups, a cancelled job that resumed, and a bad file"
}

time_limit() {
    mkdir "$folder/limit" && cd "$folder/limit"
    executable_that "$PWD/bin" "exec sleep 600"
    printf 'sample,fasta\nx,%s\n' "$root/examples/phix174.faa" >samples.csv
    echo "executor.pollInterval = '1s'; executor.queueStatInterval = '2s'; trace.fields = 'name,status,exit,attempt,time'" >fast.config
    PATH=$PWD/bin:$PATH "$root/scripts/nextflow.sh" run "$root/nextflow" -profile slurm -c fast.config --input samples.csv --model "$folder/model" \
        --cpus 1 --memory '2 GB' --time 1m >log 2>&1 || fail "$(tail -5 log)"
    for attempt in 'FAILED\t140\t1\t1m' 'COMPLETED\t0\t2\t2m'; do
        grep -qP "SEQEMBED_RUN.*\t$attempt" results/pipeline_info/trace*.txt || fail "$(cat results/pipeline_info/trace*.txt)"
    done
    echo "passed: Nextflow, a job at its time limit, retried with twice the time"
}

snakemake() {
    cp -r "$root/snakemake" "$folder/snakemake" && cd "$folder/snakemake"
    executable_that "$PWD/bin" "export SEQEMBED_INJECT=slow=300"
    samplesheet $'\t' >config/samples.tsv
    rm -f "$folder/cancelled"
    cancel_when_saved "$PWD/.seqembed" &
    PATH=$PWD/bin:$snakemake/bin:$PATH "$snakemake/bin/snakemake" --workflow-profile workflow/profiles/slurm --slurm-status-command squeue \
        --slurm-init-seconds-before-status-checks 2 --seconds-between-status-checks 2 --latency-wait 10 --default-resources mem_mb=2000 runtime=60 slurm_partition=main \
        --config model="$folder/model" files_per_job=10 threads=1 >log 2>&1 || fail "$(tail -20 log)"
    [ -f "$folder/cancelled" ] || fail "no job was cancelled"
    same_as_direct "$PWD/results/embeddings"
    echo "passed: Snakemake, 60 files in jobs, a cancelled job that was run again"
}

command -v slurmctld-wlm >/dev/null || unpack_slurm
start_slurm
wrap_commands
direct
for test in ${TESTS:-array nextflow time_limit snakemake}; do (cd "$folder" && "$test"); done
