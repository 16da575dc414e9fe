#!/usr/bin/env bash
# Address, undefined-behaviour and thread sanitizers, first with the C driver on every instruction set, then with the Swift tests.
# `sanitize.sh driver` stops after the first part, as CI does: the tests take many minutes more.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$(uname)" != Linux ]; then
    echo "sanitize.sh knows Linux only; here, try swift test -c release --sanitize=address" >&2
    exit 1
fi
build=.build/driver
libraries=$(dirname "$(readlink -f "$(command -v swift)")")/../lib/swift/linux
# Calls instead of inlined checks: kernels compile twice as fast.
outlined=(-mllvm -asan-instrumentation-with-call-threshold=0)
# libomp keeps its thread pool until the process ends.
export LSAN_OPTIONS=suppressions=$PWD/Tests/Driver/leaks.supp:print_suppressions=0
export UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1

# quietly LOG COMMAND...: shows the output only when it fails.
quietly() {
    local log=$1
    shift
    "$@" >"$log" 2>&1 && return
    tail -n 200 "$log" >&2
    echo "failed: $*" >&2
    exit 1
}

# drive SANITIZERS FLAGS...: all instruction sets at the same time.
drive() {
    local binary=$build/$1 isa sets=(generic avx2 avx512 avx512bf16 amx neon)
    local -A runs
    Scripts/build-driver.sh "$binary" "-fsanitize=$1" -fno-sanitize-recover=all "${@:2}"
    for isa in "${sets[@]}"; do
        LMK_ISA=$isa quietly "$binary-$isa.log" "$binary" Tests/Conformance/*.safetensors &
        runs[$isa]=$!
    done
    for isa in "${sets[@]}"; do
        wait "${runs[$isa]}"
        # An instruction set that the CPU does not have is another one: that one has its turn.
        ! grep -q "^isa $isa\$" "$binary-$isa.log" || echo "driver, $1, $isa: no findings"
    done
}
drive address,undefined "${outlined[@]}"
# The runtime of Swift's clang refers to libdispatch.
drive thread "-L$libraries" "-Wl,-rpath,$libraries" -ldispatch -lBlocksRuntime

if [ "${1:-}" = driver ]; then exit 0; fi

# test_swift SANITIZER PRELOAD OPTIONS...
test_swift() {
    local options=(-c release -Xswiftc -enable-testing -Xlinker -fuse-ld=lld "--sanitize=$1" --scratch-path ".build/$1")
    local flag
    [ "$1" = thread ] || for flag in "${outlined[@]}"; do options+=(-Xcc "$flag"); done
    echo "building the tests with the $1 sanitizer"
    quietly "$build/$1-build.log" swift build --build-tests "${options[@]}"
    LD_PRELOAD=$2 quietly "$build/$1-test.log" swift test --skip-build --disable-xctest "${options[@]}" "${@:3}"
    if ! grep -aq 'Test run with [1-9].* passed' "$build/$1-test.log"; then
        echo "no test ran: see $build/$1-test.log" >&2
        exit 1
    fi
    echo "Swift tests, $1: $(grep -ao 'with [0-9]* tests' "$build/$1-test.log" | tail -n 1), no findings"
}
test_swift address ""
# libomp is not instrumented, so its teams would look like races: ours stand in for it.
Scripts/build-driver.sh $build/libthreads.so -t -shared -fPIC
test_swift thread "$PWD/$build/libthreads.so" --filter '[Tt]hread|[Cc]oncurrent|CrossEntropy'
