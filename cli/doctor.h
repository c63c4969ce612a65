/* SPDX-License-Identifier: Apache-2.0 */
/* doctor.h - how the checks of `shadowserve doctor` report. */
#ifndef SSV_CLI_DOCTOR_H
#define SSV_CLI_DOCTOR_H

#include <cJSON.h>

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

/* doctor_software.c */
void doctor_library_versions(char *text, size_t text_bytes);
void doctor_check_python(struct doctor *doctor, const char *python);

#endif
