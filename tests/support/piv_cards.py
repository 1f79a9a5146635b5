"""A client of the virtual PIV card, written from NIST SP 800-73-4 part 2: APDUs by hand, without a reader."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from keyvouch_bench.piv_card import Authority, VirtualPivCard
from keyvouch_bench.piv_card.identifiers import KeyAlgorithm, Object
from keyvouch_bench.piv_card.state import DEFAULT_MANAGEMENT_KEY, CardState
from keyvouch_bench.piv_card.tlv import build, parse, single

__all__ = ["BATCH", "DEFAULT_PIN", "DEFAULT_PUK", "ISSUER", "NEVER_VALID", "CardClient", "blank", "pad", "snapshot"]

BATCH: Final = Authority.root("Batch of the tests")
ISSUER: Final = Authority.root("Organisation of the tests")

DEFAULT_PIN: Final = "123456"
DEFAULT_PUK: Final = "12345678"
NEVER_VALID: Final = "999999"

_CHAIN: Final = 0x10
_LONGEST: Final = 255

Answer = tuple[int, bytes]


def blank(**options: Any) -> CardClient:
    """A client of a fresh blank card."""
    return CardClient(VirtualPivCard.blank(BATCH, **{"serial": 15732500} | options))


def pad(value: str) -> bytes:
    """A PIN or PUK as it is sent."""
    return value.encode().ljust(8, b"\xff")


def snapshot(state: CardState) -> dict[str, Any]:
    """All that a card keeps, but for the tries that are left."""
    kept = {item.name: getattr(state, item.name) for item in dataclasses.fields(state)}
    secrets = {name: (kept[name].value, kept[name].tries) for name in ("pin", "puk")}
    return kept | secrets | {name: dict(kept[name]) for name in ("keys", "objects")}


class CardClient:
    """Sends commands, in pieces where they are long, and joins what comes back."""

    def __init__(self, card: VirtualPivCard) -> None:
        self.card = card

    def send(self, instruction: int, p1: int = 0, p2: int = 0, data: bytes = b"") -> Answer:
        """The status word, and the data."""
        pieces = [data[place : place + _LONGEST] for place in range(0, len(data), _LONGEST)] or [b""]
        for piece in pieces[:-1]:
            answer = self.card.answer(bytes([_CHAIN, instruction, p1, p2, len(piece)]) + piece)
            assert answer == b"\x90\x00"
        last = bytes([len(pieces[-1])]) + pieces[-1] if pieces[-1] else b""
        answer = self.card.answer(bytes([0, instruction, p1, p2]) + last + b"\0")
        whole = answer[:-2]
        while answer[-2] == 0x61:
            answer = self.card.answer(bytes([0, 0xC0, 0, 0, answer[-1]]))
            whole += answer[:-2]
        return int.from_bytes(answer[-2:], "big"), whole

    def good(self, instruction: int, p1: int = 0, p2: int = 0, data: bytes = b"") -> bytes:
        """The data of a command that succeeds."""
        status, answer = self.send(instruction, p1, p2, data)
        assert status == 0x9000, f"{status:04X}"
        return answer

    def verify(self, pin: str) -> int:
        """The status word of VERIFY."""
        return self.send(0x20, 0, 0x80, pad(pin))[0]

    def tries(self) -> int:
        """The status word of VERIFY without data."""
        return self.send(0x20, 0, 0x80)[0]

    def witness(self, algorithm: int = 3) -> bytes:
        """Ask for the witness, which the management key has encrypted."""
        return single(single(self.good(0x87, algorithm, 0x9B, bytes.fromhex("7C028000")), 0x7C), 0x80)

    def challenge(self, algorithm: int = 3) -> bytes:
        """Ask for the card's challenge."""
        return single(single(self.good(0x87, algorithm, 0x9B, bytes.fromhex("7C028100")), 0x7C), 0x81)

    def become_administrator(self, key: bytes = DEFAULT_MANAGEMENT_KEY, algorithm: int = 3) -> int:
        """Mutual authentication; the status word."""
        cipher = Cipher(TripleDES(key) if algorithm == 3 else algorithms.AES(key), modes.ECB())
        witness = self.witness(algorithm)
        challenge = bytes(range(len(witness)))
        plain = cipher.decryptor().update(witness)
        template = build(0x7C, build(0x80, plain) + build(0x81, challenge))
        status, answer = self.send(0x87, algorithm, 0x9B, template)
        if status == 0x9000:
            assert single(single(answer, 0x7C), 0x82) == cipher.encryptor().update(challenge)
        return status

    def show_management_key(self, key: bytes = DEFAULT_MANAGEMENT_KEY, algorithm: int = 3) -> int:
        """The card challenges, the client answers; the status word."""
        cipher = Cipher(TripleDES(key) if algorithm == 3 else algorithms.AES(key), modes.ECB())
        response = cipher.encryptor().update(self.challenge(algorithm))
        return self.send(0x87, algorithm, 0x9B, build(0x7C, build(0x82, response)))[0]

    def generate(self, slot: int, algorithm: int, more: bytes = b"") -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
        """GENERATE ASYMMETRIC KEY PAIR: the public key."""
        answer = self.good(0x47, 0, slot, build(0xAC, build(0x80, bytes([algorithm])) + more))
        elements = parse(single(answer, 0x7F49))
        if algorithm == KeyAlgorithm.RSA_2048:
            modulus, exponent = (int.from_bytes(elements[tag], "big") for tag in (0x81, 0x82))
            return rsa.RSAPublicNumbers(exponent, modulus).public_key()
        curve = ec.SECP256R1() if algorithm == KeyAlgorithm.P256 else ec.SECP384R1()
        return ec.EllipticCurvePublicKey.from_encoded_point(curve, elements[0x86])

    def use(self, slot: int, algorithm: int, block: bytes, tag: int = 0x81) -> Answer:
        """GENERAL AUTHENTICATE with a key: the status word, and the response."""
        status, answer = self.send(0x87, algorithm, slot, build(0x7C, build(0x82) + build(tag, block)))
        return status, single(single(answer, 0x7C), 0x82) if answer else b""

    def read(self, tag: int) -> Answer:
        """GET DATA."""
        return self.send(0xCB, 0x3F, 0xFF, build(0x5C, tag.to_bytes(1 if tag == Object.DISCOVERY else 3, "big")))

    def write(self, tag: int, value: bytes) -> int:
        """PUT DATA; the status word."""
        return self.send(0xDB, 0x3F, 0xFF, build(0x5C, tag.to_bytes(3, "big")) + build(0x53, value))[0]

    def each(self, commands: Sequence[tuple[int, int, int, bytes]]) -> list[int]:
        """The status words of several commands."""
        return [self.send(*command)[0] for command in commands]
