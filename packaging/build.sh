#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Configures a build folder once and builds it. usage: build.sh DIR [meson options]
set -eu

dir=$1
shift
log=$dir.log
mkdir -p "$(dirname "$dir")"
if [ ! -e "$dir/build.ninja" ]; then
	echo "build: configuring $dir"
	meson setup "$dir" "$@" >"$log" 2>&1 || {
		cat "$log" >&2
		exit 1
	}
fi
ninja -C "$dir" >"$log" 2>&1 || {
	cat "$log" >&2
	exit 1
}
echo "build: $dir is up to date"
