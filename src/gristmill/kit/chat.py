"""Chat to token ids: one function for the trainer and the engine, so that the two can never differ.

Invariant: text that a user wrote never becomes a template token. The template is rendered with each message
wrapped in marks, then cut at the marks: what the template wrote may hold special tokens, what a message holds
is encoded with them disabled, and the result is checked. Runs of text break at special tokens and where an
assistant's answer begins, since that is where generation begins when serving.

Source: chat template semantics of Hugging Face transformers ("Chat templates", sandboxed Jinja).
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from gristmill.core.errors import BrokenInvariant, Missing, UsageError

TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
SETTINGS_FILE = "chat.json"
FORMAT_FILES = (TOKENIZER_FILE, TEMPLATE_FILE, SETTINGS_FILE)

# Unicode non-characters, which are not for interchange; in a message they are replaced before wrapping.
_OPEN, _CLOSE, _END = "\ufdd0", "\ufdd1", "\ufdd2"
_MARK = re.compile(f"{_OPEN}(\\d+){_END}|{_CLOSE}(\\d+){_END}")
_CLEAN = str.maketrans(dict.fromkeys((_OPEN, _CLOSE, _END), "\ufffd"))
# A template that prints today's date would make training and serving differ, so the date is frozen.
_FROZEN_DATE = datetime(2024, 7, 26)


class ChatSettings(msgspec.Struct, frozen=True):
    """What is frozen beside tokenizer and template, in `chat.json`.

    Attributes:
        bos_token, eos_token: as the template may print them. eos_ids: ids that end an answer.
        add_bos: whether a plain prompt begins with the `bos_token`. context_tokens: the base's longest input.
        sampling: settings of sampling that clients cannot set (top_k, min_p), where the base names them.
    """

    bos_token: str = ""
    eos_token: str = ""
    eos_ids: tuple[int, ...] = ()
    add_bos: bool = False
    context_tokens: int = 2048
    sampling: dict[str, float] = {}


class Rendered(msgspec.Struct, frozen=True):
    """A dialogue as token ids; `mask[i]` tells that id i is an assistant's own (and trains)."""

    ids: list[int]
    mask: list[bool]


