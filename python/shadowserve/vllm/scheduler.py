# SPDX-License-Identifier: Apache-2.0
"""The scheduler's side: what is fetched, what is stored, which blocks are held.

It never blocks: a lookup that is not answered in time (_patience) counts as a miss. A block is held
(pinned in vLLM's pool) from the moment the daemon may touch it until every rank has reported that
it does not any more; vLLM frees blocks of preempted and finished requests without asking. Only KV
that is computed and confirmed is stored. No request is loaded again after a load that failed.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from logging import Logger
from typing import Any

from shadowserve import binding, model
from shadowserve.binding import CHUNK_TOKENS, KEY_BYTES, KEYS_MAX, Op, Session
from shadowserve.link import Link
from shadowserve.options import Options
from shadowserve.vllm.admission import Admission
from shadowserve.vllm.content import Adapters, Content
from shadowserve.vllm.media import Media
from shadowserve.vllm.messages import Load, Orders, Reports, Store
from shadowserve.vllm.stats import ShadowServeStats
from shadowserve.vllm.support import Served

LOOKUP_WAIT_S = 0.020
LOOKUP_SHARE = 0.1  # of the time that computing would take: a lookup may take so long instead
SILENT_AFTER_S = 1.0  # no answer for so long: do not wait for the daemon at all
PINNED_SHARE = 0.02
RECENT_S = 5.0  # a captured chunk may not be in the store yet, and is not stored again
RECENT_MAX = 65536
OFFERS_MAX = 4096
OFFER_TRIES = 8  # of a chunk that an overloaded daemon dropped
OFFER_DELAY_S = 0.01  # before the second try; twice as long before each further one
TAIL_SHARE = 8  # a tail is stored when so many times its tokens lie in whole chunks before it
KEEP_STEPPING_S = 10.0  # pins older than this do not keep an idle engine stepping
SALTS_MAX = 1024
IDLE_POLL_MS = 1
DEADLINE_MIN_MS = 50


@dataclass
class _Tail:
    """The whole blocks between a prompt's last whole chunk and its last token: a short chunk."""

    position: int
    tokens: int
    keys: list[bytes]  # one of each rank
    stored: bool = False  # in the store, or offered to it

    @property
    def end(self) -> int:
        return self.position + self.tokens


@dataclass
class _Request:
    request: Any
    roots: tuple[bytes, ...]
    content: Content
    keys: list[bytes]  # of each rank, 32 bytes a whole chunk
    tail: _Tail | None = None
    lookup: int = 0  # the lookup under way, 0 for none
    asked_at: float = 0.0
    asked_chunks: int = 0
    answered: bool = False
    late: bool = False
    found_tokens: int = 0
    estimate_us: int = 0
    local_tokens: int = 0  # as last told by vLLM
    stored_chunks: int = 0  # in the store, or offered to it
    base_tokens: int | None = None  # confirmed when it was scheduled; its blocks may be unwritten
    loads: int = 0
    loads_failed: bool = False
    preemptions: int = 0
    declined: bool = False
    may_store: bool = True


@dataclass
class _Offer:
    """A chunk that is computed and waits to be stored. Its blocks are not held; each must still
    carry the hash it had."""

    keys: list[bytes]
    position: int
    blocks: list[int]
    hashes: list[Any]
    tries: int = 0
    not_before: float = 0.0


@dataclass
class _Held:
    """Blocks that the daemon may touch."""

    blocks: list[Any]
    since: float
    ranks: int
    request_id: str = ""
    tokens: int = 0
    offer: _Offer | None = None


