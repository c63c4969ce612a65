#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs the GPU bench from a folder that pack.sh made: sh bench/gpu/run.sh [ARGUMENTS OF run.py]
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
nvcc -O3 -arch=native -shared -Xcompiler -fPIC -o "$root/lib/libgpubench.so" \
	"$root/bench/gpu/probe.cu" "$root/bench/gpu/decode_r16.cu"
export PATH="$PATH:$root/tools"
export LD_LIBRARY_PATH="$root/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export SHADOWSERVE_BUILD="$root/build" SHADOWSERVE_LIBRARY="$root/lib/libshadowserve.so"
exec python3 "$root/bench/gpu/run.py" --library "$root/lib/libgpubench.so" "$@"
