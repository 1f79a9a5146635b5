"""Keyvouch for apps, requesters and administrators: sign in without a password, check who did.

An app that needs a sign-in:

    from keyvouch_client import Connection, SignIn

    async with Connection("keyvouch.example.org:7443") as connection:
        async with SignIn(connection, tenant="example", username="ada", app_id="shop", app_name="Shop") as sign_in:
            print("Type", sign_in.number, "on your device.")
            session = await sign_in.session()
        stub = OrdersStub(channel)
        await stub.ListOrders(request, metadata=await session.metadata())

Many sign-ins at once use one `SignInStream`. A resource server puts `RequireSession` (grpc.aio) or
`RequireSessionSync` (threads) in front of its services and asks `current_session()` inside a handler.

With a security key on this computer, `SecurityKeySignIn` needs no device agent.

Every failure is a `keyvouch.errors.KeyvouchError`. What is not here: the keys that approve a sign-in. Those
never leave the device agent, or the security key.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keyvouch_client.access import AccessRules, Requirement
    from keyvouch_client.connection import Connection, ServerIdentity
    from keyvouch_client.interceptor import RequireSession, current_session
    from keyvouch_client.interceptor_sync import RequireSessionSync
    from keyvouch_client.jwks import JwksDocument, jwks_from_channel
    from keyvouch_client.security_key import KeyAssertion, KeyRequest, SecurityKeySigner, SecurityKeySignIn
    from keyvouch_client.session import Session
    from keyvouch_client.sign_in import SignIn, sign_in_with_access_pass
    from keyvouch_client.sign_in_stream import PendingSignIn, SignInStream

__all__ = [
    "AccessRules",
    "Connection",
    "JwksDocument",
    "KeyAssertion",
    "KeyRequest",
    "PendingSignIn",
    "RequireSession",
    "RequireSessionSync",
    "Requirement",
    "SecurityKeySignIn",
    "SecurityKeySigner",
    "ServerIdentity",
    "Session",
    "SignIn",
    "SignInStream",
    "current_session",
    "jwks_from_channel",
    "sign_in_with_access_pass",
]

_HOME = {
    "AccessRules": "access",
    "Connection": "connection",
    "JwksDocument": "jwks",
    "KeyAssertion": "security_key",
    "KeyRequest": "security_key",
    "PendingSignIn": "sign_in_stream",
    "RequireSession": "interceptor",
    "RequireSessionSync": "interceptor_sync",
    "Requirement": "access",
    "SecurityKeySignIn": "security_key",
    "SecurityKeySigner": "security_key",
    "ServerIdentity": "connection",
    "Session": "session",
    "SignIn": "sign_in",
    "SignInStream": "sign_in_stream",
    "current_session": "interceptor",
    "jwks_from_channel": "jwks",
    "sign_in_with_access_pass": "sign_in",
}


def __getattr__(name: str) -> object:
    """Import public names on first use, so that the command line starts without gRPC (PEP 562)."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
