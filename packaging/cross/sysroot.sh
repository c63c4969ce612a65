#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Unpacks the libraries that ShadowServe links, built by Debian for aarch64, into DIR/root and writes
# DIR/constants.ini for Meson. Nothing is installed: the machine's own packages and architectures stay
# as they are. Does nothing when DIR is complete. usage: sysroot.sh DIR
set -eu

packages="libcmocka-dev libcmocka0 libdeflate-dev libdeflate0 zlib1g-dev zlib1g libzstd-dev libzstd1
	libisal-dev libisal2 libssl-dev libssl3 libcyaml-dev libcyaml1 libyaml-dev libyaml-0-2
	libcjson-dev libcjson1 liblz4-dev liblz4-1 libc6 libgcc-s1
	libibverbs-dev libibverbs1 libnl-3-dev libnl-3-200 libnl-route-3-dev libnl-route-3-200"

# shellcheck disable=SC2086
mkdir -p "$1"
dir=$(cd "$1" && pwd)
made_of="# $(echo $packages)"
! grep -qxF "$made_of" "$dir/constants.ini" 2>/dev/null || exit 0

rm -rf "$dir/root" "$dir/apt" "$dir/packages"
mkdir -p "$dir/root" "$dir/apt/lists/partial" "$dir/apt/cache/archives/partial" "$dir/packages"
: >"$dir/apt/status"
apt() {
	apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State="$dir/apt" \
		-o Dir::State::lists="$dir/apt/lists" -o Dir::State::status="$dir/apt/status" \
		-o Dir::Cache="$dir/apt/cache" -o APT::Sandbox::User="" "$@"
}
apt update
# shellcheck disable=SC2086
(cd "$dir/packages" && apt download $packages)
for package in "$dir/packages"/*.deb; do
	dpkg -x "$package" "$dir/root"
done
rm -rf "$dir/apt" "$dir/packages"
printf "%s\n[constants]\nsysroot = '%s'\n" "$made_of" "$dir/root" >"$dir/constants.ini"
echo "sysroot: $dir is complete"
