/* SPDX-License-Identifier: Apache-2.0 */
/* tally.c - the thread's own pointer; see tally.h. */
#include "base/tally.h"

#include <stddef.h>

_Thread_local struct tally *tally_of_thread = NULL;
