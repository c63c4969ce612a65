/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slow_way.h - a delivery way that behaves as a copy engine does: blocks are staged, bytes move
 * some polls after they were submitted, in any order, and now and then a move fails.
 */
#ifndef SSV_TEST_SLOW_WAY_H
#define SSV_TEST_SLOW_WAY_H

#include "deliver/deliver.h"

/* plane_config.attach_region: attaches as region_attach() does, then slows address regions down. */
int slow_attach(const struct ssv_region *offer, const struct ssv_layout *layout,
		const struct deliver_owner *owner, struct region **ret_region, char *error);

/* Begin again with a seed; failures_per_mille of moves fail. */
void slow_way_reset(uint64_t seed, uint32_t failures_per_mille);
uint32_t slow_way_jobs_out(void);

#endif
