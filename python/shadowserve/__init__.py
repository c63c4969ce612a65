# SPDX-License-Identifier: Apache-2.0
"""ShadowServe: KV caches of LLM engines kept in a store, moved by a data plane of their own.

``shadowserve.binding`` is the C library, one to one. ``shadowserve.vllm`` is the connector for
vLLM. Importing this package loads neither.
"""

__version__ = "0.1.0"
