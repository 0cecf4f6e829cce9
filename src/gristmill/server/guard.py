"""The operator's door: Host check, operator credential, roles, and protection from forged requests.

Invariant: outside `/healthz`, `/readyz` and `/v1` nothing is reached without an operator credential, and a
request that changes state is refused when a browser could have sent it by itself (Basic credentials, or an
Origin of another host). Sources: RFC 7617 (Basic), RFC 6750 (Bearer), OWASP CSRF cheat sheet.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response

from gristmill.app.operators import Operator
from gristmill.core.errors import Forbidden, GristmillError, NotAuthenticated, UsageError
from gristmill.server.errors import respond

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_FINANCE_NOUNS = frozenset({"invoice", "wallet", "plan", "margin", "usage", "request", "customer"})
_CHALLENGE = 'Basic realm="Gristmill operator", charset="UTF-8"'

Authenticate = Callable[[str], Operator | None]
IsRead = Callable[[str, str], bool]


def check_host(headers: Headers, host: str) -> None:
    """Refuse a Host that is neither the configured one, localhost, nor an address (DNS rebinding).

    An address is safe: a rebound name is still a name in the browser's Host header.

    Raises:
        UsageError: another name.
    """
    name = _host_name(headers.get("host", ""))
    if name in ("localhost", host.lower()) or _is_address(name):
        return
    raise UsageError(
        "This server does not answer to that Host name.", hint=f"Use {host} or set `host`.", param="host"
    )


def authenticate(headers: Headers, find: Authenticate) -> tuple[Operator, bool]:
    """The operator a request shows, and whether by Basic.

    Raises:
        NotAuthenticated: no credential, or a wrong one.
    """
    scheme, _, value = headers.get("authorization", "").partition(" ")
    is_basic = scheme.lower() == "basic"
    secret = _basic_password(value) if is_basic else value.strip() if scheme.lower() == "bearer" else ""
    operator = find(secret) if secret else None
    if operator is None:
        raise NotAuthenticated(
            "This needs the operator credential (gmop-…).",
            hint="Send it as Bearer token, or as password of any user name.",
        )
    return operator, is_basic


def authorise(
    method: str, path: str, headers: Headers, operator: Operator, is_basic: bool, is_read: IsRead
) -> None:
    """Refuse what the role may not do and what a browser may have sent by itself.

    Args:
        method: of the request.
        path: of the request.
        headers: of the request.
        operator: from `authenticate`.
        is_basic: from `authenticate`.
        is_read: whether an operation (noun, verb) changes nothing, so that a viewer may run it.

    Raises:
        Forbidden: role, Basic credentials on a change, or an Origin of another host.
    """
    if method in _SAFE_METHODS:
        return
    if is_basic:
        raise Forbidden(
            "Changes need the credential as Bearer token.", hint="Basic is for reading in a browser."
        )
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
        raise Forbidden("The Origin of this request is another host.")
    noun, verb = _noun_and_verb(path)
    if operator.role == "owner" or is_read(noun, verb):
        return
    if operator.role == "finance" and noun in _FINANCE_NOUNS:
        return
    raise Forbidden(f"The role {operator.role} may not do this.", hint="Ask an operator with the role owner.")


def refusal(error: GristmillError) -> Response:
    """The refusal as a response; a missing credential asks a browser for it."""
    response = respond(error)
    if error.status == HTTPStatus.UNAUTHORIZED:
        response.headers["www-authenticate"] = _CHALLENGE
    return response


def _noun_and_verb(path: str) -> tuple[str, str]:
    parts = path.strip("/").split("/")
    return (parts[1], parts[2]) if len(parts) > 2 and parts[0] == "manage" else ("", "")


def _basic_password(value: str) -> str:
    try:
        return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _host_name(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
