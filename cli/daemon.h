/* SPDX-License-Identifier: Apache-2.0 */
/* daemon.h - what the commands that ask a running daemon share: its socket and how to reach it. */
#ifndef SSV_CLI_DAEMON_H
#define SSV_CLI_DAEMON_H

#include "args.h"
#include "shadowserve.h"

#define STAT_BYTES_MAX (1u << 20)

extern const char *option_socket;
extern uint64_t option_timeout; /* milliseconds */

#define SOCKET_ARG                                                                          \
	{                                                                                   \
		"socket", "PATH",                                                           \
		    "the daemon's socket (default: $SHADOWSERVE_SOCKET, or the usual one)", \
		    ARG_TEXT, &option_socket, 0, 0                                          \
	}
#define TIMEOUT_ARG                                                                    \
	{                                                                              \
		"timeout", "MS", "give up after this long (default 2000)", ARG_NUMBER, \
		    &option_timeout, 1, 600000                                         \
	}

/* Connect, or print why not; *ret_exit is then the exit code. */
struct ssv *daemon_connect(const char *command, int *ret_exit);

#endif
