#!/usr/bin/env bash
# Compiles a program of Tests/Driver and the C sources with the clang that swift build uses.
#
#     build-driver.sh OUTPUT [-m | -t] [clang flags...]
#
# -m: memory.c instead of the driver; -t: threads.c by itself. Flags for the linker (-l, -L, -Wl) do not matter to objects: programs
# that are otherwise compiled alike share them.
set -euo pipefail
cd "$(dirname "$0")/.."
output=$1
shift
programs=(Tests/Driver/{driver,products,cross_entropy,softmax,softmax_relatives,linear_attention,delta_rule,householder,tokens,matrix,safetensors,threads}.c)
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

clang=clang
if swift=$(command -v swift) && [ -x "$(dirname "$(readlink -f "$swift")")/clang" ]; then
    clang=$(dirname "$(readlink -f "$swift")")/clang
fi
flags=(-O2 -g1 -std=gnu11 -Wall -Wextra)
for folder in CSources/*/include CSources/*/internal; do flags+=("-I$folder"); done
linking=()
for flag in "$@"; do
    case $flag in
    -l* | -L* | -Wl,*) linking+=("$flag") ;;
    *) flags+=("$flag") ;;
    esac
done
objects=.build/driver/objects/$(echo "$clang ${flags[*]}" | cksum | cut -d ' ' -f 1)
mkdir -p "$objects" "$(dirname "$output")"
env -u MAKEFLAGS make --no-print-directory -j "$(getconf _NPROCESSORS_ONLN)" -f Scripts/driver.mk "OUTPUT=$output" \
    "OBJECTS=$objects" "SOURCES=${programs[*]} ${sources[*]}" "CLANG=$clang" "FLAGS=${flags[*]}" "LINKING=${linking[*]}"
