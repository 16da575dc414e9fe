#!/usr/bin/env bash
# Compares outputs of instruction sets bit by bit: AVX-512 and AVX2 on this x86-64 machine, NEON under qemu-aarch64.
# LMK_ISA=generic, which has no fused multiply-add, is checked against the conformance files only.
set -euo pipefail
cd "$(dirname "$0")/.."
files=(Tests/Conformance/*.safetensors)
build=.build/driver

if [ "$(uname -sm)" != "Linux x86_64" ]; then
    echo "neon.sh compares with AVX2 and AVX-512: it needs Linux on x86-64, this is $(uname -sm)" >&2
    exit 1
fi

if ! command -v qemu-aarch64 >/dev/null || ! command -v aarch64-linux-gnu-gcc >/dev/null ||
    [ ! -e /usr/aarch64-linux-gnu/include/stdio.h ]; then
    bash Scripts/deps.sh gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
fi

Scripts/build-driver.sh $build/native
Scripts/build-driver.sh $build/neon --target=aarch64-linux-gnu

# run ISA COMMAND...: 0 when it ran with that instruction set and passed its checks, 2 when the CPU has no such thing.
run() {
    local isa=$1 status=0
    shift
    LMK_ISA=$isa "$@" "${files[@]}" >$build/$isa.txt 2>$build/$isa.log || status=$?
    [ "$(head -n 1 $build/$isa.log)" = "isa $isa" ] || return 2
    [ $status = 0 ] && return
    cat $build/$isa.log >&2
    exit 1
}

sets=(avx512 avx2 neon generic)
declare -A runs
for isa in "${sets[@]}"; do
    command=($build/native)
    [ $isa = neon ] && command=(qemu-aarch64 -L /usr/aarch64-linux-gnu $build/neon)
    run $isa "${command[@]}" &
    runs[$isa]=$!
done

same=()
for isa in "${sets[@]}"; do
    status=0
    wait "${runs[$isa]}" || status=$?
    [ $status = 0 ] || [ $status = 2 ] || exit 1
    if [ $status = 2 ]; then
        echo "$isa: not on this CPU"
        continue
    fi
    [ $isa = generic ] && continue
    same+=("$isa")
    if ! diff $build/"${same[0]}".txt $build/$isa.txt; then
        echo "outputs differ between ${same[0]} (<) and $isa (>)" >&2
        exit 1
    fi
done
if [ ${#same[@]} -lt 2 ]; then
    echo "nothing to compare: this CPU has neither AVX-512 nor AVX2" >&2
    exit 1
fi
list=$(printf ', %s' "${same[@]}")
echo "$(wc -l < $build/"${same[0]}".txt) outputs identical on ${list:2}; generic within tolerance"
