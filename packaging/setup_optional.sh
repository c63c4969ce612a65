#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs the packages of one optional part; nothing else needs them. Build folders that exist are
# configured again, so that the part is found.
#   dpdk  the dpdk inflate engine (docs/inflate.md): 20 seconds and 170 MB
#   rdma  the rdma way (docs/rdma.md): libibverbs, and QEMU with busybox for the guest that has a
#         software RDMA device; 40 seconds and 300 MB
# usage: setup_optional.sh dpdk|rdma [--if-possible]: without root or packages, say so and go on
set -eu

case ${1:-} in
dpdk)
	packages="libdpdk-dev librte-compress-zlib23 librte-compress-mlx5-23"
	# Debian has no ISA-L driver for other processors.
	[ "$(dpkg --print-architecture)" != amd64 ] || packages="$packages librte-compress-isal23"
	without="the dpdk inflate engine is left out"
	;;
rdma)
	packages="libibverbs-dev ibverbs-providers iproute2 qemu-system-x86 busybox-static cpio"
	without="tests of the rdma way are left out"
	;;
*)
	echo "setup: \"${1:-}\" is no optional part, expected dpdk or rdma" >&2
	exit 2
	;;
esac

give_up() {
	echo "setup: $1: $without" >&2
	[ "$2" = --if-possible ]
	exit
}

# shellcheck disable=SC2086
missing=$("${0%/*}/missing.sh" $packages)
[ -n "$missing" ] || exit 0

[ "$(id -u)" = 0 ] || give_up "packages of $1 are missing, and not root" "${2:-}"
echo "setup: installing packages of $1:$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
# shellcheck disable=SC2086
apt-get -qq install -y --no-install-recommends $missing >/dev/null ||
	give_up "packages of $1 cannot be installed" "${2:-}"
for build in build/*/build.ninja; do
	[ ! -e "$build" ] || meson setup --reconfigure "${build%/build.ninja}" >/dev/null
done
echo "setup: packages of $1 are there"
