/* SPDX-License-Identifier: Apache-2.0 */
/*
 * relay.h - the control thread of shadowserve-relay: one epoll loop over the engines' socket, the
 * sessions on both sides, the engines' processes, the way's descriptor and signals. It sleeps until
 * one of them has something, or a deadline of a session is due.
 */
#ifndef SSV_RELAY_RELAY_H
#define SSV_RELAY_RELAY_H

#include "config.h"
#include "listener.h"
#include "pair.h"

/**
 * Serve until SIGTERM or SIGINT, then end the sessions. Everything is borrowed for the call.
 * Returns 0, or what made serving impossible with one line in error (SSV_ERROR_TEXT_MAX * 2).
 */
SSV_MUST_CHECK int relay_run(const struct config *config, struct pair_world *world,
			     struct listener *listener, char *error);

/* ways.c: open the way that config->way names; host of its address in *ret_here (family 0: that of
 * each session), what to print about it in text (SSV_ERROR_TEXT_MAX). Mistakes in error. */
SSV_MUST_CHECK int way_open(const struct config *config, struct relay_way *ret_way,
			    struct sockaddr_storage *ret_here, char *text, char *error);

#endif
