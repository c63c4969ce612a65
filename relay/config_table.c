/* SPDX-License-Identifier: Apache-2.0 */
/* config_table.c - what an operator can say to shadowserve-relay: every key, default and range. */
#include <assert.h>

#include "config_keys.h"
#include "plane/plane.h"

#define AT(member) offsetof(struct config, member)

const struct key_row config_keys[] = {
    {"socket", KEY_TEXT, AT(socket), NULL, 0, 0,
     "Unix socket to serve engines at; mode 0600 [$SHADOWSERVE_SOCKET]"},
    {"card", KEY_PATH, AT(card), "", 0, 0,
     "host:port of the daemon on the other machine (its listen_tls)"},
    {"card_name", KEY_PATH, AT(card_name), "", 0, 0,
     "name or address that the card's certificate must have; empty: the host of card"},
    {"tls_cert", KEY_PATH, AT(tls_cert), "", 0, 0, "this relay's certificate and chain, PEM"},
    {"tls_key", KEY_PATH, AT(tls_key), "", 0, 0, "its key, PEM, without a password"},
    {"tls_ca", KEY_PATH, AT(tls_ca), "", 0, 0, "whose certificate the card must have, PEM"},
    {"way", KEY_TEXT, AT(way), "tcp", 0, 0,
     "how the card reaches the engine's memory: tcp or rdma"},
    {"rdma_device", KEY_PATH, AT(rdma_device), "", 0, 0,
     "way rdma: device, device:port or device:port:gid index; empty: the first that is active"},
    {"data_listen", KEY_TEXT, AT(data_listen), "0.0.0.0:0", 0, 0,
     "host:port for the card's data connections; a host of 0.0.0.0 or [::] is offered as the "
     "address of the session's own end; port 0: any"},
    {"receive_core", KEY_CORE, AT(receive_core), "none", 0, 0,
     "core that the receiving thread is pinned to"},
    {"control_core", KEY_CORE, AT(control_core), "none", 0, 0,
     "core that the control thread is pinned to"},
    {"call_timeout_ms", KEY_COUNT, AT(call_timeout_ms), "800", 10, 60000,
     "for the card to answer a new session"},
    {"card_timeout_ms", KEY_COUNT, AT(card_timeout_ms), "5000", 100, 600000,
     "silence of the card while requests wait, after which it is lost"},
    {"sessions", KEY_COUNT, AT(sessions), "64", 1, PLANE_SESSIONS_MAX, "connected engines"},
    {"log_level", KEY_LEVEL, AT(log_level), "info", 0, 0, "lines of this level and above"},
    {"log_file", KEY_PATH, AT(log_file), "", 0, 0, "appended to; empty: stderr"},
};
const uint32_t config_keys_count = ARRAY_COUNT(config_keys);
static_assert(ARRAY_COUNT(config_keys) <= KEYS_MAX, "key_texts holds them");

const struct config_program config_program = {
    .name = "shadowserve-relay",
    .summary = "serve engines of this machine from a data plane on another",
    .example = "shadowserve-relay --card card.internal:7400 --tls-cert host.pem --tls-key host.key "
	       "--tls-ca ca.pem",
    .exits = "0 ended as asked, 1 cannot run, 2 configuration mistake,\n"
	     "3 another daemon or relay serves the socket",
    .notes = "",
};
