# SPDX-License-Identifier: Apache-2.0
"""The daemon's own tests once more, with a relay between it and every client.

Not that of more requests than allowed: whether so many wait at once depends on how the card keeps
pace with the relay, which hands them on one record after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from relay_rig import Relayed
from test_hostile import (  # noqa: F401
    reason_of_a_client_that_never_reads,
    test_a_message_cut_anywhere_and_then_the_end_is_harmless,
    test_a_message_may_come_byte_by_byte,
    test_another_protocol_is_closed,
    test_more_descriptors_than_messages_is_malformed,
    test_random_messages_leave_the_others_alone,
)
from test_life import (  # noqa: F401
    test_a_client_of_a_newer_version_that_speaks_ours_is_welcome,
    test_a_stopped_engine_does_not_hold_up_the_daemon,
    test_an_engine_that_dies_while_a_child_holds_its_socket_is_noticed,
    test_kill_9_of_an_engine_frees_what_it_held,
    test_two_protocol_versions_apart_is_refused_with_both_ranges,
)
from test_path import (  # noqa: F401
    test_a_descriptor_that_is_no_memfd_is_refused,
    test_a_fetch_may_begin_and_end_inside_a_chunk,
    test_a_memfd_region_without_a_descriptor_ends_the_session,
    test_a_memfd_shorter_than_offered_is_refused_with_numbers,
    test_a_memfd_that_could_shrink_is_refused,
    test_a_miss_shortens_the_prefix,
    test_a_region_smaller_than_its_layout_is_refused_with_numbers,
    test_a_shape_too_big_for_the_arena_is_refused_with_numbers,
    test_cancel_completes_its_target_first,
    test_misaligned_tensors_are_refused_with_numbers,
    test_overlapping_tensors_are_refused_with_numbers,
    test_two_engines_share_the_store_and_not_their_memory,
    test_unregister_returns_when_nothing_touches_the_region,
    test_what_was_stored_comes_back_into_other_blocks,
)
from test_stores import test_a_chunk_damaged_on_the_disk_is_a_miss_and_healed  # noqa: F401


def test_a_client_that_never_reads_is_closed_and_told(start: Callable[..., Front]) -> None:
    """By the relay, or first by the card, to which it is the relay that does not read; the card's
    own words may then be lost with what else was on its way."""
    reason = reason_of_a_client_that_never_reads(start)
    assert "does not read" in reason or "it closed the connection" in reason


class Front:
    """To a test a daemon, whose socket is the relay's; the rest is the card's."""

    def __init__(self, rig: Relayed) -> None:
        self.rig = rig
        self.socket = rig.socket

    @property
    def pid(self) -> int:
        return self.rig.relay.pid  # which holds what clients send

    def log_text(self) -> str:
        return self.rig.card.log_text() + self.rig.relay.log_text()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rig.card, name)


@pytest.fixture
def start(relayed: Callable[..., Relayed]) -> Iterator[Callable[..., Front]]:
    yield lambda **keys: Front(relayed(**keys))
