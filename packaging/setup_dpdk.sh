#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs DPDK with its compression drivers, for the dpdk inflate engine (docs/inflate.md): 20
# seconds and 170 MB. Nothing else needs it. Build folders that exist are configured again.
# usage: setup_dpdk.sh [--if-possible]: without root or packages, say so and go on
set -eu

packages="libdpdk-dev librte-compress-zlib23 librte-compress-mlx5-23"
# Debian has no ISA-L driver for other processors.
[ "$(dpkg --print-architecture)" != amd64 ] || packages="$packages librte-compress-isal23"

missing=""
for package in $packages; do
	dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
		missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
	echo "setup: no DPDK, and not root: the dpdk inflate engine is left out" >&2
	[ "${1:-}" = --if-possible ]
	exit
fi
echo "setup: installing DPDK:$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
# shellcheck disable=SC2086
if ! apt-get -qq install -y --no-install-recommends $missing >/dev/null; then
	echo "setup: DPDK cannot be installed: the dpdk inflate engine is left out" >&2
	[ "${1:-}" = --if-possible ]
	exit
fi
for build in build/*/build.ninja; do
	[ ! -e "$build" ] || meson setup --reconfigure "${build%/build.ninja}" >/dev/null
done
echo "setup: DPDK done"
