"""Personal data in text: where it stands, what kind it is, and the form that its spellings share.

Invariant: a number with check digits is found only when they are right, and nothing here is slower than
linear in the length of the text.
Sources: RFC 5321 (e-mail), ISO/IEC 7812-1 (Luhn), ISO 13616 (IBAN), RFC 4291 (IPv6),
GB 11643-1999 (Chinese resident id), ITU-T E.164 with the `phonenumbers` metadata (phone).
"""

from __future__ import annotations

import functools
import ipaddress
import re
import unicodedata
from collections.abc import Callable, Iterator
from datetime import date
from typing import NamedTuple

from stdnum import iban, luhn
from stdnum.cn import ric


class Span(NamedTuple):
    """A found value: text[start:end], and the canonical form shared by all its spellings."""

    start: int
    end: int
    value: str


# Finders see plain text only (ASCII digits, blanks and hyphens, see `plain`). No pattern has two ways to
# divide a run of digits; repetitions are bounded or begin at a boundary, so that none backtracks for long.
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+'-])[A-Za-z0-9_%+'-][A-Za-z0-9._%+'-]{0,63}@"
    r"(?:[A-Za-z0-9][A-Za-z0-9-]{0,62}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])"
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?: ?[A-Za-z0-9]){11,40}")
_CN_ID = re.compile(r"(?<![0-9A-Za-z])[1-9][0-9]{16}[0-9Xx](?![0-9A-Za-z])")
_CARD_RUN = re.compile(r"(?<![0-9])[0-9]{4,19}(?:[ -][0-9]{3,19}){0,40}(?![0-9])")
_DIGITS = re.compile(r"[0-9]+")
_CN_MOBILE = re.compile(
    r"(?<![0-9+])(?<![0-9][.])(?:\(?(?:\+|00)?86\)?[ -]?)?(1[3-9][0-9][ -]?[0-9]{4}[ -]?[0-9]{4})(?![0-9])"
)
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)", re.ASCII)
_IPV6 = re.compile(r"(?<![\w:.])(?=[0-9A-Fa-f]*:[0-9A-Fa-f]*:)[0-9A-Fa-f:]{4,39}(?:\.\d{1,3}){0,3}", re.ASCII)
_INTERNATIONAL = re.compile(
    r"(?<![\w+])(?:\+|(?<![\d.,:])(?<!\d[ -])00 ?)[1-9]\d{0,14}(?:[ ()./-]{1,2}\d{1,14}){0,8}", re.ASCII
)
_NORTH_AMERICAN = re.compile(
    r"(?<![\d+])(?<!\d[.-])(?:1[ ./-])?(?:\(\d{3}\) ?|\d{3}[.-]|[2-9]\d{2} (?=[2-9]))"
    r"\d{3}[ .-]\d{4}(?!\d)(?![.-]\d)",
    re.ASCII,
)
_NATIONAL = re.compile(
    r"(?<![\w.,:+-])(?<!\d )\(?0\d{1,4}\)?[ ./-]?\d{2,8}(?:[ ./-]\d{2,8}){0,4}(?!\d)(?![.,:]\d)", re.ASCII
)
_SPOKEN = re.compile(
    r"(?:\b(?:tele)?phone|\btel|\bmobile|\bcell|\bcall|\bwhatsapp|\bfax|\bsms|\btext|电话|手机|致电|热线|传真)"
    r"(?:\s?(?:number|numero|no|nr|me|us|on|at|is|号码|号|是|为|[:：=#(+.,])){0,4}\s?"
    r"([0-9](?:[ -]?[0-9]){6,14})(?![0-9])(?![.,:][0-9])",
    re.IGNORECASE | re.ASCII,
)
_DATE = re.compile(
    r"(?<!\d)(?<!\d[./-])(?:\d{1,2}[./-]\d{1,2}[./-](?:19|20)?\d{2}|(?:19|20)\d{2}[./-]?[01]\d[./-]?[0-3]\d)"
    r"(?!\d)(?![./-]\d)"
)
_THOUSANDS = re.compile(r"\d{1,3}(?: \d{3})+")
_REGIONS = (
    "GB",
    "DE",
    "FR",
    "IT",
    "NL",
    "BE",
    "CH",
    "AT",
    "SE",
    "AU",
    "JP",
    "KR",
    "CN",
    "TW",
    "IN",
    "BR",
    "ZA",
)


