# SPDX-License-Identifier: Apache-2.0
"""The connector for vLLM. Users name it by ShadowServeConnector alone (docs/vllm.md)."""

from shadowserve.vllm.connector import ShadowServeConnector

__all__ = ["ShadowServeConnector"]
