#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs what the rdma way is built and tested with (docs/rdma.md): libibverbs, and QEMU with
# busybox for the guest that has a software RDMA device; 40 seconds and 300 MB. Nothing else needs
# it. Build folders that exist are configured again.
# usage: setup_rdma.sh [--if-possible]: without root or packages, say so and go on
set -eu

packages="libibverbs-dev ibverbs-providers iproute2 qemu-system-x86 busybox-static cpio"

missing=""
for package in $packages; do
	dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
		missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
	echo "setup: no packages for RDMA, and not root: its tests are left out" >&2
	[ "${1:-}" = --if-possible ]
	exit
fi
echo "setup: installing packages for RDMA:$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
# shellcheck disable=SC2086
if ! apt-get -qq install -y --no-install-recommends $missing >/dev/null; then
	echo "setup: packages for RDMA cannot be installed: its tests are left out" >&2
	[ "${1:-}" = --if-possible ]
	exit
fi
for build in build/*/build.ninja; do
	[ ! -e "$build" ] || meson setup --reconfigure "${build%/build.ninja}" >/dev/null
done
echo "setup: RDMA done"
