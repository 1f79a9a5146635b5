"""What the agent wants of the server when it signs in for an app on this device.

The values mirror the messages of `keyvouch/v1/same_device.proto`, without its library: only `rpc` knows that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from keyvouch_agent.agent_ports import Answer, Secret

__all__ = ["AppRequest", "BegunSignIn", "OpenedSession", "SessionServer"]


@dataclass(frozen=True, slots=True)
class AppRequest:
    """What an app asks for. An empty audience means the app itself; the message may be empty."""

    app_id: str
    app_name: str
    audience: str = ""
    binding_message: str = ""


@dataclass(frozen=True, slots=True)
class BegunSignIn:
    """SameDeviceServiceBeginSignInResponse. `number` goes into the statement of an approval."""

    sign_in_id: str
    token: Secret
    prompt_id: str
    offer: bytes
    expires_at: int
    number: str


@dataclass(frozen=True, slots=True)
class OpenedSession:
    """CompleteSignInResponse of an approval. Instants in seconds since the epoch, on the server's clock."""

    session_id: str
    access_token: Secret
    access_expires_at: int
    refresh_token: Secret
    session_expires_at: int
    acr: str


class SessionServer(Protocol):
    """The device listener's calls about sessions of this device. Every method raises errors of `keyvouch.errors`."""

    async def begin_sign_in(self, wanted: AppRequest) -> BegunSignIn:
        """Begin a sign-in of this device's user."""

    async def complete_sign_in(self, begun: BegunSignIn, answer: Answer) -> OpenedSession:
        """Hand in an approval. The same answer gives the same session, however often it is sent."""

    async def close(self) -> None:
        """End the channel."""
