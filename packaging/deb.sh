#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes build/shadowserve_VERSION_ARCH.deb for the Debian that it runs on, from what Meson installs:
# programs, library, header, units, configuration. arm64 is built by the cross compiler on any
# machine, without DPDK. Starts nothing when installed. usage: deb.sh amd64|arm64
set -eu

arch=$1
cd "$(dirname "$0")/.."
build=build/deb-$arch
tree=$build-tree
case $arch in
amd64)
	triple=x86_64-linux-gnu
	strip=strip
	cross=
	;;
arm64)
	triple=aarch64-linux-gnu
	strip=$triple-strip
	packaging/cross/sysroot.sh build/aarch64-sysroot
	cross="--cross-file=build/aarch64-sysroot/constants.ini --cross-file=packaging/cross/aarch64.ini"
	;;
*)
	echo "deb: \"$arch\": expected amd64 or arm64" >&2
	exit 2
	;;
esac

# shellcheck disable=SC2086
packaging/build.sh "$build" $cross --prefix=/usr --libdir="lib/$triple" -Dtests=false
rm -rf "$tree"
DESTDIR=$PWD/$tree meson install -C "$build" --quiet --no-rebuild
rm -f "$tree/usr/lib/$triple"/*.a
for file in "$tree"/usr/bin/* "$tree/usr/lib/$triple"/*.so.*; do
	[ -h "$file" ] || "$strip" --strip-unneeded "$file"
done

# Each library that is linked, as the package that has it here: names are alike on all architectures.
depends="libc6 (>= $(dpkg-query -W -f '${Version}' libc6 | sed 's/-.*//'))"
needed=$(LC_ALL=C readelf -d "$tree"/usr/bin/* | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | sort -u)
for library in $needed; do
	owner=$(dpkg-query -S "*/$library" 2>/dev/null | grep -v -e -cross: | sed 's/[:,].*//' | head -n 1)
	case $library,$owner in
	ld-linux*) continue ;;
	*,) echo "deb: no installed package has $library" >&2 && exit 1 ;;
	*,libc6) continue ;;
	esac
	case ", $depends," in *", $owner,"*) ;; *) depends="$depends, $owner" ;; esac
done

units=$tree/lib/systemd/system
mkdir -p "$tree/DEBIAN" "$units" "$tree/etc/shadowserve" "$tree/usr/lib/sysusers.d" \
	"$tree/usr/share/doc/shadowserve"
for unit in shadowserved shadowserved-smartnic shadowserve-relay; do
	sed 's,/usr/local/bin,/usr/bin,' "packaging/$unit.service" >"$units/$unit.service"
done
install -m 640 packaging/shadowserved.yaml "$tree/etc/shadowserve/shadowserved.yaml"
install -m 640 packaging/shadowserved-smartnic.yaml "$tree/etc/shadowserve/card.yaml"
echo 'u shadowserve - "ShadowServe" - -' >"$tree/usr/lib/sysusers.d/shadowserve.conf"
install -m 644 LICENSE "$tree/usr/share/doc/shadowserve/copyright"
printf '/etc/shadowserve/%s\n' shadowserved.yaml card.yaml >"$tree/DEBIAN/conffiles"

version=$(sed -n "s/^  version: '\(.*\)',/\1/p" meson.build)
cat >"$tree/DEBIAN/control" <<END
Package: shadowserve
Version: $version
Architecture: $arch
Maintainer: ShadowServe <dev@shadowserve.invalid>
Section: net
Priority: optional
Installed-Size: $(du -sk "$tree" | cut -f1)
Depends: $depends
Recommends: ibverbs-providers
Description: data plane that keeps KV caches of LLM engines in a store
 The daemon shadowserved (on the engine's host or on a SmartNIC), the relay for hosts whose data
 plane is on another machine, the command line, the library libshadowserve and its header.
END
cat >"$tree/DEBIAN/postinst" <<'END'
#!/bin/sh
# Files may hold a store's password: the daemon's user reads them, nobody else.
set -e
if [ "$1" = configure ]; then
	if command -v systemd-sysusers >/dev/null; then
		systemd-sysusers /usr/lib/sysusers.d/shadowserve.conf
		chgrp shadowserve /etc/shadowserve/*.yaml
	fi
	if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
	ldconfig
fi
END
cat >"$tree/DEBIAN/prerm" <<'END'
#!/bin/sh
set -e
if [ "$1" = remove ] && command -v systemctl >/dev/null; then
	now=
	[ ! -d /run/systemd/system ] || now=--now
	systemctl disable -q $now shadowserve-relay shadowserved shadowserved-smartnic || true
fi
END
cat >"$tree/DEBIAN/postrm" <<'END'
#!/bin/sh
# Purged, nothing of the package's own is left: the cache goes too. The user stays, as Debian's
# system users do, and so do files that others put into /etc/shadowserve: keys, relay.yaml.
set -e
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
if [ "$1" = purge ]; then
	rm -rf /var/cache/shadowserve
	[ ! -d /etc/shadowserve ] || rmdir --ignore-fail-on-non-empty /etc/shadowserve
fi
if [ "$1" = remove ]; then ldconfig; fi
END
chmod 755 "$tree/DEBIAN/postinst" "$tree/DEBIAN/prerm" "$tree/DEBIAN/postrm"

SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || date +%s)
export SOURCE_DATE_EPOCH
out=build/shadowserve_${version}_$arch.deb
dpkg-deb --root-owner-group --build "$tree" "$out" >"$build.deb.log"
echo "deb: $out"
