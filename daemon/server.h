/* SPDX-License-Identifier: Apache-2.0 */
/*
 * server.h - the control thread: one epoll loop over the listening socket, sessions, their
 * processes, the plane's wake-up and signals. It never blocks elsewhere and never decodes data.
 */
#ifndef SSV_DAEMON_SERVER_H
#define SSV_DAEMON_SERVER_H

#include "config.h"
#include "listener.h"
#include "listener_tls.h"
#include "plane/plane.h"
#include "worker_thread.h"

/**
 * Serve until a signal or idleness asks for the end, then drain.
 *
 * Ownership: everything is borrowed for the call; the listener is stopped when it returns.
 * Returns 0 when all was drained, -ETIMEDOUT when drain_timeout_ms cut it short, or what made
 * serving impossible with one line in error (SSV_ERROR_TEXT_MAX * 2 bytes). SIGTERM, SIGINT and
 * SIGHUP must be blocked in every thread.
 */
SSV_MUST_CHECK int server_run(const struct config *config, struct plane *plane,
			      struct listener *listener, struct listener_tls *listener_tls,
			      const struct worker_threads *threads, char *error);

#endif
