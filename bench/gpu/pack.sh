#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Puts all that the GPU bench needs into one folder, to be carried to a machine that has a GPU, nvcc and
# a Python with PyTorch and Triton, and need not have anything else: packs/ pack.sh [FOLDER]
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
out=${1:-$root/build/gpu-bench}
build=${SHADOWSERVE_BUILD:-$root/build/release}
rm -rf "$out"
mkdir -p "$out/build/daemon" "$out/lib" "$out/tools" "$out/bench"
cp "$build/daemon/shadowserved" "$out/build/daemon/"
cp -L "$build/src/client/libshadowserve.so" "$out/lib/"
for tool in redis-server ip tc sysctl; do
	cp -L "$(command -v "$tool")" "$out/tools/"
done
# The other machine's own C library and compiler run times are newer or equal.
ldd "$out/build/daemon/shadowserved" "$out"/lib/*.so "$out"/tools/* | awk '$3 ~ "^/" {print $3}' |
	grep -vE '/(libc|libm|libstdc\+\+|libgcc_s|libz)\.so' | sort -u | xargs -I{} cp -Ln {} "$out/lib/"
cp -r "$root/bench/gpu" "$root/bench/netns.py" "$root/bench/servers.py" "$out/bench/"
cp -r "$root/python" "$out/"
find "$out" -name __pycache__ -prune -exec rm -rf {} +
du -sh "$out"
