#!/usr/bin/env bash
# Every conformance vector on every instruction set this machine can run, and on 1, 2 and 3 threads.
set -euo pipefail
cd "$(dirname "$0")/.."

lmk=$(swift build -c release --show-bin-path)/lmk
for isa in $("$lmk" info --supported); do
    for threads in 1 2 3; do
        echo "$isa, $threads threads"
        "$lmk" check --isa "$isa" --threads "$threads" Tests/Conformance/*.safetensors
    done
done
