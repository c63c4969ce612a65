# SPDX-License-Identifier: Apache-2.0
"""What a user may say in kv_connector_extra_config, checked once and then immutable."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from shadowserve.binding import Codec, Tier

ADMISSIONS = ("auto", "always")


class OptionError(ValueError):
    """An option is unknown or out of range; the text names it and what is allowed."""


@dataclass(frozen=True)
class Options:
    """Defaults are in the fields; docs/vllm.md explains each."""

    socket: str = ""  # a running daemon; "" means $SHADOWSERVE_SOCKET, else start one
    store: str = ""  # store URI of a daemon that is started; "" means a folder of the user's cache
    profiles: str = ""  # a started daemon's folder of profiles; "" means the user's
    daemon: str = ""  # path of shadowserved; "" means the one of this package, else of $PATH
    tier: Tier = Tier.DEFAULT  # of what is stored
    codec: Codec = Codec.DEFAULT
    min_tier: Tier = Tier.DEFAULT  # coarsest tier that is read
    namespace: str = ""
    admission: str = "auto"
    deadline_ms: int = 2000  # longest time a request waits for its KV
    gpu_staging_mib: int = 256  # GPU memory taken where the engine's KV layout has short runs

    @property
    def stored_tier(self) -> Tier:
        """What to ask for when storing: never coarser than what this engine reads again. A daemon's
        own choice may be standard."""
        if self.tier == Tier.DEFAULT and self.min_tier in (Tier.LOSSLESS, Tier.HIGH):
            return Tier.LOSSLESS
        return self.tier


def parse_options(extra: Mapping[str, Any]) -> Options:
    known = [field.name for field in fields(Options)]
    values: dict[str, Any] = {}
    for name, value in extra.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise OptionError(
                f"kv_connector_extra_config: {name!r} is unknown, the nearest is {near!r} "
                f"(known: {', '.join(known)})"
            )
        values[name] = _PARSERS.get(name, _text)(name, value)
    return Options(**values)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise OptionError(f"{name}: {value!r} is no text")
    return value


def _enum(kind: type[Tier] | type[Codec]) -> Any:
    def parse(name: str, value: Any) -> Tier | Codec:
        allowed = [member.name.lower() for member in kind]
        if not isinstance(value, str) or value.lower() not in allowed:
            raise OptionError(f"{name}: {value!r} is none of {', '.join(allowed)}")
        return kind[value.upper()]

    return parse


def _admission(name: str, value: Any) -> str:
    if value not in ADMISSIONS:
        raise OptionError(f"{name}: {value!r} is none of {', '.join(ADMISSIONS)}")
    return str(value)


def _deadline(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 60000:
        raise OptionError(f"{name}: {value!r} is no whole number from 1 to 60000")
    return value


def _mib(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65536:
        raise OptionError(f"{name}: {value!r} is no whole number from 1 to 65536")
    return value


_PARSERS: dict[str, Any] = {
    "tier": _enum(Tier),
    "min_tier": _enum(Tier),
    "codec": _enum(Codec),
    "admission": _admission,
    "deadline_ms": _deadline,
    "gpu_staging_mib": _mib,
}
