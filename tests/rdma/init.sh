#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# /init of the guest that has a software RDMA device (tests/rdma/guest.py puts it there): brings the
# device up on a network of its own, runs the programs listed in /programs, one a line, and ends the
# machine. What it prints is read by guest.py.
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /tmp /run
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
echo "guest: booted $(uname -r) after $(cut -d' ' -f1 /proc/uptime) s"

while read -r module; do
	insmod "/modules/$module" || echo "guest: $module cannot be loaded"
done </modules/order

ip link set lo up
ip link add rdma0 type dummy
ip link set rdma0 address 02:00:00:00:00:09 mtu 9000 up
ip addr add 10.9.0.1/24 dev rdma0
rdma link add rxe0 type rxe netdev rdma0
rdma link
# The port's addresses come a moment later.
for i in 1 2 3 4 5 6 7 8 9 10; do
	grep -q ffff:0a09:0001 /sys/class/infiniband/rxe0/ports/1/gids/* 2>/dev/null && break
	sleep 0.2
done
ulimit -l unlimited

# What sanitizers have to say, of any process, killed ones too.
report=/tmp/sanitizer
export ASAN_OPTIONS=log_path=$report UBSAN_OPTIONS=log_path=$report:print_stacktrace=1
export TSAN_OPTIONS=log_path=$report
while read -r name command; do
	echo "guest: begins $name"
	sh -c "$command" </dev/null 2>&1
	status=$?
	for found in $report.*; do
		[ ! -e "$found" ] || { cat "$found" && rm "$found" && status=99; }
	done
	echo "guest: ended $name $status after $(cut -d' ' -f1 /proc/uptime) s"
done </programs

echo "guest: done after $(cut -d' ' -f1 /proc/uptime) s"
poweroff -f
