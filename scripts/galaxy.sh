#!/bin/sh
# Runs the tests of the Galaxy tools in a Galaxy server on this machine:
# scripts/galaxy.sh EXECUTABLE [TOOL.xml...]
# The server is from PyPI (.venv-galaxy), with its data in a temporary folder, and runs jobs on this
# machine; it is ended at the end.
# GALAXY and PLANEMO name other environments, GALAXY_PORT another port (8899).
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
[ $# -gt 0 ] || {
    echo "usage: scripts/galaxy.sh EXECUTABLE [TOOL.xml...]" >&2
    exit 2
}
executable=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
shift
[ $# -gt 0 ] || set -- "$root"/galaxy/[!m]*.xml
galaxy=${GALAXY:-$root/.venv-galaxy}
planemo=${PLANEMO:-$root/.venv-planemo}
address=http://localhost:${GALAXY_PORT:-8899}
# Of this server alone, which only this machine reaches.
key=local-tests-of-seqembed

folder=$(mktemp -d)
server=
# The trap calls it.
# shellcheck disable=SC2329
end() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    [ -z "$server" ] || wait "$server" 2>/dev/null || true
    rm -rf "$folder"
}
trap end EXIT
trap 'exit 1' INT TERM

mkdir "$folder/bin"
ln -s "$executable" "$folder/bin/seqembed"
{
    echo '<toolbox><section id="seqembed" name="seqembed">'
    for tool; do echo "<tool file=\"$(cd "$(dirname "$tool")" && pwd)/$(basename "$tool")\"/>"; done
    echo '</section></toolbox>'
} >"$folder/tool_conf.xml"
cat >"$folder/job_conf.yml" <<END
runners:
  local: {load: "galaxy.jobs.runners.local:LocalJobRunner", workers: 1}
execution:
  default: local
  environments:
    local:
      runner: local
      env:
        - {name: ORT_DYLIB_PATH, value: "${ORT_DYLIB_PATH:-$root/.seqembed/onnxruntime}"}
        - {name: PATH, value: "$folder/bin:$galaxy/bin:$PATH"}
END
cat >"$folder/galaxy.yml" <<END
galaxy:
  data_dir: $folder/data
  database_connection: sqlite:///$folder/universe.sqlite?isolation_level=IMMEDIATE
  tool_config_file: $folder/tool_conf.xml
  tool_data_table_config_path: $root/galaxy/tool_data_table_conf.xml.test
  job_config_file: $folder/job_conf.yml
  conda_auto_init: false
  conda_auto_install: false
  enable_celery_tasks: false
  bootstrap_admin_api_key: $key
END
cd "$folder"
GALAXY_CONFIG_FILE=$folder/galaxy.yml PATH=$galaxy/bin:$PATH "$galaxy/bin/gunicorn" 'galaxy.webapps.galaxy.fast_factory:factory()' \
    -k galaxy.webapps.galaxy.workers.Worker --bind "127.0.0.1:${address##*:}" --timeout 600 >"$folder/log" 2>&1 &
server=$!
waited=0
until "$planemo/bin/python" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1])' "$address/api/version" 2>/dev/null; do
    waited=$((waited + 1))
    if [ "$waited" -gt 300 ] || ! kill -0 "$server" 2>/dev/null; then
        echo "error: Galaxy did not start; the end of its log:" >&2
        tail -20 "$folder/log" >&2
        exit 1
    fi
    sleep 1
done
status=0
"$planemo/bin/planemo" test --engine external_galaxy --galaxy_url "$address" --galaxy_admin_key "$key" \
    --test_output "$folder/tests.html" --test_output_json "$folder/tests.json" "$@" || status=$?
if [ "$status" -ne 0 ] && [ -f "$folder/tests.json" ]; then
    "$planemo/bin/python" - "$folder/tests.json" >&2 <<'END'
import json
import sys

for test in json.load(open(sys.argv[1]))["tests"]:
    if test["data"]["status"] != "success":
        print(test["id"], test["data"].get("output_problems") or test["data"].get("execution_problem"))
END
fi
exit "$status"
