# SPDX-License-Identifier: Apache-2.0
"""Figures and tables of part `remote`, from its JSON alone."""

from __future__ import annotations

from typing import Any

from part import Figure, spread, summary, table

Row = dict[str, Any]
NAMES = {"in-host": "daemon on the host", "relay": "relay, `tcp`", "own cache": "vLLM's own cache"}


def per_gb(row: Row, *names: str) -> dict[str, Any]:
    """Milliseconds a GB of KV: these fields of each run, summed."""
    return summary(
        sum(run[name] for name in names) / 1e6 / (run["kv_bytes"] / 1e9) for run in row["runs"]
    )


def row_of(data: Row, server: str, tier: str, chunks: int) -> Row | None:
    rows = data["no_model"]["rows"]
    return next(
        (r for r in rows if (r["server"], r["tier"], r["chunks"]) == (server, tier, chunks)), None
    )


def control_rows(data: Row) -> list[Row]:
    """The relay's rows, one a size of prompt, smallest first."""
    rows = [r for r in data["no_model"]["rows"] if r["server"] == "relay"]
    by_size = {row["chunks"]: row for row in reversed(rows) if row["tier"] == "lossless"}
    return [by_size[size] for size in sorted(by_size)]


def prompt_bytes(row: Row) -> float:
    return float(row["runs"][0]["kv_bytes"] / row["runs"][0]["prompts"])


def bare_ratio(data: Row) -> dict[str, Any]:
    return summary(run["tcp_cpu_ns"] / run["bare_cpu_ns"] for run in data["bare"]["rounds"])


def same_in_guest(data: Row) -> bool | None:
    """Does the rdma way take one message each way and two wakeups a fetch, and no more?"""
    guest = data["guest"]
    if "missing" in guest:
        return None
    # Beside the fetches: HELLO, REGISTER, STORE, FLUSH, UNREGISTER, and an answer to each.
    messages = guest["fetches"] + 5
    # In a slow guest the relay asks for signs of life: to ask and to hear wakes it.
    asked = guest.get("asked", 0)
    return bool(
        guest["from_engine"] <= messages
        and guest["from_card"] <= messages + asked
        and guest["relay_wakeups"] <= 2 * (guest["fetches"] + asked) + 2
    )


def figures(data: Row) -> list[Figure]:
    *smaller, row = control_rows(data)
    control = per_gb(row, "control_ns", "engine_ns")
    same = same_in_guest(data)
    note = (
        f"derived: messages of prompts of {prompt_bytes(row) / 1e6:.0f} MB, timed on the `tcp` way"
    )
    for other in reversed(smaller):
        cost = per_gb(other, "control_ns", "engine_ns")["median"]
        note += f"; {prompt_bytes(other) / 1e6:.0f} MB: {cost:.2f} ms"
    if same is None:
        note += "; that the `rdma` way takes as many was not counted by this run"
    ratio = bare_ratio(data)
    return [
        Figure(
            "12",
            "engine's host, way `rdma`, processor time a GB",
            "<= 1 ms",
            f"{control['median']:.2f} ms",
            None if same is None else same and control["median"] <= 1,
            note,
        ),
        Figure(
            "13",
            "way `tcp`, receiving thread over a bare receive loop",
            "<= 1.3",
            f"{ratio['median']:.2f} ({ratio['min']:.2f} - {ratio['max']:.2f})",
            ratio["median"] <= 1.3,
        ),
    ]


def show(stat: dict[str, Any], digits: int = 0) -> str:
    return f"{stat['median']:.{digits}f} {spread(stat)}"


def host_table(data: Row) -> str:
    rows = []
    for row in data["no_model"]["rows"]:
        rate = summary(run["kv_bytes"] / 1e9 / run["seconds"] for run in row["runs"])
        both = per_gb(row, "server_ns", "engine_ns")
        rows.append(
            (
                NAMES[row["server"]],
                f"`{row['tier']}`",
                f"{prompt_bytes(row) / 1e6:.0f}",
                show(per_gb(row, "server_ns")),
                show(per_gb(row, "engine_ns"), 2),
                show(both),
                show(rate, 2),
            )
        )
    head = ("data plane", "tier", "MB a prompt", "server", "engine", "both", "KV, GB/s")
    return table(head, rows)


def control_table(data: Row) -> str:
    rows = []
    for row in control_rows(data):
        prompts = row["runs"][0]["prompts"]
        control = summary(run["control_ns"] / 1e3 / run["prompts"] for run in row["runs"])
        engine = summary(run["engine_ns"] / 1e3 / run["prompts"] for run in row["runs"])
        wakes = summary(run["control_wakeups"] / run["prompts"] for run in row["runs"])
        rows.append(
            (
                f"{prompt_bytes(row) / 1e6:.0f}",
                f"{1e9 / prompt_bytes(row):.1f}",
                prompts * len(row["runs"]),
                show(control),
                f"{wakes['median']:.1f}",
                show(engine),
                show(per_gb(row, "control_ns", "engine_ns"), 2),
            )
        )
    head = ("MB a prompt", "prompts a GB", "measured", "relay's control thread, us a prompt")
    return table((*head, "its wakeups", "engine, us a prompt", "ms a GB"), rows)


