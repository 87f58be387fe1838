#!/bin/sh
# Runs Nextflow for the tests: downloads it once from Maven Central to .seqembed/nextflow, and starts it offline, without plugins.
# scripts/nextflow.sh run nextflow/main.nf ...   Exit code 69: Nextflow is not available here; stderr gives the reason.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
home=$root/.seqembed/nextflow
pom=$root/scripts/nextflow.pom.xml

missing() {
    echo "Nextflow is not available: $1" >&2
    exit 69
}

command -v java >/dev/null || missing "java is not there: install Java 17 or newer (Debian and Ubuntu: apt install default-jre-headless)"
if ! cmp -s "$pom" "$home/pom.xml"; then
    command -v mvn >/dev/null || missing "mvn is not there: install Maven (Debian and Ubuntu: apt install maven)"
    # Two processes may do this at the same time: each builds its own folder, and the first one to finish is used.
    mkdir -p "$home"
    new=$(mktemp -d "$home/new.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    cp "$pom" "$new/pom.xml"
    mvn --quiet --batch-mode --file "$new/pom.xml" dependency:copy-dependencies \
        -DincludeScope=runtime -DoutputDirectory="$new/jars" >"$new/log" 2>&1 || {
        sed 's/^/  /' "$new/log" | head -5 >&2
        missing "Maven can't fetch it (its message is above)"
    }
    rm -rf "$home/jars"
    mv "$new/jars" "$home/jars"
    mv "$new/pom.xml" "$home/pom.xml"
    rm -rf "$new"
    trap - EXIT
fi

# The same --add-opens options as in Nextflow's own launcher, because it reads private fields of Java classes.
opens=
for package in java.lang java.io java.net java.nio java.util java.util.concurrent java.util.concurrent.atomic \
    java.util.concurrent.locks java.util.regex sun.nio.ch sun.nio.fs sun.net.www.protocol.file jdk.internal.misc; do
    opens="$opens --add-opens=java.base/$package=ALL-UNNAMED"
done
export NXF_OFFLINE=true NXF_PLUGINS_DEFAULT=false NXF_DISABLE_CHECK_LATEST=true NXF_HOME="${NXF_HOME:-$home/home}"
export NXF_ANSI_LOG="${NXF_ANSI_LOG:-false}"
# For short runs, the second compiler costs more than it saves.
# shellcheck disable=SC2086
exec java $opens -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -cp "$home/jars/*" nextflow.cli.Launcher "$@"
