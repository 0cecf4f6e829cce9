"""Dialogues packed into one row: no padding, and the beginning that all share computed once.

A pack is laid out as  shared beginning | rest of dialogue 1 | rest of dialogue 2 | …  with positions as each
dialogue has them alone and a mask that lets a token see only the shared beginning and its own dialogue.
Invariant: what a token computes is what it would compute in its dialogue alone (up to rounding).
Source: Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination" (arXiv:2107.02027).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from gristmill.kit.chat import Rendered

if TYPE_CHECKING:
    import torch


class Dialogue(msgspec.Struct, frozen=True):
    """Token ids of one dialogue and `targets`: the positions (> 0) whose token is to be learnt."""

    ids: tuple[int, ...]
    targets: tuple[int, ...]


class Pack(msgspec.Struct, frozen=True):
    """Where each packed token comes from.

    Attributes:
        sources: (dialogue, position) of each packed token, in order.
        positions: position of each within its dialogue. segments: 0 for the shared beginning, else 1, 2, ….
        predicts: packed index whose output predicts a target; labels: that target's token id.
    """

    sources: tuple[tuple[int, int], ...]
    positions: tuple[int, ...]
    segments: tuple[int, ...]
    predicts: tuple[int, ...]
    labels: tuple[int, ...]


def trim(rendered: Rendered, max_tokens: int) -> Dialogue:
    """Cut a dialogue to `max_tokens`, keeping its end, and name its targets."""
    cut = max(len(rendered.ids) - max_tokens, 0)
    ids, mask = rendered.ids[cut:], rendered.mask[cut:]
    return Dialogue(tuple(ids), tuple(i for i, is_own in enumerate(mask) if is_own and i > 0))


def shared_length(dialogues: Sequence[Dialogue]) -> int:
    """Tokens that all begin with, ending before any of them predicts a target."""
    limit = min(dialogue.targets[0] - 1 if dialogue.targets else len(dialogue.ids) for dialogue in dialogues)
    first = dialogues[0].ids[:limit]
    for dialogue in dialogues[1:]:
        same = 0
        while same < len(first) and dialogue.ids[same] == first[same]:
            same += 1
        first = first[:same]
    return len(first)


def pack(dialogues: Sequence[Dialogue]) -> Pack:
    """Pack all of `dialogues` into one row."""
    shared = shared_length(dialogues)
    sources = [(0, position) for position in range(shared)]
    segments = [0] * shared
    predicts: list[int] = []
    labels: list[int] = []
    for number, dialogue in enumerate(dialogues):
        start = len(sources) - shared  # packed index of position p is start + p
        sources += [(number, position) for position in range(shared, len(dialogue.ids))]
        segments += [number + 1] * (len(dialogue.ids) - shared)
        predicts += [start + target - 1 for target in dialogue.targets]
        labels += [dialogue.ids[target] for target in dialogue.targets]
    positions = tuple(position for _, position in sources)
    return Pack(tuple(sources), positions, tuple(segments), tuple(predicts), tuple(labels))


def split(dialogues: Sequence[Dialogue], max_tokens: int) -> list[list[int]]:
    """Indices of `dialogues`, in order, in groups of at most `max_tokens` tokens (one at least each)."""
    groups: list[list[int]] = []
    room = 0
    for index, dialogue in enumerate(dialogues):
        if not groups or len(dialogue.ids) > room:
            groups.append([])
            room = max_tokens
        groups[-1].append(index)
        room -= len(dialogue.ids)
    return groups


def attention_mask(packed: Pack, device: torch.device) -> torch.Tensor:
    """Who may see whom: bool, (1, 1, query, key)."""
    import torch

    segments = torch.tensor(packed.segments, device=device)
    order = torch.arange(len(segments), device=device)
    earlier = order[None, :] <= order[:, None]
    same = (segments[None, :] == 0) | (segments[None, :] == segments[:, None])
    return (earlier & same)[None, None]
