#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs the Debian packages that building, testing and the demo need; does nothing when all are
# there. Needs root only when something is missing.
set -eu

packages="gcc g++ libc6-dev make pkg-config meson ninja-build git ca-certificates
	gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
	libssl-dev zlib1g-dev libdeflate-dev libisal-dev libzstd-dev liblz4-dev libcyaml-dev libyaml-dev libcjson-dev
	libcmocka-dev libasan8 libubsan1 libtsan2 redis-server redis-tools iproute2 iperf3 procps
	python3 python3-venv python3-dev libnuma1"

# shellcheck disable=SC2086
missing=$("${0%/*}/missing.sh" $packages)
[ -n "$missing" ] || exit 0

echo "setup: installing system packages:$missing"
if [ "$(id -u)" != 0 ]; then
	echo "setup: run as root once, or: apt-get install -y --no-install-recommends$missing" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
# RUNLEVEL=1: install Redis without starting it as a service; tests start their own.
# shellcheck disable=SC2086
RUNLEVEL=1 apt-get -qq install -y --no-install-recommends $missing >/dev/null
echo "setup: system packages done"
