# SPDX-License-Identifier: Apache-2.0
"""What the scheduler's side and the workers' side of the connector tell each other.

A load and a store have a number of their own, never a request's name: a request may be loaded
twice, and a load may outlive its request. Both directions travel with vLLM's own messages, once a
step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)


@dataclass
class Load:
    number: int
    request_id: str
    keys: list[bytes]  # a rank's keys at its index
    blocks: list[int]
    first_token: int
    position: int
    deadline_ms: int


@dataclass
class Store:
    number: int
    keys: list[bytes]
    blocks: list[int]
    position: int
    exact: bool  # whatever the tier


@dataclass
class Orders(KVConnectorMetadata):
    """Scheduler to workers."""

    loads: list[Load] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)
    idle: bool = False  # nothing is computed in this step


@dataclass
class Reports(KVConnectorWorkerMetadata):
    """Workers to scheduler: by number, how many ranks are done, and the worst result."""

    loads: dict[int, int] = field(default_factory=dict)
    loaded_tokens: dict[int, int] = field(default_factory=dict)
    stores: dict[int, int] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        assert isinstance(other, Reports)
        for number, ranks in other.loads.items():
            self.loads[number] = self.loads.get(number, 0) + ranks
        for number, tokens in other.loaded_tokens.items():
            self.loaded_tokens[number] = min(tokens, self.loaded_tokens.get(number, tokens))
        for number, ranks in other.stores.items():
            self.stores[number] = self.stores.get(number, 0) + ranks
        self.dropped |= other.dropped
        return self

    def __bool__(self) -> bool:
        return bool(self.loads or self.stores)
