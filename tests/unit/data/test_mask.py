"""Masking: each kind is found, wrong check digits are not, and a value has one pseudonym."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stdnum import iban, luhn
from stdnum.cn import ric

from gristmill.stages.data.mask import Masker

FOUND = [
    ("email", "write to Ann.Lee+x@mail.example.co.uk, please", "write to [EMAIL_1], please"),
    ("email", "我的邮箱是zhang@qq.com谢谢", "我的邮箱是[EMAIL_1]谢谢"),
    ("phone", "call +1 415 555 2671 2 times", "call [PHONE_1] 2 times"),
    ("phone", "(415) 555-2671.", "[PHONE_1]."),
    ("phone", "ring 415-555-2671 now", "ring [PHONE_1] now"),
    ("phone", "London 020 7946 0958", "London [PHONE_1]"),
    ("phone", "mobil +49 151 1234 5678", "mobil [PHONE_1]"),
    ("phone", "座机010-62345678转1", "座机[PHONE_1]转1"),
    ("phone", "my phone number is 4155552671", "my phone number is [PHONE_1]"),
    ("cn_mobile", "手机13800138000。", "手机[MOBILE_1]。"),
    ("cn_mobile", "+86 138-0013-8000", "[MOBILE_1]"),
    ("cn_mobile", "１３８００１３８０００", "[MOBILE_1]"),
    ("card", "4111 1111 1111 1111 12/27 cvv 123", "[CARD_1] 12/27 cvv 123"),
    ("card", "amex 3782-822463-10005!", "amex [CARD_1]!"),
    ("card", "card:5500000000000004", "card:[CARD_1]"),
    ("iban", "to DE89 3704 0044 0532 0130 00 today", "to [IBAN_1] today"),
    ("iban", "gb82west12345698765432", "[IBAN_1]"),
    ("ip", "from 192.168.10.7:8080", "from [IP_1]:8080"),
    ("ip", "host 2001:db8::8a2e:370:7334.", "host [IP_1]."),
    ("cn_id", "身份证11010519491231002X，谢谢", "身份证[CN_ID_1]，谢谢"),
]

KEPT = [
    "In 2002, from 1996-2004, for $1,299.00 on 2024-05-01 10:00 or 01/02/2003 or 10:00 01-02-2003 1530",
    "12,345,678 people, pi 3.14159265358979, at 1700000000, 10 000 000 times, 0.123456789",
    "call 10 000 000 people in 2024-05-01, ISBN 978-0-306-40615-7, order #1234567890",
    "4111 1111 1111 1112",
    "DE89 3704 0044 0532 0130 01",
    "110105194912310021",
    "999.1.1.1 and v1.2.3.4, 10:20:30, std::vector, a::b, user@localhost",
    "I rate it 8/10, 100% worth 19.99 - 24.99 EUR; 1080p, 4000x3000, 16:9",
]


@pytest.mark.parametrize(("kind", "text", "masked"), FOUND)
def test_each_kind_is_found(kind: str, text: str, masked: str) -> None:
    """Personal data of this kind would enter a dataset version and a model."""
    masker = Masker()
    assert masker.mask(text) == masked
    assert dict(masker.counts) == {kind: 1}


@pytest.mark.parametrize("text", KEPT)
def test_look_alikes_are_left(text: str) -> None:
    """Prices, dates and numbers with wrong check digits would be lost from the training data."""
    assert Masker().mask(text) == text


@given(st.from_regex(r"4[0-9]{14}", fullmatch=True), st.sampled_from(["", " ", "-"]))
def test_cards_need_their_luhn_digit(stem: str, gap: str) -> None:
    """A right card number would pass unmasked, or an order number with a wrong digit would be lost."""
    right = luhn.calc_check_digit(stem)
    for digit in "0123456789":
        number = stem + digit
        text = f"no {gap.join(number[i : i + 4] for i in range(0, 16, 4))} ok"
        assert (Masker().mask(text) == "no [CARD_1] ok") is (digit == right)


@given(st.from_regex(r"[0-9]{18}", fullmatch=True))
def test_ibans_need_their_check_digits(account: str) -> None:
    """A bank account would pass unmasked, or any code of that shape would be lost."""
    right = iban.calc_check_digits("DE00" + account)
    assert Masker().mask(f"pay DE{right}{account} now") == "pay [IBAN_1] now"
    wrong = f"{(int(right) + 1) % 97:02d}"
    assert "[IBAN" not in Masker().mask(f"pay DE{wrong}{account} now")


@given(
    st.sampled_from(["110105", "310104", "440300", "510100"]),
    st.dates(min_value=date(1930, 1, 1), max_value=date(2025, 1, 1)),
    st.integers(0, 999),
)
def test_resident_ids_need_their_check_character(place: str, born: date, serial: int) -> None:
    """A Chinese resident id would pass unmasked, or a long number that is none would be lost."""
    stem = f"{place}{born:%Y%m%d}{serial:03d}"
    right = ric.calc_check_digit(stem + "0")
    for digit in "0123456789X":
        masked = Masker().mask(f"证{stem}{digit}。")
        assert (masked == "证[CN_ID_1]。") is (digit == right)
        assert digit == right or masked == f"证{stem}{digit}。"


@given(st.lists(st.one_of(st.sampled_from([text for _, text, _ in FOUND]), st.text(max_size=12)), max_size=8))
def test_masking_twice_changes_nothing(pieces: list[str]) -> None:
    """Data that was masked once (an export of ours) would be changed again and get another digest."""
    masker = Masker()
    once = masker.mask(" ".join(pieces))
    assert masker.mask(once) == once
    assert Masker().mask(once) == once


@given(st.text("0123456789+-(). @:abXx", max_size=60))
def test_any_text_settles(text: str) -> None:
    """A text on which masking never settles would give another version on each reading."""
    once = Masker().mask(text)
    assert Masker().mask(once) == once


def test_a_value_has_one_pseudonym() -> None:
    """A model could not see that two rows speak of one person, or would take two persons for one."""
    masker = Masker()
    texts = [
        "a@x.org",
        "b@x.org",
        "A@X.org",
        "+86 13800138000",
        "138 0013 8000",
        "(415) 555-2671, +14155552671",
    ]
    assert [masker.mask(text) for text in texts] == [
        "[EMAIL_1]",
        "[EMAIL_2]",
        "[EMAIL_1]",
        "[MOBILE_1]",
        "[MOBILE_1]",
        "[PHONE_1], [PHONE_1]",
    ]
    assert masker.counts == {"email": 3, "cn_mobile": 2, "phone": 2}


def test_allowed_texts_stay_in_any_spelling() -> None:
    """The product's own contacts would be lost, which are facts the model must learn."""
    masker = Masker(["support@larkspout.example", "303-555-0142", "Order 4111 1111 1111 1111"])
    for text in (
        "Mail Support@larkspout.example.",
        "(303) 555-0142",
        "+1 303 555 0142",
        "order 4111 1111 1111 1111",
    ):
        assert masker.mask(text) == text
    assert masker.mask("evilsupport@larkspout.example") == "[EMAIL_1]"
    assert masker.mask("303-555-0143") == "[PHONE_1]"


def test_long_hostile_text_takes_linear_time() -> None:
    """A crafted row would hang the preparation; the suite's timeout catches it."""
    for unit in (
        "1",
        "1 ",
        "a.",
        "+1",
        "a:",
        "1111 ",
        "AB12 ",
        "call ",
        "0 1-",
        "a@a.",
        "010 ",
        "(((",
        "1.2",
    ):
        Masker().mask(unit * 10_000)