def guest_text(data: Row) -> str:
    guest, calls = data["guest"], data["no_model"]["calls"]
    text = ""
    if calls:
        count = sum(calls["calls"].values()) / calls["prompts"]
        listed = ", ".join(f"{name} {n / calls['prompts']:g}" for name, n in calls["calls"].items())
        text += f"The control thread's system calls a prompt: {count:g} ({listed}). "
    if "missing" in guest:
        return text + f"The guest's counts are missing: {guest['missing']}.\n"
    text += (
        f"In the guest, way `rdma`: {guest['fetches']} fetches of {guest['gb']:.2f} GB in all took "
        f"{guest['from_engine']} messages of the engine and {guest['from_card']} of the card (5 of "
        "each are HELLO, REGISTER, STORE, FLUSH, UNREGISTER and their answers) and "
        f"{guest['relay_wakeups']} wakeups of the relay. "
    )
    if guest.get("asked"):
        text += (
            f"Among them are {guest['asked']} signs of life that the relay asked for, because the "
            "emulated card was slow. "
        )
    return text + (
        f"The relay's user time was {guest['relay_user_ms']:.0f} ms, emulated, in ticks of 10 ms.\n"
    )


def vllm_table(data: Row) -> str:
    rows = data["vllm"]["rows"]
    own = summary(run["engine_ns"] / 1e6 / run["hits"] for run in rows["own cache"])
    cells = [(NAMES["own cache"], show(own, 1), "-", "-", "-", "-", "-")]
    for name in ("in-host", "relay"):
        runs = rows[name]
        engine = summary(run["engine_ns"] / 1e6 / run["hits"] for run in runs)
        server = summary(run["server_ns"] / 1e6 / run["hits"] for run in runs)
        control = summary(run["control_ns"] / 1e6 / run["hits"] for run in runs)
        more = engine["median"] - own["median"]
        gb = runs[0]["kv_bytes"] / runs[0]["hits"] / 1e9
        cells.append(
            (
                NAMES[name],
                show(engine, 1),
                f"{more:+.1f}",
                show(server, 1),
                f"{control['median']:.2f}",
                f"{server['median'] / gb:.0f}",
                f"{(server['median'] + more) / gb:.0f}",
            )
        )
    head = ("hit from", "vLLM, ms a hit", "more than its own cache", "server, ms a hit")
    more_heads = ("its control thread", "server, ms a GB", "both, ms a GB")
    return table((*head, *more_heads), cells)


def tables(data: Row) -> str:
    runs = len(data["no_model"]["rows"][0]["runs"])
    text = (
        "Engine host, card and store are three network namespaces on links of "
        f"{data['gbit']:g} Gbit/s; the engine's host has a core of its own. Milliseconds of "
        "processor time (user and system) on the engine's host for each GB of KV delivered, the "
        f"engine being one without a model; median of {runs} runs, contenders in turn. Soft "
        "interrupts of a veth pair fall to the sender, so a real network card's come on top, for "
        "the daemon's compressed bytes as for the relay's."
    )
    if data.get("realtime"):
        text += " All of it ran in a real-time class, beside other work."
    text += "\n\n" + host_table(data)
    text += (
        "\n**Way `rdma`.** The host's share is the messages of a prompt: LOOKUP, FETCH and their "
        "completions. What they cost the relay's first thread and the engine, timed on the `tcp` "
        "way, where another thread receives the bytes (and turns the caches over, as an engine "
        "would):\n\n" + control_table(data) + "\n" + guest_text(data)
    )
    ratio = bare_ratio(data)
    way = summary(r["tcp_cpu_ns"] / 1e6 for r in data["bare"]["rounds"])
    bare = summary(r["bare_cpu_ns"] / 1e6 for r in data["bare"]["rounds"])
    gb = data["bare"]["round_bytes"] / 1e9
    text += (
        f"\n**Way `tcp` beside a bare loop** of poll and recv into the same memory, loopback, "
        f"{len(data['bare']['rounds'])} pairs: {way['median'] / gb:.0f} ms a GB against "
        f"{bare['median'] / gb:.0f}; ratio {ratio['median']:.2f} ({ratio['min']:.2f} - "
        f"{ratio['max']:.2f}).\n"
    )
    if "missing" in data["vllm"]:
        return text + f"\nWith vLLM: {data['vllm']['missing']}.\n"
    return text + (
        f"\n**A real vLLM** ({data['vllm']['model']}, prompts of {data['vllm']['tokens']:,} "
        "tokens, `lossless`), processor time of its process and of the server beside it, a hit. "
        "What it needs more than for a hit of its own cache is the connector's keys, messages and "
        "the engine's empty steps while it waits for the link:\n\n" + vllm_table(data)
    )
