#!/usr/bin/env bash
# The elementwise functions and conversions over every float32, against double: three minutes of processor time.
set -euo pipefail
cd "$(dirname "$0")/.."
swift=$(command -v swift) && clang=$(dirname "$(readlink -f "$swift")")/clang
mkdir -p .build/driver
"$clang" -O2 -std=gnu11 -ICSources/CLMKCore/include -ICSources/CLMKCore/internal \
    Tests/Exhaustive/elementwise.c CSources/CLMKCore/*.c CSources/CLMKCore/kernels/*.c -lm -lomp5 -pthread \
    -o .build/driver/exhaustive
.build/driver/exhaustive all "${1:-1}"
