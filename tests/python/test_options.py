# SPDX-License-Identifier: Apache-2.0
"""Options of the connector: what is allowed passes, everything else is named."""

import pytest
from shadowserve.binding import Codec, Tier
from shadowserve.options import OptionError, parse_options


def test_all_options():
    options = parse_options(
        {"tier": "lossless", "codec": "R16", "admission": "always", "deadline_ms": 5, "socket": "x"}
    )
    assert (options.tier, options.codec, options.admission) == (
        Tier.LOSSLESS,
        Codec.R16,
        "always",
    )
    assert options.deadline_ms == 5 and options.store == ""


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(OptionError, match="'namespace'"):
        parse_options({"name_space": "x"})


@pytest.mark.parametrize(
    "wrong",
    [
        {"tier": "best"},
        {"codec": 3},
        {"admission": "never"},
        {"deadline_ms": 0},
        {"deadline_ms": True},
        {"socket": 1},
    ],
)
def test_wrong_values_are_named(wrong):
    with pytest.raises(OptionError, match=next(iter(wrong))):
        parse_options(wrong)


def test_what_is_stored_is_fine_enough_to_be_read_again() -> None:
    def stored(**extra: str) -> Tier:
        return parse_options(extra).stored_tier

    assert stored() == Tier.DEFAULT
    assert stored(min_tier="standard") == Tier.DEFAULT
    assert stored(min_tier="high") == Tier.LOSSLESS
    assert stored(min_tier="high", tier="compact") == Tier.COMPACT
