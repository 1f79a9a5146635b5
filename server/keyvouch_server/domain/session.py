"""What a session says of the sign-in it came from: `acr`, how strong it was, and `amr`, what was proved (RFC 8176).

Both are fixed when the session is made and never change: who needs more signs in again, and gets another session (P13).
"""

from __future__ import annotations

from typing import Final

from keyvouch.assurance import Assurance
from keyvouch_server.domain.model import Session, SignIn, SignInWay

ACR_NUMBER_MATCHED: Final = "number-matched"
ACR_NUMBER_CHOSEN: Final = "number-chosen"
"""Weaker: one of three numbers was picked, and a third of all blind picks are right."""
ACR_PHISHING_RESISTANT: Final = "phishing-resistant"
"""P3: only of sign-ins whose client is the device that approves, or holds the security key and has made sure for which
server it signs. Matching a number never earns it.
"""
ACR_ACCESS_PASS: Final = "access-pass"
AMR_APPROVAL: Final = "pop pin mfa"
"""PS7: possession of the key and the PIN that unlocks it: two factors, no second prompt (RFC 8176)."""
AMR_SECURITY_KEY: Final = "user pin mfa"
"""Beside where the key is: a touch, and the PIN or whatever else the key takes for it."""
AMR_ACCESS_PASS: Final = "otp"


def acr_of(row: SignIn) -> str:
    """How strong an approved sign-in was."""
    if row.way is not SignInWay.PROMPT:
        return ACR_PHISHING_RESISTANT
    return ACR_NUMBER_CHOSEN if row.choices else ACR_NUMBER_MATCHED


def amr_of(row: SignIn) -> str:
    """What was proved. A key counts as one in hardware only where somebody vouches for it."""
    if row.way is not SignInWay.SECURITY_KEY:
        return AMR_APPROVAL
    in_hardware = bool(row.assurance) and Assurance.parse(row.assurance).protection.is_hardware
    return f"{'hwk' if in_hardware else 'swk'} {AMR_SECURITY_KEY}"


def way_of(session: Session) -> SignInWay:
    """By which way the approval came that opened a session."""
    if session.certificate_bound:
        return SignInWay.SAME_DEVICE
    return SignInWay.SECURITY_KEY if session.acr == ACR_PHISHING_RESISTANT else SignInWay.PROMPT
