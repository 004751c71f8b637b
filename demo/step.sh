#!/usr/bin/env bash
# One step of worker.sh.
set -euo pipefail
# shellcheck disable=SC2154 # worker.sh exports these
got=$EPOCHREALTIME counter=$directory/counter
read -r value <"$counter" || true # no newline from Python
sleep 0.002
echo $((${value:-0} + 1)) >"$counter"
# shellcheck disable=SC2154
echo "$name $asked $got $EPOCHREALTIME" >>"$directory/turns"
