/* SPDX-License-Identifier: Apache-2.0 */
/* doctor.h - how the checks of `shadowserve doctor` report. */
#ifndef SSV_CLI_DOCTOR_H
#define SSV_CLI_DOCTOR_H

#include <cJSON.h>
#include <stdbool.h>

#include "base/base.h"

enum verdict {
	VERDICT_FINE = 0,
	VERDICT_NOTE = 1,    /* works, but slower or less */
	VERDICT_PROBLEM = 2, /* something will not work */
};

struct doctor {
	cJSON *checks;
	uint32_t counts[3];
};

/* One finding; advice is shown unless it is fine. */
void doctor_say(struct doctor *doctor, enum verdict verdict, const char *name, const char *advice,
		const char *format, ...) SSV_PRINTF(5, 6);

/* doctor_daemon.c */
struct doctor_daemon {
	bool answers, relayed; /* relayed: by a relay, for a card on another machine */
	bool silent;           /* somebody listens, but no state came */
	char *store;           /* its URI without password, as the daemon says it; or NULL */
};

/* socket: NULL for the usual one. *ret_daemon is what it said; doctor_daemon_clear() it. */
void doctor_check_daemon(struct doctor *doctor, const char *socket, uint32_t timeout_ms,
			 struct doctor_daemon *ret_daemon);
/* named: NULL for $SHADOWSERVE_STORE, then the daemon's, then that of one that was given none. */
void doctor_check_store(struct doctor *doctor, const struct doctor_daemon *daemon,
			const char *named, uint32_t timeout_ms);
void doctor_daemon_clear(struct doctor_daemon *daemon);

/* doctor_software.c */
void doctor_library_versions(char *text, size_t text_bytes);
void doctor_check_python(struct doctor *doctor, const char *python);

#endif
