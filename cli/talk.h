/* SPDX-License-Identifier: Apache-2.0 */
/*
 * talk.h - a session of the program's own with a daemon, for the questions that libshadowserve does
 * not ask: RESET and TRACE. One question at a time, each answered within the timeout.
 *
 * What comes back is not trusted: an answer that is malformed, of another type or to another
 * question ends the command with a line that says so.
 */
#ifndef SSV_CLI_TALK_H
#define SSV_CLI_TALK_H

#include "base/message.h"

struct talk {
	const char *command; /* for errors */
	int fd;
	uint32_t timeout_ms;
	uint64_t id; /* of the last question */
	uint8_t *in; /* aligned to 8 */
	size_t in_bytes, in_room, taken;
};

/* Connect and say HELLO. Returns 0, or the exit code after printing why. path: NULL for the usual
 * socket. */
int talk_open(struct talk *talk, const char *command, const char *path, uint32_t timeout_ms);
void talk_close(struct talk *talk);

/* Ask; *ret_answer is lent until the next question. Returns 0, or the exit code after printing. */
int talk_reset(struct talk *talk, struct message_text *ret_state);
int talk_trace(struct talk *talk, uint32_t track, uint64_t from, struct message_events *ret_head,
	       struct message *ret_answer);

#endif
