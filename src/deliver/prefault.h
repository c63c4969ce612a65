/* SPDX-License-Identifier: Apache-2.0 */
/*
 * prefault.h - maps the pages of a shared region into this process before a fetch meets them.
 *
 * The first write to a page that is not mapped yet costs a fault of 1 to 3 microseconds, more than
 * decoding what belongs there. Only pages that exist are mapped: who allocates one is charged for
 * it, and that is the engine.
 */
#ifndef SSV_DELIVER_PREFAULT_H
#define SSV_DELIVER_PREFAULT_H

#include <stdint.h>

struct prefault;

/* Begin, on a thread of its own. fd is the memory's; it is not needed after the call. NULL: not
 * possible here; fetches then fault. */
struct prefault *prefault_begin(uint8_t *map, uint64_t bytes, int fd);

/* Stop within milliseconds and free it; takes NULL. The mapping must still be there. */
void prefault_end(struct prefault *prefault);

#endif
