"""Request bodies: what is refused, and how it is named."""

from __future__ import annotations

import pytest

from gristmill.app.gateway.parse import PaidEndpoint
from gristmill.core.errors import UnknownField, UsageError
from gristmill.testing.shop import ECHO, TAG

ECHOING = PaidEndpoint("echo", ECHO)


@pytest.mark.parametrize("field", ["lora", "id_slot", "cache_prompt", "grammar", "n_predict", "samplers"])
def test_fields_of_an_engine_are_refused_by_name(field: str) -> None:
    """Broken: a body field picks another customer's adapter or cache (it did in a naive build)."""
    body = b'{"model": "parrot", "prompt": "hi", "%s": [{"id": 0, "scale": 1.0}]}' % field.encode()
    with pytest.raises(UnknownField) as refused:
        ECHOING.decode(body)
    assert refused.value.param == field
    assert f"'{field}'" in refused.value.message
    assert refused.value.hint == ECHO.supported


def test_a_typing_slip_names_the_nearest_field() -> None:
    """Broken: a client searches for a typing slip without help."""
    with pytest.raises(UnknownField) as refused:
        ECHOING.decode(b'{"model": "parrot", "promt": "hi"}')
    assert refused.value.hint == "Did you mean 'prompt'?"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model": 1, "prompt": "hi"}', "model"),
        (b'{"model": "parrot"}', "prompt"),
        (b'{"model": "parrot", "prompt": "hi", "stream": "yes"}', "stream"),
        (b'{"model": "parrot", "prompt": "hi", "max_tokens": 1.5}', "max_tokens"),
        (b"[]", None),
        (b"", None),
        (b"{", None),
        (b'{"model": "\xff", "prompt": "hi"}', None),
        (b'{"model": "\\ud800", "prompt": "hi"}', None),
        (b"[" * 100_000, None),
    ],
)
def test_a_wrong_body_names_the_field(body: bytes, param: str | None) -> None:
    """Broken: a client cannot tell which field is wrong, or a strange body becomes a 500."""
    with pytest.raises(UsageError) as refused:
        ECHOING.decode(body)
    assert refused.value.param == param
    assert refused.value.status == 400


def test_a_wrong_element_is_named_by_its_path() -> None:
    """Broken: in a long list nobody finds the wrong element."""
    with pytest.raises(UsageError) as refused:
        PaidEndpoint("tag", TAG).decode(b'{"model": "tagger", "input": ["a", 2]}')
    assert refused.value.param == "input[1]"
