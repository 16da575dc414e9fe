#!/usr/bin/env bash
# Measures that cross-entropy over 256,000 classes stays within its memory budget.
set -euo pipefail
cd "$(dirname "$0")/.."
Scripts/build-driver.sh .build/driver/memory -m -lomp5
for mebibytes in 16 64; do .build/driver/memory $mebibytes; done
