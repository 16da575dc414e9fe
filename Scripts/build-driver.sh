#!/usr/bin/env bash
# Compiles the C sources and a program of Tests/Driver with the clang that swift build uses.
#
#     build-driver.sh OUTPUT [-m] [clang flags...]        -m: memory.c instead of the driver
set -euo pipefail
cd "$(dirname "$0")/.."
output=$1
shift
program="driver.c products.c cross_entropy.c safetensors.c threads.c"
if [ "${1:-}" = -m ]; then
    program=memory.c
    shift
fi
clang=clang
if swift=$(command -v swift) && [ -x "$(dirname "$(readlink -f "$swift")")/clang" ]; then
    clang=$(dirname "$(readlink -f "$swift")")/clang
fi

[ -n "$(find CSources Tests/Driver Scripts/build-driver.sh -newer "$output" 2>&1)" ] || exit 0
echo "building $output"
# What swift build -c release passes, warnings aside. Clang finds its own lld; ld.gold cannot link the sanitizers without noise.
mkdir -p "$(dirname "$output")"
"$clang" -O2 -g1 -std=gnu11 -Wall -Wextra -fuse-ld=lld \
    -ICSources/CLMKCore/include -ICSources/CLMKCore/internal -ICSources/CLMKCrossEntropy/include \
    $(printf 'Tests/Driver/%s ' $program) CSources/*/*.c CSources/*/kernels/*.c "$@" -lm -pthread -o "$output"
