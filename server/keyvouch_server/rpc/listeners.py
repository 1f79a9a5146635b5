"""The two listeners: who listens where, with which services, under which limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from keyvouch.errors import KeyvouchError, Reason
from keyvouch.v1 import (
    administration_pb2,
    administration_pb2_grpc,
    directory_pb2,
    directory_pb2_grpc,
    enrolment_pb2,
    enrolment_pb2_grpc,
    oversight_pb2,
    oversight_pb2_grpc,
    policies_pb2,
    policies_pb2_grpc,
    prompts_pb2,
    prompts_pb2_grpc,
    same_device_pb2,
    same_device_pb2_grpc,
    security_info_pb2,
    security_info_pb2_grpc,
    sessions_pb2,
    sessions_pb2_grpc,
    sign_in_pb2,
    sign_in_pb2_grpc,
)
from keyvouch_server.ports import CertificateSource, KeyPair
from keyvouch_server.rpc.interceptors import Gatekeeper

PUBLIC_BYTES: Final = 64 * 1024
"""Largest message that anybody may send."""
DEVICE_BYTES: Final = 256 * 1024
"""Largest message that a registered device may send: a health report has the firmware's log of the boot."""

OPTIONS: Final = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
    ("grpc.max_concurrent_streams", 1000),
    # A dead peer is noticed in about a minute; a client may ping as often as every 10 seconds.
    ("grpc.keepalive_time_ms", 45_000),
    ("grpc.keepalive_timeout_ms", 15_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 3),
)
_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"


@dataclass(frozen=True, slots=True)
class Servicers:
    """One servicer per service."""

    sign_in: sign_in_pb2_grpc.SignInServiceServicer
    sessions: sessions_pb2_grpc.SessionServiceServicer
    enrolment: enrolment_pb2_grpc.EnrolmentServiceServicer
    security_info: security_info_pb2_grpc.SecurityInfoServiceServicer
    administration: administration_pb2_grpc.AdministrationServiceServicer
    directory: directory_pb2_grpc.DirectoryServiceServicer
    policies: policies_pb2_grpc.PolicyServiceServicer
    oversight: oversight_pb2_grpc.OversightServiceServicer
    prompts: prompts_pb2_grpc.PromptServiceServicer
    same_device: same_device_pb2_grpc.SameDeviceServiceServicer


@dataclass(frozen=True, slots=True)
class Listening:
    """A running listener: its port, and how to stop it."""

    server: grpc.aio.Server
    port: int

    async def stop(self, grace: float) -> None:
        """Refuse new calls, give running ones `grace` seconds."""
        await self.server.stop(grace)


async def listen_public(
    servicers: Servicers, gatekeeper: Gatekeeper, address: str, certificate: CertificateSource | None
) -> Listening:
    """Clients and enrolment: TLS, no client certificate; plaintext when there is no certificate."""
    server = _server(gatekeeper, PUBLIC_BYTES)
    sign_in_pb2_grpc.add_SignInServiceServicer_to_server(servicers.sign_in, server)
    sessions_pb2_grpc.add_SessionServiceServicer_to_server(servicers.sessions, server)
    enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(servicers.enrolment, server)
    security_info_pb2_grpc.add_SecurityInfoServiceServicer_to_server(servicers.security_info, server)
    administration_pb2_grpc.add_AdministrationServiceServicer_to_server(servicers.administration, server)
    directory_pb2_grpc.add_DirectoryServiceServicer_to_server(servicers.directory, server)
    policies_pb2_grpc.add_PolicyServiceServicer_to_server(servicers.policies, server)
    oversight_pb2_grpc.add_OversightServiceServicer_to_server(servicers.oversight, server)
    names = [
        module.DESCRIPTOR.services_by_name[name].full_name
        for module, name in (
            (sign_in_pb2, "SignInService"),
            (sessions_pb2, "SessionService"),
            (enrolment_pb2, "EnrolmentService"),
            (security_info_pb2, "SecurityInfoService"),
            (administration_pb2, "AdministrationService"),
            (directory_pb2, "DirectoryService"),
            (policies_pb2, "PolicyService"),
            (oversight_pb2, "OversightService"),
        )
    ]
    await _add_common(server, names)
    credentials = _tls(certificate) if certificate else None
    return await _start(server, address, credentials)


async def listen_devices(
    servicers: Servicers, gatekeeper: Gatekeeper, address: str, certificate: CertificateSource, *, root: bytes
) -> Listening:
    """Enrolled agents: mutual TLS under the server's own authority."""
    server = _server(gatekeeper, DEVICE_BYTES)
    prompts_pb2_grpc.add_PromptServiceServicer_to_server(servicers.prompts, server)
    same_device_pb2_grpc.add_SameDeviceServiceServicer_to_server(servicers.same_device, server)
    names = [
        prompts_pb2.DESCRIPTOR.services_by_name["PromptService"].full_name,
        same_device_pb2.DESCRIPTOR.services_by_name["SameDeviceService"].full_name,
    ]
    await _add_common(server, names)
    return await _start(server, address, _tls(certificate, root=root))


def _server(gatekeeper: Gatekeeper, most_bytes: int) -> grpc.aio.Server:
    limit = ("grpc.max_receive_message_length", most_bytes)
    return grpc.aio.server(interceptors=(gatekeeper,), options=(limit, *OPTIONS))


def _tls(certificate: CertificateSource, *, root: bytes | None = None) -> grpc.ServerCredentials:
    """TLS with a certificate that may change between handshakes; with `root`, clients must show one under it."""

    def configuration(pair: KeyPair) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(pair.key, pair.chain)], root_certificates=root)

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        pair = certificate.renewed()
        return configuration(pair) if pair else None

    return grpc.dynamic_ssl_server_credentials(
        configuration(certificate.load()),
        renewed,  # type: ignore[arg-type] # the stub forgets None, which means no change
        require_client_authentication=root is not None,
    )


async def _start(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> Listening:
    try:
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        await server.start()
    except RuntimeError as error:
        raise KeyvouchError(
            Reason.CONFIGURATION,
            f"The server cannot listen on {address}: {error}.",
            fix="Stop the program that uses the port, or choose another one in the configuration.",
        ) from None
    return Listening(server, port)


async def _add_common(server: grpc.aio.Server, names: Sequence[str]) -> None:
    """Health for every service, and reflection under both of its names (the v1 messages are the same bytes)."""
    checks = health.aio.HealthServicer()
    for name in ("", *names):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    described = (*names, health.SERVICE_NAME, reflection.SERVICE_NAME, _REFLECTION_V1)
    servicer: Any = reflection.aio.ReflectionServicer(service_names=described)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in (reflection.SERVICE_NAME, _REFLECTION_V1):
        generic = grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler})
        server.add_generic_rpc_handlers((generic,))