class Scheduler:
    def __init__(self, served: Served, options: Options, socket: Any, logger: Logger) -> None:
        """socket(): the daemon's, which it may have to start."""
        self._served = served
        self._options = options
        self._logger = logger
        self._ranks = len(served.shapes)
        self._socket = socket
        self._link = Link(self._open_session, "scheduler", logger)
        self._pool: Any = None
        self._name_space = options.namespace
        self._roots: OrderedDict[str, tuple[bytes, ...]] = OrderedDict()
        self._adapters = Adapters()
        self._media = Media()
        self._numbers = itertools.count(1)
        self._requests: dict[str, _Request] = {}
        self._lookups: dict[int, _Request] = {}
        self._last_answer = 0.0
        self._oldest_question: float | None = None
        self._loads: dict[int, _Held] = {}
        self._stores: dict[int, _Held] = {}
        self._storing: set[bytes] = set()
        self._recent: OrderedDict[bytes, float] = OrderedDict()
        self._offers: deque[_Offer] = deque()
        self._store_blocks = 0
        self._new_loads: list[Load] = []
        self._new_stores: list[Store] = []
        self._admission = Admission()
        self.stats = ShadowServeStats()
        self._uncacheable_said: set[str] = set()

    def connect(self) -> None:
        self._link.connect()

    def bind_pool(self, pool: Any) -> None:
        self._pool = pool

    def close(self) -> None:
        self._adapters.close()
        self._link.close()

    def _open_session(self) -> Session:
        return Session.connect(
            self._socket(), self._served.engine_id, 0, self._ranks, connect_timeout_ms=1000
        )

    # ---- a request arrives -----------------------------------------------------------------------

    def on_new_request(self, request: Any) -> None:
        self.stats.count("requests")
        try:
            content = Content(request, self._adapters, self._media)
        except (model.NotKeyable, OSError) as reason:
            self._uncacheable(str(reason))
            return
        state = _Request(request, self._roots_of(request.cache_salt or ""), content, [])
        state.keys = [b""] * self._ranks
        state.may_store = self._served.may_store
        self._requests[request.request_id] = state
        self._ask(state)

    def _uncacheable(self, reason: str) -> None:
        self.stats.count("uncacheable")
        if reason not in self._uncacheable_said and len(self._uncacheable_said) < 100:
            self._uncacheable_said.add(reason)
            self._logger.info("ShadowServe: not cached: %s", reason)

    def _roots_of(self, salt: str) -> tuple[bytes, ...]:
        roots = self._roots.get(salt)
        if roots is None:
            roots = tuple(
                binding.key_make_root(self._served.key_root(rank, self._name_space, salt))
                for rank in range(self._ranks)
            )
            self._roots[salt] = roots
            while len(self._roots) > SALTS_MAX:
                self._roots.popitem(last=False)
        return roots

    def _extend_keys(self, state: _Request, chunks: int) -> None:
        """Keys of the first chunks, of every rank."""
        have = len(state.keys[0]) // KEY_BYTES
        if have >= chunks:
            return
        tokens = state.request.all_token_ids[have * CHUNK_TOKENS : chunks * CHUNK_TOKENS]
        extra = state.content.extra(have, chunks - have)
        for rank, root in enumerate(state.roots):
            previous = state.keys[rank][-KEY_BYTES:] or root
            state.keys[rank] += binding.key_chain(previous, tokens, extra)

    def _make_tail(self, state: _Request, chunks: int) -> _Tail | None:
        """What lies behind the whole chunks, when it is small beside them. Every engine cuts it at
        the same place, so that it is found by whoever has the same prompt."""
        position = chunks * CHUNK_TOKENS
        block = self._served.block_tokens
        tokens = (state.request.num_tokens - 1 - position) // block * block
        if not 0 < tokens < CHUNK_TOKENS or tokens * TAIL_SHARE > position:
            return None
        if (chunks + 1) * self._ranks > KEYS_MAX:
            return None
        ids = state.request.all_token_ids[position : position + tokens]
        extra = state.content.extra(chunks, 1)
        keys = [binding.key_chain(k[-KEY_BYTES:], ids, extra, tokens) for k in state.keys]
        return _Tail(position, tokens, keys)

    def _ask(self, state: _Request) -> None:
        """Look up every whole chunk that the request has tokens of, and its tail."""
        chunks = min(state.request.num_tokens // CHUNK_TOKENS, KEYS_MAX // self._ranks)
        state.answered, state.late, state.lookup = False, False, 0
        state.found_tokens = 0
        state.asked_chunks = chunks
        state.preemptions = state.request.num_preemptions
        state.asked_at = time.monotonic()
        if not chunks or self._link.session is None:
            state.answered = True
            return
        self._extend_keys(state, chunks)
        state.tail = self._make_tail(state, chunks)
        tails = state.tail.keys if state.tail else [b""] * self._ranks
        lists = zip(state.keys, tails, strict=True)
        keys = b"".join(keys[: chunks * KEY_BYTES] + tail for keys, tail in lists)
        number = next(self._numbers)
        question = binding.Request(
            Op.LOOKUP,
            number,
            keys=keys,
            ranks_count=self._ranks,
            min_tier=self._options.min_tier,
        )
        if not self._link.submit([question]):
            state.answered = True
            return
        state.lookup = number
        self._lookups[number] = state
        if self._oldest_question is None:
            self._oldest_question = state.asked_at

    def _poll(self, timeout_ms: int = 0) -> None:
        for done in self._link.poll(timeout_ms):
            self._last_answer = time.monotonic()
            state = self._lookups.pop(done.user_data, None)
            if state is None or state.lookup != done.user_data:
                continue
            state.lookup, state.answered = 0, True
            self._note_found(state, done.tokens // CHUNK_TOKENS)
            state.estimate_us = done.estimate_us
        if self._link.session is None:
            for state in self._lookups.values():
                state.lookup, state.answered = 0, True
            self._lookups.clear()
        if not self._lookups:
            self._oldest_question = None

    def _note_found(self, state: _Request, keys: int) -> None:
        """So many leading keys of the question are stored; the last one may be the tail's."""
        chunks = min(keys, state.asked_chunks)
        state.found_tokens = chunks * CHUNK_TOKENS
        asked = state.asked_chunks * CHUNK_TOKENS
        if state.tail is not None:
            asked = state.tail.end
            if keys > state.asked_chunks:
                state.tail.stored = True
                state.found_tokens = state.tail.end
        state.stored_chunks = max(state.stored_chunks, chunks)
        self.stats.count("lookups")
        self.stats.count("prompt_tokens", asked)
        self.stats.count("stored_hit_tokens", state.found_tokens)

    def _silent(self, now: float) -> bool:
        """Whether the daemon has left a question unanswered for long."""
        oldest = self._oldest_question
        return oldest is not None and now - max(oldest, self._last_answer) > SILENT_AFTER_S

    # ---- how much is there -----------------------------------------------------------------------

    def matched_tokens(self, request: Any, local_tokens: int) -> tuple[int | None, bool]:
        """vLLM's get_num_new_matched_tokens. None: ask again in the next step."""
        state = self._requests.get(request.request_id)
        if state is None or state.loads_failed or request.skip_reading_prefix_cache:
            return 0, False
        if not self._served.may_load:
            return 0, False
        if request.num_preemptions != state.preemptions:
            state.base_tokens, state.loads = None, 0
            self._ask(state)
        elif state.loads:
            return 0, False  # it was loaded, and nothing of it is left
        self._poll()
        if not state.answered:
            now = time.monotonic()
            if now - state.asked_at < self._patience(state) and not self._silent(now):
                return None, False
            if not state.late:
                state.late = True
                self.stats.count("lookups_late")
            return 0, False
        tokens = self._external_tokens(state, local_tokens)
        state.local_tokens = local_tokens
        return tokens, tokens > 0

    def _patience(self, state: _Request) -> float:
        """How long to wait for a lookup. An answer may stand behind other requests' KV on the link;
        a miss would cost more than waiting a little for it."""
        compute_s = self._admission.rate.seconds(state.asked_chunks * CHUNK_TOKENS)
        return max(LOOKUP_WAIT_S, LOOKUP_SHARE * compute_s)

    def _external_tokens(self, state: _Request, local_tokens: int) -> int:
        block = self._served.block_tokens
        leave_one = int(state.request.num_tokens) - 1  # its logits must be computed
        hit = min(state.found_tokens, leave_one) // block * block
        tokens = max(0, hit - local_tokens)
        if not tokens or self._link.session is None:
            return 0
        estimate_us = state.estimate_us * tokens / max(1, state.found_tokens)
        if self._options.admission == "always":
            return tokens
        if self._admission.admits(time.monotonic(), tokens, estimate_us):
            return tokens
        if not state.declined:
            state.declined = True
            self.stats.count("declined")
            self.stats.count("declined_tokens", tokens)
        return 0

    def allocated(self, request: Any, blocks: Any, tokens: int) -> None:
        """vLLM's update_state_after_alloc: from now on the load's blocks are held."""
        if tokens <= 0:
            return
        state = self._requests.get(request.request_id)
        if state is None:
            return
        block = self._served.block_tokens
        first = state.local_tokens // block
        block_ids = list(blocks.get_block_ids()[0][first : first + tokens // block])
        first_chunk = state.local_tokens // CHUNK_TOKENS
        end_chunk = -(-(state.local_tokens + tokens) // CHUNK_TOKENS)
        number = next(self._numbers)
        state.loads += 1
        self._admission.fetched()
        state.base_tokens = None
        self._new_loads.append(
            Load(
                number=number,
                request_id=request.request_id,
                keys=self._chunk_keys(state, first_chunk, end_chunk),
                blocks=block_ids,
                first_token=state.local_tokens - first_chunk * CHUNK_TOKENS,
                position=first_chunk * CHUNK_TOKENS,
                deadline_ms=self._deadline_ms(tokens),
            )
        )
        self._loads[number] = _Held(
            self._hold(block_ids), time.monotonic(), self._ranks, request.request_id, tokens
        )

    def _chunk_keys(self, state: _Request, first: int, end: int) -> list[bytes]:
        """Keys of these chunks of what was asked for; the one behind the whole ones is the tail."""
        whole = min(end, state.asked_chunks)
        keys = [keys[first * KEY_BYTES : whole * KEY_BYTES] for keys in state.keys]
        if end > whole:
            assert state.tail is not None
            keys = [head + tail for head, tail in zip(keys, state.tail.keys, strict=True)]
        return keys

    def _deadline_ms(self, tokens: int) -> int:
        """No longer than computing would take, where admission is by time."""
        limit = self._options.deadline_ms
        compute_ms = int(self._admission.rate.seconds(tokens) * 1000)
        if self._options.admission == "always" or not compute_ms:
            return limit
        return max(min(limit, DEADLINE_MIN_MS), min(limit, compute_ms))

    def _hold(self, block_ids: Sequence[int]) -> list[Any]:
        held = [self._pool.blocks[number] for number in block_ids]
        self._pool.touch(held)
        return held

    def _release(self, held: _Held) -> None:
        self._pool.free_blocks(reversed(held.blocks))

    # ---- each step -------------------------------------------------------------------------------

    def orders(self, output: Any) -> Orders:
        """vLLM's build_connector_meta: what the workers do in this step."""
        idle = not output.total_num_scheduled_tokens
        self._poll(IDLE_POLL_MS if idle and self._lookups else 0)
        self._admission.rate.scheduled(time.monotonic(), self._prefill_tokens(output))
        self._offer_confirmed(output)
        self._take_offers()
        orders = Orders(self._new_loads, self._new_stores, idle)
        self._new_loads, self._new_stores = [], []
        return orders

    def _prefill_tokens(self, output: Any) -> int:
        """Prompt tokens computed in this step; 0 when decoding has a part in it that matters."""
        return sum(count for count in output.num_scheduled_tokens.values() if count > 1)

    def _offer_confirmed(self, output: Any) -> None:
        started = {new.req_id for new in output.scheduled_new_reqs}
        started |= output.scheduled_cached_reqs.resumed_req_ids
        block_state = output.kv_connector_block_state
        for request_id in output.num_scheduled_tokens:
            state = self._requests.get(request_id)
            if state is None or not state.may_store:
                continue
            if request_id in started:
                state.base_tokens = self._confirmed(state.request)
                continue
            if self._new_chunks(state):
                self._offer(state, block_state.get_block_ids(request_id)[0])

    @staticmethod
    def _confirmed(request: Any) -> int:
        """Tokens whose KV is in place. Steps run ahead of their results; those do not count."""
        computed = int(request.num_computed_tokens) - int(request.num_in_flight_tokens)
        return max(0, min(computed, int(request.num_tokens)))

    def _new_chunks(self, state: _Request) -> bool:
        """A prefix hit may lie on blocks that another request fills in the very step that
        scheduled this one: nothing counts before a step of its own has come back."""
        confirmed = self._confirmed(state.request)
        if state.base_tokens is None or confirmed <= state.base_tokens:
            return False
        return confirmed // CHUNK_TOKENS > state.stored_chunks or self._tail_due(state, confirmed)

    @staticmethod
    def _tail_due(state: _Request, confirmed: int) -> bool:
        return state.tail is not None and not state.tail.stored and confirmed >= state.tail.end

    def _offer(self, state: _Request, block_ids: Sequence[int]) -> None:
        confirmed = min(self._confirmed(state.request), len(block_ids) * self._served.block_tokens)
        chunks = confirmed // CHUNK_TOKENS
        self._extend_keys(state, chunks)
        for index in range(state.stored_chunks, chunks):
            keys = [keys[index * KEY_BYTES : (index + 1) * KEY_BYTES] for keys in state.keys]
            self._offer_chunk(keys, index * CHUNK_TOKENS, CHUNK_TOKENS, block_ids)
        state.stored_chunks = max(state.stored_chunks, chunks)
        tail = state.tail
        if tail is not None and self._tail_due(state, confirmed):
            self._offer_chunk(tail.keys, tail.position, tail.tokens, block_ids)
            tail.stored = True

    def _offer_chunk(
        self, keys: list[bytes], position: int, tokens: int, block_ids: Sequence[int]
    ) -> None:
        if self._is_known(keys[0]):
            return
        block = self._served.block_tokens
        blocks = list(block_ids[position // block : (position + tokens) // block])
        hashes = [self._pool.blocks[number].block_hash for number in blocks]
        self._storing.add(keys[0])
        self._offers.append(_Offer(keys, position, blocks, hashes))

    def _is_known(self, key: bytes) -> bool:
        if key in self._storing:
            return True
        captured_at = self._recent.get(key)
        return captured_at is not None and time.monotonic() - captured_at < RECENT_S

    def _take_offers(self) -> None:
        """Hold and store as many offers as may be held. The rest waits unheld, while its blocks
        last."""
        usable = self._link.session is not None
        budget = max(
            CHUNK_TOKENS // self._served.block_tokens,
            int(self._pool.num_gpu_blocks * PINNED_SHARE),
        )
        waiting: deque[_Offer] = deque()
        now = time.monotonic()
        for offer in self._offers:
            fits = now >= offer.not_before and self._store_blocks + len(offer.blocks) <= budget
            intact = all(
                self._pool.blocks[number].block_hash == old
                for number, old in zip(offer.blocks, offer.hashes, strict=True)
            )
            if not usable or not intact or (None in offer.hashes and not fits):
                self._drop(offer)
            elif not fits:
                waiting.append(offer)
            else:
                self._new_stores.append(self._hold_store(offer))
        while len(waiting) > OFFERS_MAX:
            self._drop(waiting.pop())
        self._offers = waiting

    def _drop(self, offer: _Offer) -> None:
        self._storing.discard(offer.keys[0])
        self.stats.count("stores_dropped")

    def _hold_store(self, offer: _Offer) -> Store:
        number = next(self._numbers)
        held = self._hold(offer.blocks)
        self._stores[number] = _Held(held, time.monotonic(), self._ranks, offer=offer)
        self._store_blocks += len(held)
        # What a prompt's answer looks at most is its end, and a tail is small.
        is_tail = len(offer.blocks) * self._served.block_tokens < CHUNK_TOKENS
        return Store(number, offer.keys, offer.blocks, offer.position, is_tail)

    # ---- the workers report ----------------------------------------------------------------------

    def reported(self, reports: Reports | None) -> None:
        """vLLM's update_connector_output."""
        now = time.monotonic()
        self._admission.rate.finished(now)
        if reports is None:
            return
        for number, ranks in reports.loads.items():
            self._load_reported(number, ranks, reports.loaded_tokens.get(number, 0))
        for number, ranks in reports.stores.items():
            self._store_reported(number, ranks, number in reports.dropped, now)

    def _load_reported(self, number: int, ranks: int, tokens: int) -> None:
        held = self._loads.get(number)
        if held is None:
            return
        held.ranks -= ranks
        state = self._requests.get(held.request_id)
        if state is not None and tokens < held.tokens:
            state.loads_failed = True
            # What was not found in order is stored again.
            end = state.local_tokens + tokens
            state.stored_chunks = min(state.stored_chunks, end // CHUNK_TOKENS)
            if state.tail is not None and end < state.tail.end:
                state.tail.stored = False
        if held.ranks <= 0:
            del self._loads[number]
            self._release(held)

    def _store_reported(self, number: int, ranks: int, dropped: bool, now: float) -> None:
        held = self._stores.get(number)
        if held is None or held.offer is None:
            return
        held.ranks -= ranks
        if dropped:
            held.offer.tries += 1
            held.offer.not_before = now + OFFER_DELAY_S * 2**held.offer.tries
            held.tokens = -1
        if held.ranks > 0:
            return
        del self._stores[number]
        self._store_blocks -= len(held.blocks)
        offer = held.offer
        self._release(held)
        if held.tokens >= 0:
            self._storing.discard(offer.keys[0])
            self._recent[offer.keys[0]] = now
            while len(self._recent) > RECENT_MAX:
                self._recent.popitem(last=False)
        elif offer.tries < OFFER_TRIES and None not in offer.hashes:
            self._offers.append(offer)
        else:
            self._drop(offer)

    def finished(self, request: Any, block_ids: Sequence[int]) -> None:
        """vLLM's request_finished. The blocks are freed right after, unless they are held."""
        state = self._requests.pop(request.request_id, None)
        if state is None:
            return
        self._lookups.pop(state.lookup, None)
        if state.may_store and self._new_chunks(state):
            self._offer(state, block_ids)
            self._take_offers()

    def has_pending_work(self) -> bool:
        """Whether the engine must go on stepping though it has nothing to compute."""
        limit = time.monotonic() - KEEP_STEPPING_S
        pins = itertools.chain(self._loads.values(), self._stores.values())
        ages = [held.since for held in pins]
        if any(since > limit for since in ages):
            return True
        return bool(self._new_stores or self._offers) and not ages

    def pinned_blocks(self) -> int:
        """Blocks held now, for tests and statistics."""
        pins = itertools.chain(self._loads.values(), self._stores.values())
        return sum(len(held.blocks) for held in pins)

    def reset(self) -> None:
        """The weights may have changed: a namespace that nobody has used. What runs now was
        computed with the old ones, at least in part, and is neither stored nor loaded."""
        self._name_space = f"{self._options.namespace}#{uuid.uuid4().hex}"
        self._roots.clear()
        for state in self._requests.values():
            state.may_store, state.loads_failed = False, True
        for offer in self._offers:
            self._drop(offer)
        self._offers.clear()
