#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Prints those of the named Debian packages that are not installed, each behind a space.
for package in "$@"; do
	dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
		printf ' %s' "$package"
done
