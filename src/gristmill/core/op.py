"""Ops and what an engine answers: the messages between the gateway and a supervised engine child.

Invariant: an Op is built field by field from a validated request; an engine sees nothing a client wrote
except through these fields. Messages travel length-prefixed (4 bytes, big-endian) as MessagePack.
Order for one request: open → counted → go → chunk* → done | failed; `cancel` may come at any time and is
answered by `done` with finish reason "cancelled".
"""

from __future__ import annotations

from typing import Any

import msgspec


class Op(msgspec.Struct, frozen=True):
    """One unit of work for an engine.

    Attributes:
        kind: what is to be done: "classify", "embed", "generate", or a plug-in's own.
        inputs: the items: texts for classify and embed; for generate one item, either a prompt (str) or a
            list of chat messages ({"role", "content"}).
        options: validated settings of the kind, by name (generate: max_tokens, temperature, top_p, stop,
            seed, presence_penalty, frequency_penalty).
        stream: whether chunks are wanted before `Done`.
    """

    kind: str
    inputs: tuple[Any, ...]
    options: dict[str, Any] = {}
    stream: bool = False


class Open(msgspec.Struct, frozen=True, tag="open"):
    """Parent → child: admit an Op for a release; the child answers `Counted` and waits for `Go`."""

    request: int
    release: str
    op: Op


class Go(msgspec.Struct, frozen=True, tag="go"):
    """Parent → child: the hold stands, run it, with at most `max_tokens` output tokens if given."""

    request: int
    max_tokens: int | None = None


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Parent → child: stop this request; nothing more of it is wanted."""

    request: int


class AskStats(msgspec.Struct, frozen=True, tag="ask_stats"):
    """Parent → child: report counters."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Child → parent, once: loaded. `digests` maps each release id to the artefact digest it verified."""

    digests: dict[str, str]


class Counted(msgspec.Struct, frozen=True, tag="counted"):
    """Child → parent: what the input measures, by meter (input_tokens, items), exactly."""

    request: int
    usage: dict[str, int]


class Chunk(msgspec.Struct, frozen=True, tag="chunk"):
    """Child → parent: a piece of streamed text and the number of engine tokens it stands for."""

    request: int
    text: str
    n_tokens: int


class Done(msgspec.Struct, frozen=True, tag="done"):
    """Child → parent: finished.

    Attributes:
        results: one per input; classify: {"label", "probs": {label: float}}; embed: list of float;
            generate: {"text": str}, the whole text also when chunks were streamed.
        usage: all meters, input and output (input_tokens, output_tokens, items).
        busy_s: engine seconds this request occupied (its share of a batch), the basis of its cost.
        finish_reason: "stop", "length" or "cancelled".
        digest: digest of the artefact that produced it.
    """

    request: int
    results: list[Any]
    usage: dict[str, int]
    busy_s: float
    finish_reason: str
    digest: str


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Child → parent: this request failed; `code` is one of the codes in `core.errors`."""

    request: int
    code: str
    message: str
    param: str | None = None


class Stats(msgspec.Struct, frozen=True, tag="stats"):
    """Child → parent: counters by name (requests, batches, tokens, queue, rss_bytes, busy_s)."""

    counters: dict[str, float]


ToChild = Open | Go | Cancel | AskStats
FromChild = Ready | Counted | Chunk | Done | Failed | Stats


class ServedModel(msgspec.Struct, frozen=True):
    """One release as an engine loads it.

    Attributes:
        release: release id used in `Open`.
        path: folder of the artefact (`artifact.json` inside names every file with its SHA-256).
        base_path: folder or file of the base model when the artefact is an adapter.
        digest: digest of the artefact; the child recomputes it and refuses another.
    """

    release: str
    path: str
    digest: str
    base_path: str | None = None


class EngineSpec(msgspec.Struct, frozen=True):
    """What an engine child is started with: plug-in name, models, options (threads, slots, context)."""

    engine: str
    models: tuple[ServedModel, ...]
    options: dict[str, Any] = {}
