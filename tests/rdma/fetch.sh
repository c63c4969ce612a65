#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# In the guest: a card with a file: store, a relay whose way is rdma, and an engine behind it.
# usage: fetch.sh FOLDER (of the programs)
mkdir -p /tmp/store
rm -f /tmp/*.sock /tmp/*.log
"$1"/shadowserved --socket /tmp/card.sock --store file:/tmp/store --arena 256MiB --workers 1 \
	--listen-tls 127.0.0.1:7400 --tls-cert /tests/card.pem --tls-key /tests/card.key \
	--tls-ca /tests/ca.pem --log-file /tmp/card.log &
card=$!
"$1"/shadowserve-relay --socket /tmp/relay.sock --card 127.0.0.1:7400 --way rdma \
	--call-timeout-ms 20000 --tls-cert /tests/host.pem --tls-key /tests/host.key \
	--tls-ca /tests/ca.pem --log-file /tmp/relay.log &
relay=$!
for i in 1 2 3 4 5 6 7 8 9 10; do
	[ -S /tmp/relay.sock ] && [ -S /tmp/card.sock ] && break
	sleep 1
done
"$1"/test_rdma_fetch /tmp/relay.sock $relay
status=$?
kill $relay $card
wait $relay || status=1
wait $card || status=1
grep -a 'session ends' /tmp/relay.log # how many messages passed
[ $status = 0 ] || cat /tmp/card.log /tmp/relay.log
exit $status
