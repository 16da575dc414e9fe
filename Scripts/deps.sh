#!/usr/bin/env bash
# Installs what the package needs beyond a Swift toolchain: the OpenMP runtime, and OpenBLAS for the benchmarks. Names given as
# arguments are Debian packages to install as well.
set -euo pipefail

if [ "$(uname)" = Darwin ]; then
    exit 0 # threads come from libdispatch, and the benchmarks' baseline from Accelerate
fi

missing=()
for package in libomp-dev libopenblas-dev "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "These packages are missing, and installing them takes root: ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
fi
if ! command -v apt-get >/dev/null; then
    echo "These Debian packages are missing, and there is no apt-get to install them: ${missing[*]}" >&2
    echo "Install your system's packages of the LLVM OpenMP runtime (libomp) and OpenBLAS, then run this again." >&2
    exit 1
fi
echo "Installing ${missing[*]}"
"${as_root[@]}" apt-get update -qq
if ! DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; then
    echo "apt-get could not install ${missing[*]}" >&2
    exit 1
fi
