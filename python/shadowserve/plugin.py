# SPDX-License-Identifier: Apache-2.0
"""Entry point of group vllm.general_plugins: makes the connector known by its name."""

from __future__ import annotations


def register() -> None:
    """Called by vLLM in each of its processes, possibly more than once."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    if "ShadowServeConnector" not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(
            "ShadowServeConnector", "shadowserve.vllm", "ShadowServeConnector"
        )
