#!/usr/bin/env bash
# Compiles a program of Tests/Driver and the C sources with the clang that swift build uses.
#
#     build-driver.sh OUTPUT [-m | -t] [clang flags...]
#
# -m: memory.c instead of the driver; -t: threads.c by itself. An output newer than its sources is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."
output=$1
shift
programs=(Tests/Driver/{driver,products,cross_entropy,softmax,softmax_relatives,linear_attention,matrix,safetensors,threads}.c)
sources=(CSources/*/*.c CSources/*/kernels/*.c)
case ${1:-} in
-m)
    programs=(Tests/Driver/memory.c)
    shift
    ;;
-t)
    programs=(Tests/Driver/threads.c)
    sources=()
    shift
    ;;
esac
if [ -e "$output" ] && [ -z "$(find CSources Tests/Driver Scripts -newer "$output" -type f)" ]; then
    exit 0
fi

clang=clang
if swift=$(command -v swift) && [ -x "$(dirname "$(readlink -f "$swift")")/clang" ]; then
    clang=$(dirname "$(readlink -f "$swift")")/clang
fi
echo "building $output"
mkdir -p "$(dirname "$output")"
# lld comes with Swift's clang and links for every target; gold has no end of warnings about sanitizers.
"$clang" -O2 -g1 -std=gnu11 -Wall -Wextra -fuse-ld=lld \
    -ICSources/CLMKCore/include -ICSources/CLMKCore/internal -ICSources/CLMKCrossEntropy/include \
    -ICSources/CLMKSoftmax/include -ICSources/CLMKLinearAttention/include \
    "${programs[@]}" "${sources[@]}" "$@" -lm -pthread -o "$output"