class ChatFormat:
    """Tokenizer, chat template and settings, read from a base model's or an artefact's folder."""

    def __init__(self, tokenizer_json: str, template: str, settings: ChatSettings) -> None:
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        from tokenizers import Tokenizer

        document = json.loads(tokenizer_json)
        added = document.get("added_tokens", [])
        for token in added:
            token["special"] = token["special"] or not token["content"].isspace()
        self._tokenizer = Tokenizer.from_str(json.dumps(document))
        self._tokenizer.encode_special_tokens = True
        self._special = {token["content"]: int(token["id"]) for token in added if token["special"]}
        self._special_ids = frozenset(self._special.values())
        longest_first = sorted(self._special, key=len, reverse=True)
        self._cut = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if added else None
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, autoescape=False, extensions=["jinja2.ext.loopcontrols"]
        )  # no HTML is made here, so there is nothing to escape
        environment.globals.update(raise_exception=_refuse, strftime_now=_FROZEN_DATE.strftime)
        environment.filters["tojson"] = lambda value, **kw: json.dumps(value, ensure_ascii=False, **kw)
        self._template = environment.from_string(template)
        self.settings = settings
        self.digest = hashlib.sha256(
            b"\0".join((tokenizer_json.encode(), template.encode(), msgspec.json.encode(settings)))
        ).hexdigest()
        self._trims = {role: self._is_trimmed(role) for role in ("system", "user", "assistant")}

    @classmethod
    def load(cls, folder: Path) -> ChatFormat:
        """Read the three files of a folder.

        Raises:
            Missing: one is absent (a base without a chat template cannot chat).
        """
        for name in FORMAT_FILES:
            if not (folder / name).is_file():
                raise Missing(
                    f"The chat model has no {name}.",
                    hint="Use an instruction-tuned base with a chat template.",
                )
        return cls(
            (folder / TOKENIZER_FILE).read_text(encoding="utf-8"),
            (folder / TEMPLATE_FILE).read_text(encoding="utf-8"),
            msgspec.json.decode((folder / SETTINGS_FILE).read_bytes(), type=ChatSettings),
        )

    def prompt(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's next turn.

        Raises:
            UsageError: the template refuses this conversation.
        """
        return self._render(messages, is_prompt=True).ids

    def dialogue(self, messages: Sequence[dict[str, Any]]) -> Rendered:
        """Token ids of a whole dialogue with the mask of what trains.

        The assistant's answers and the token that ends each are marked, unless a message's `weight` is 0.
        """
        return self._render(messages, is_prompt=False)

    def text(self, prompt: str) -> list[int]:
        """Token ids of a plain prompt; nothing in it can become a special token."""
        ids = self._plain(prompt)
        if self.settings.add_bos and self.settings.bos_token in self._special:
            return [self._special[self.settings.bos_token], *ids]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _render(self, messages: Sequence[dict[str, Any]], *, is_prompt: bool) -> Rendered:
        wrapped = []
        for index, message in enumerate(messages):
            role = "system" if message["role"] == "developer" else message["role"]
            content = message["content"].translate(_CLEAN)
            content = content.strip() if self._trims.get(role) else content
            wrapped.append({"role": role, "content": f"{_OPEN}{index}{_END}{content}{_CLOSE}{index}{_END}"})
        pieces = list(_pieces(self._call(wrapped, is_prompt)))
        out = _Builder(self)
        for number, (text, origin) in enumerate(pieces):
            if origin is None:
                is_after_answer = number > 0 and _is_trained(messages, pieces[number - 1][1])
                out.template(text, trains_to_end=is_after_answer)
            else:
                is_answer = messages[origin]["role"] == "assistant"
                out.message(text, is_answer=is_answer, is_trained=_is_trained(messages, origin))
        return out.done()

    def _call(self, messages: list[dict[str, str]], is_prompt: bool) -> str:
        from jinja2 import TemplateError

        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=is_prompt,
                bos_token=self.settings.bos_token,
                eos_token=self.settings.eos_token,
                tools=None,
                documents=None,
            )
        except (TemplateError, TypeError) as error:
            raise UsageError(
                f"The model's chat template refuses this conversation: {type(error).__name__}.",
                param="messages",
            ) from None

    def _is_trimmed(self, role: str) -> bool:
        """Whether the template strips blanks around a message (marks would hide that from it)."""
        probe = "  probe  "
        before = [{"role": "user", "content": "q"}] if role != "user" else []
        try:
            text = self._call([*before, {"role": role, "content": probe}], is_prompt=False)
        except UsageError:
            return False
        return "probe" in text and probe not in text

    def _plain(self, text: str) -> list[int]:
        ids = [int(i) for i in self._tokenizer.encode(text, add_special_tokens=False).ids]
        if not self._special_ids.isdisjoint(ids):
            raise BrokenInvariant("Plain text was encoded to a template token.")
        return ids


class _Builder:
    """Collects runs of plain text and special tokens into ids and mask."""

    def __init__(self, chat: ChatFormat) -> None:
        self._chat = chat
        self._run = ""
        self._is_run_trained = False
        self._ids: list[int] = []
        self._mask: list[bool] = []

    def message(self, text: str, *, is_answer: bool, is_trained: bool) -> None:
        if is_answer:
            self._flush()
        self._is_run_trained = is_trained
        self._run += text
        if is_answer and not is_trained:
            self._flush()

    def template(self, text: str, *, trains_to_end: bool) -> None:
        parts = self._chat._cut.split(text) if self._chat._cut else [text]
        is_trained = trains_to_end and len(parts) > 1
        if not is_trained and self._is_run_trained:
            self._flush()
        for number, part in enumerate(parts):
            if number % 2 == 0:
                self._is_run_trained = is_trained
                self._run += part
                continue
            self._flush()
            self._ids.append(self._chat._special[part])
            self._mask.append(is_trained)
            is_trained = False

    def done(self) -> Rendered:
        self._flush()
        return Rendered(self._ids, self._mask)

    def _flush(self) -> None:
        ids = self._chat._plain(self._run) if self._run else []
        self._ids += ids
        self._mask += [self._is_run_trained] * len(ids)
        self._run, self._is_run_trained = "", False


def _is_trained(messages: Sequence[dict[str, Any]], index: int | None) -> bool:
    if index is None or messages[index]["role"] != "assistant":
        return False
    return bool(messages[index].get("weight", 1))


def _pieces(rendered: str) -> Iterator[tuple[str, int | None]]:
    """Cut at the marks: (text, index of the message it came from, or None for the template's own text)."""
    at = 0
    inside: int | None = None
    for mark in _MARK.finditer(rendered):
        opened, closed = mark.group(1), mark.group(2)
        is_expected = inside is None if opened is not None else str(inside) == closed
        if not is_expected:
            raise UsageError("The model's chat template cannot keep this message apart.", param="messages")
        yield rendered[at : mark.start()], inside
        inside = int(opened) if opened is not None else None
        at = mark.end()
    if inside is not None:
        raise UsageError("The model's chat template cannot keep this message apart.", param="messages")
    yield rendered[at:], None


def _refuse(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def freeze_format(source: Path, target: Path) -> None:
    """Copy tokenizer, template and settings, unchanged, into an artefact's folder."""
    for name in FORMAT_FILES:
        shutil.copyfile(source / name, target / name)
