/* SPDX-License-Identifier: Apache-2.0 */
/* model_digest.h - who a model is, as the connector says it: asked of the Python package. */
#ifndef SSV_CLI_MODEL_DIGEST_H
#define SSV_CLI_MODEL_DIGEST_H

#include <stdint.h>

/* 64 digits of the model in a folder, computed with in this type, and a zero byte. Returns 0, or
 * the exit code of an error that was printed under the command's name. */
int model_digest(const char *command, const char *folder, uint8_t dtype, char digest[65]);

#endif