def plain(text: str) -> str:
    """The text with digits, blanks and hyphens of all scripts as ASCII; every character keeps its place."""
    return text if text.isascii() else text.translate(_plain_table())


@functools.cache
def _plain_table() -> dict[int, str]:
    digits = (mark for mark in map(chr, range(0x80, 0x1FBFA)) if unicodedata.category(mark) == "Nd")
    marks = zip(
        "＋＠（）Ｘ．：\u00a0\u3000\u2010\u2011\u2012\u2013\u2014\u2015", "+@()X.:  ------", strict=True
    )
    return {ord(mark): str(unicodedata.digit(mark)) for mark in digits} | {ord(a): b for a, b in marks}


def find_emails(text: str) -> Iterator[Span]:
    """E-mail addresses; the canonical form is in lower case."""
    for match in _EMAIL.finditer(text):
        yield Span(match.start(), match.end(), match[0].lower())


def find_ibans(text: str) -> Iterator[Span]:
    """International bank account numbers whose two check digits and national structure are right."""
    for match in _IBAN.finditer(text):
        ends = [gap.start() for gap in re.finditer(" ", match[0])] + [len(match[0])]
        for end in reversed(ends):  # the pattern may have run into the next words
            value = match[0][:end].replace(" ", "").upper()
            if 15 <= len(value) <= 34 and iban.is_valid(value):
                yield Span(match.start(), match.start() + end, value)
                break


def find_resident_ids(text: str) -> Iterator[Span]:
    """Chinese resident ids of 18 characters with a real birth date and the right check character."""
    for match in _CN_ID.finditer(text):
        value = match[0].upper()
        if _is_date(value[6:14]) and ric.calc_check_digit(value) == value[-1]:
            yield Span(match.start(), match.end(), value)


def find_cards(text: str) -> Iterator[Span]:
    """Payment card numbers with a card scheme's prefix and length and a right Luhn digit."""
    for run in _CARD_RUN.finditer(text):
        groups = [(run.start() + found.start(), found[0]) for found in _DIGITS.finditer(run[0])]
        index = 0
        while index < len(groups):
            length = _card_length(groups, index)
            if length:
                start, (last, digits) = groups[index][0], groups[index + length - 1]
                number = "".join(part for _, part in groups[index : index + length])
                yield Span(start, last + len(digits), number)
            index += length or 1


def find_mobiles(text: str) -> Iterator[Span]:
    """Chinese mobile numbers, with or without +86; the canonical form is the eleven digits."""
    for match in _CN_MOBILE.finditer(text):
        yield Span(match.start(), match.end(), _digits(match[1]))


def find_addresses(text: str) -> Iterator[Span]:
    """IPv6 and IPv4 addresses; the canonical form is RFC 5952's."""
    if ":" in text:
        for match in _IPV6.finditer(text):
            given = match[0] if match[0].endswith("::") else match[0].rstrip(":")
            if any(mark.isdigit() for mark in given) and len(given.split(":")[0]) != 1:
                yield from _address(match.start(), given)
    for match in _IPV4.finditer(text):
        yield from _address(match.start(), match[0])


def find_international(text: str) -> Iterator[Span]:
    """Phone numbers with + or 00 and a country code; Chinese mobile numbers are left to `find_mobiles`."""
    if "+" not in text and "00" not in text:
        return
    import phonenumbers

    for match in _INTERNATIONAL.finditer(text):
        candidate = match[0]
        while len(candidate) > 7:
            try:
                number = phonenumbers.parse(candidate if candidate[0] == "+" else "+" + candidate[2:], None)
            except phonenumbers.NumberParseException:
                break
            if phonenumbers.is_possible_number(number):
                value = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
                if not _CN_MOBILE.fullmatch(value):
                    yield Span(match.start(), match.start() + len(candidate), value)
                break
            candidate = _shortened(candidate)


