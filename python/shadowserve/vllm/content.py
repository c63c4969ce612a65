# SPDX-License-Identifier: Apache-2.0
"""What besides its tokens shapes a request's KV, as digests for the key chain.

A LoRA adapter enters by its files, multimodal input by its tensors, the tenant by the salt of
the key root. A request that cannot be described by content has no keys and is never cached.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadowserve import model
from shadowserve.binding import CHUNK_TOKENS, KEY_BYTES
from shadowserve.vllm.media import Media

ADAPTERS_MAX = 4096


@dataclass
class _Adapter:
    """What the files of an adapter were when it was first seen. Written by the reading thread once:
    digest, or the reason why there is none."""

    folder: Path
    stamp: Any
    result: bytes | str | None = None


class Adapters:
    """Digests of LoRA adapters, read by a thread of their own; requests that come before it is done
    are not cached. Nor is an adapter whose files change while the engine runs: which of its
    contents the engine computed with cannot be told."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], _Adapter | None] = {}
        self._unread: queue.SimpleQueue[_Adapter | None] = queue.SimpleQueue()
        self._reader: threading.Thread | None = None

    def close(self) -> None:
        """The reader ends by itself; an adapter may take it seconds, and nobody waits."""
        self._unread.put(None)

    def digest(self, request: Any) -> bytes:
        """The digest, or model.NotKeyable."""
        place = (request.lora_int_id, request.lora_path)
        folder = Path(request.lora_path)
        if not folder.is_dir():
            raise model.NotKeyable(f"the adapter {request.lora_name} is in no local folder")
        if len(self._known) >= ADAPTERS_MAX and place not in self._known:
            raise model.NotKeyable(f"more than {ADAPTERS_MAX} adapters were used")
        stamp = model.adapter_stamp(folder)
        known = self._known.get(place)
        if place not in self._known or (request.load_inplace and known and known.stamp != stamp):
            known = self._known[place] = _Adapter(folder, stamp)
            self._read_later(known)
        if known is None or known.stamp != stamp:
            self._known[place] = None
            raise model.NotKeyable(f"the files of adapter {request.lora_name} have changed")
        if known.result is None:
            raise model.NotKeyable(f"the adapter {request.lora_name} has not been read yet")
        if isinstance(known.result, str):
            raise model.NotKeyable(known.result)
        return known.result

    def _read_later(self, adapter: _Adapter) -> None:
        self._unread.put(adapter)
        if self._reader is None:
            self._reader = threading.Thread(target=self._read, name="shadowserve-lora", daemon=True)
            self._reader.start()

    def _read(self) -> None:
        while (adapter := self._unread.get()) is not None:
            try:
                digest = model.adapter_digest(adapter.folder)
                unchanged = model.adapter_stamp(adapter.folder) == adapter.stamp
                adapter.result = digest if unchanged else f"{adapter.folder} changed while read"
            except (model.NotKeyable, OSError) as failure:
                adapter.result = str(failure)


class Content:
    """One request's digests, a chunk at a time."""

    def __init__(self, request: Any, adapters: Adapters, media: Media) -> None:
        """Raises model.NotKeyable."""
        if request.prompt_embeds is not None or request.prompt_is_token_ids is not None:
            raise model.NotKeyable("prompt embeddings have no identity by content")
        if request.pooling_params is not None or request.resumable:
            raise model.NotKeyable("pooling and streaming-input requests are not cached")
        lora = request.lora_request
        self._lora = adapters.digest(lora) if lora is not None else b""
        self._items: list[tuple[int, int, str]] = []
        for feature in request.mm_features:
            position = feature.mm_position
            about = f"{feature.modality}:{position.length}:{media.digest(feature).hex()}"
            self._items.append((position.offset, position.offset + position.length, about))

    def extra(self, first_chunk: int, chunks: int) -> bytes | None:
        """Digests of these chunks, 32 bytes each; None when there is nothing but tokens."""
        if not self._lora and not self._items:
            return None
        return b"".join(self._chunk(index) for index in range(first_chunk, first_chunk + chunks))

    def _chunk(self, index: int) -> bytes:
        start, end = index * CHUNK_TOKENS, (index + 1) * CHUNK_TOKENS
        items = [
            (item_start - start, about)
            for item_start, item_end, about in self._items
            if item_start < end and item_end > start
        ]
        if not self._lora and not items:
            return bytes(KEY_BYTES)
        return hashlib.sha256(model.canonical([self._lora.hex(), items])).digest()
