/* SPDX-License-Identifier: Apache-2.0 */
/*
 * detach.h - become a background process whose starter learns how that went.
 *
 * The starter waits for one report over a pipe. The daemon is a grandchild in a session of its own,
 * with no descriptor of the starter's open. It is that process that must listen: a client's pidfd
 * is of the process that called listen().
 */
#ifndef SSV_DAEMON_DETACH_H
#define SSV_DAEMON_DETACH_H

#include "base/base.h"

/**
 * Returns in the daemon only, with the descriptor to report to; the starter exits with what is
 * reported. Errors (in the starter): -errno.
 */
SSV_MUST_CHECK int detach(int *ret_report);

/* Tell the starter: exit with status, print text unless it is "". Closes the descriptor. */
void detach_report(int report, int status, const char *text);

#endif