def find_phones(text: str) -> Iterator[Span]:
    """Phone numbers: North American, national with a trunk 0, and others after a telling word."""
    for match in _NORTH_AMERICAN.finditer(text):
        digits = _digits(match[0])
        yield Span(match.start(), match.end(), "+1" + digits[-10:])
    for match in _NATIONAL.finditer(text):
        candidate = "" if _DATE.search(match[0]) else match[0]
        while len(candidate) >= 9:
            if 9 <= len(_digits(candidate)) <= 12 and _is_national(candidate):
                yield Span(match.start(), match.start() + len(candidate), _digits(candidate))
                break
            candidate = _shortened(candidate)
    for match in _SPOKEN.finditer(text):
        if not _DATE.search(match[1]) and not _THOUSANDS.fullmatch(match[1]):
            yield Span(match.start(1), match.end(1), _digits(match[1]))


FINDERS: tuple[tuple[str, str, Callable[[str], Iterator[Span]]], ...] = (
    ("email", "EMAIL", find_emails),
    ("iban", "IBAN", find_ibans),
    ("cn_id", "CN_ID", find_resident_ids),
    ("card", "CARD", find_cards),
    ("ip", "IP", find_addresses),
    ("phone", "PHONE", find_international),
    ("cn_mobile", "MOBILE", find_mobiles),
    ("phone", "PHONE", find_phones),
)
"""Kind, the word in its pseudonym, and its finder, in the order in which they are applied."""


def _digits(text: str) -> str:
    return "".join(mark for mark in text if mark.isdecimal())


def _is_date(text: str) -> bool:
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:])).year >= 1850
    except ValueError:
        return False


def _card_length(groups: list[tuple[int, str]], index: int) -> int:
    """How many digit groups from `index` make a card number; 0 when none do."""
    number = ""
    for count, (_, part) in enumerate(groups[index:], start=1):
        number += part
        if len(number) > 19 or len(part) < 3 or (count == 1 and len(part) < 4):
            return 0
        if len(number) >= 13 and _is_card(number):
            return count
    return 0


def _is_card(number: str) -> bool:
    size, lead = len(number), number[:2]
    if number[0] == "4":
        fits = size in (13, 16, 19)
    elif lead in ("34", "37"):
        fits = size == 15
    elif lead in ("30", "36", "38", "39"):
        fits = size in (14, 16, 19)
    else:
        fits = number[0] in "2356" and size in (16, 19)
    return fits and bool(luhn.is_valid(number))


def _address(start: int, given: str) -> Iterator[Span]:
    try:
        value = str(ipaddress.ip_address(given))
    except ValueError:
        return
    yield Span(start, start + len(given), value)


def _shortened(candidate: str) -> str:
    """Without its last group of digits, which may belong to the next number; empty for a single group."""
    shorter = re.match(r"(.*\d)\D+\d+$", candidate)
    return shorter[1] if shorter else ""


def _is_national(text: str) -> bool:
    return _national_pattern().fullmatch(_digits(text)) is not None


@functools.cache
def _national_pattern() -> re.Pattern[str]:
    """The numbers of `_REGIONS` as dialled inside the region, from the metadata of `phonenumbers`."""
    from phonenumbers import PhoneMetadata

    patterns = []
    for region in _REGIONS:
        metadata = PhoneMetadata.metadata_for_region(region, None)
        assert metadata is not None
        assert metadata.general_desc is not None
        trunk = metadata.national_prefix or ""  # Italy has none: its 0 belongs to the number
        patterns.append(f"{trunk}(?:{metadata.general_desc.national_number_pattern})")
    return re.compile("|".join(patterns))
