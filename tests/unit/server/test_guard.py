"""The operator's door, without a server."""

from __future__ import annotations

import base64

import pytest
from starlette.datastructures import Headers

from gristmill.app.operators import Operator
from gristmill.core.errors import Forbidden, NotAuthenticated, UsageError
from gristmill.server import guard

SECRET = "gmop-right"
OWNER = Operator("op_1", "owner")


def find(secret: str) -> Operator | None:
    """An operator table of one row."""
    return OWNER if secret == SECRET else None


def is_read(_noun: str, verb: str) -> bool:
    """Which operations read."""
    return verb in ("list", "show")


def basic(password: str) -> Headers:
    """Basic credentials with any user name."""
    return Headers({"authorization": "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()})


@pytest.mark.parametrize(
    "host", ["localhost:8080", "127.0.0.1", "[::1]:8080", "mill.example", "MILL.example:1"]
)
def test_own_names_and_addresses_pass_the_host_check(host: str) -> None:
    """An operator could not open the console under the configured name or by address."""
    guard.check_host(Headers({"host": host}), "mill.example")


@pytest.mark.parametrize("host", ["evil.example", "", "localhost.evil.example", "127.0.0.1.evil.example"])
def test_other_names_fail_the_host_check(host: str) -> None:
    """A rebound DNS name could read the console with the operator's remembered credential."""
    with pytest.raises(UsageError):
        guard.check_host(Headers({"host": host}), "127.0.0.1")


def test_bearer_and_basic_show_the_same_credential() -> None:
    """A browser or a script could not authenticate."""
    assert guard.authenticate(Headers({"authorization": f"Bearer {SECRET}"}), find) == (OWNER, False)
    assert guard.authenticate(basic(SECRET), find) == (OWNER, True)


@pytest.mark.parametrize(
    "headers",
    [
        Headers({}),
        basic("wrong"),
        Headers({"authorization": "Basic ???"}),
        Headers({"authorization": "Bearer "}),
    ],
)
def test_no_or_wrong_credential_is_refused(headers: Headers) -> None:
    """Anyone could operate."""
    with pytest.raises(NotAuthenticated):
        guard.authenticate(headers, find)


def test_a_change_needs_more_than_a_browser_sends_by_itself() -> None:
    """A foreign page could make the operator's browser change something (CSRF)."""
    host = {"host": "localhost:8080"}
    with pytest.raises(Forbidden):
        guard.authorise("POST", "/manage/key/create", Headers(host), OWNER, True, is_read)
    foreign = Headers(host | {"origin": "https://evil.example"})
    with pytest.raises(Forbidden):
        guard.authorise("POST", "/manage/key/create", foreign, OWNER, False, is_read)
    own = Headers(host | {"origin": "http://localhost:8080"})
    guard.authorise("POST", "/manage/key/create", own, OWNER, False, is_read)


@pytest.mark.parametrize(
    ("role", "path", "is_allowed"),
    [
        ("owner", "/manage/release/promote", True),
        ("finance", "/manage/invoice/issue", True),
        ("finance", "/manage/release/promote", False),
        ("finance", "/manage/release/list", True),
        ("viewer", "/manage/release/list", True),
        ("viewer", "/manage/invoice/issue", False),
        ("viewer", "/manage", False),
    ],
)
def test_roles_bound_what_an_operator_may_do(role: str, path: str, is_allowed: bool) -> None:
    """A viewer could issue invoices, or finance deploy models."""
    operator = Operator("op_2", role)
    if is_allowed:
        guard.authorise("POST", path, Headers({}), operator, False, is_read)
    else:
        with pytest.raises(Forbidden):
            guard.authorise("POST", path, Headers({}), operator, False, is_read)
