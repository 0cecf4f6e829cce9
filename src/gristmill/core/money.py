"""Money: prices are `Decimal`, amounts are whole nano-units of a currency, floats never.

Invariant: an amount is an `int` of 10⁻⁹ currency units and rounding happens in exactly the functions here,
half to even. A posting is round(cumulative after) − round(cumulative before), so that any partition of the
usage sums to the same.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

NANO = 10**9
MAX_NANO = 2**63 - 1
# Minor units (decimal places) by ISO 4217; two where not listed.
_MINOR_DIGITS = {"JPY": 0, "KRW": 0, "VND": 0, "CLP": 0, "KWD": 3, "BHD": 3, "JOD": 3, "TND": 3}


def to_nano(amount: Decimal) -> int:
    """Round a Decimal amount of currency units to whole nano-units, half to even.

    Raises:
        OverflowError: it does not fit 64 bits (about 9.2 thousand million units).
    """
    if not isinstance(amount, Decimal):
        raise TypeError(f"money is Decimal, not {type(amount).__name__}")
    nano = int((amount * NANO).to_integral_value(rounding=ROUND_HALF_EVEN))
    if abs(nano) > MAX_NANO:
        raise OverflowError(f"amount {amount} does not fit 64-bit nano-units")
    return nano


def to_decimal(nano: int) -> Decimal:
    """Nano-units as a Decimal of currency units, exactly."""
    return Decimal(nano).scaleb(-9)


def minor_digits(currency: str) -> int:
    """Decimal places of the currency's minor unit. Source: ISO 4217."""
    return _MINOR_DIGITS.get(currency, 2)


def round_to_minor(nano: int, currency: str) -> int:
    """Round nano-units to the currency's minor unit, still in nano-units (an invoice does this once)."""
    quantum = Decimal(1).scaleb(-minor_digits(currency))
    return to_nano(to_decimal(nano).quantize(quantum, rounding=ROUND_HALF_EVEN))


def format_money(nano: int, currency: str, digits: int | None = None) -> str:
    """`12.30 USD`; more digits when asked, as for prices per token."""
    places = minor_digits(currency) if digits is None else digits
    quantum = Decimal(1).scaleb(-places)
    return f"{to_decimal(nano).quantize(quantum, rounding=ROUND_HALF_EVEN):,f} {currency}"
