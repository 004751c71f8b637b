#!/usr/bin/env bash
# Counts up in the same file, one step a turn, each under `windlass run`: worker.sh NAME DIRECTORY SECONDS.
set -euo pipefail
export LC_ALL=C name=$1 directory=$2
step=$(dirname "$0")/step.sh
end=$((${EPOCHREALTIME%.*} + $3))

while ((${EPOCHREALTIME%.*} < end)); do
    export asked=$EPOCHREALTIME
    if [[ -v DEMO_WITHOUT_LOCK ]]; then
        "$step"
    else
        windlass run --quiet windlass-demo -- "$step"
    fi
done
