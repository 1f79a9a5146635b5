"""The makers of TPMs, as the TCG has registered them (TCG TPM Vendor ID Registry, family 1.2 and 2.0, section 2).

In certificates a maker stands as `id:` and the eight hexadecimal digits of its number (TCG EK Credential Profile
section 3.1.2). Numbers made up for tests are not in the table, such as FFFFF1D0 of the FIDO conformance tools.
What is not here: whose certificates are trusted. A name in a certificate is worth what its issuer is worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["TpmVendor", "find_vendor"]


@dataclass(frozen=True, slots=True)
class TpmVendor:
    """A maker of TPMs. `code` is the ASCII of its number, without the zero bytes at the end."""

    code: str
    name: str

    @property
    def identifier(self) -> str:
        """How certificates write its number: `id:` and eight digits."""
        return f"id:{self.code.encode().ljust(4, bytes(1)).hex().upper()}"


def find_vendor(identifier: str) -> TpmVendor | None:
    """Return the maker with this `id:XXXXXXXX`, digits in either case; None if there is none."""
    return _BY_IDENTIFIER.get(identifier[:3] + identifier[3:].upper())


_VENDORS = (
    TpmVendor("AMD", "AMD"),
    TpmVendor("ANT", "Ant Group"),
    TpmVendor("ATML", "Atmel"),
    TpmVendor("BRCM", "Broadcom"),
    TpmVendor("CSCO", "Cisco"),
    TpmVendor("FLYS", "Flyslice Technologies"),
    TpmVendor("ROCC", "Fuzhou Rockchip"),
    TpmVendor("GOOG", "Google"),
    TpmVendor("HPI", "HPI"),
    TpmVendor("HPE", "HPE"),
    TpmVendor("HISI", "Huawei"),
    TpmVendor("IBM", "IBM"),
    TpmVendor("IFX", "Infineon"),
    TpmVendor("INTC", "Intel"),
    TpmVendor("LEN", "Lenovo"),
    TpmVendor("MSFT", "Microsoft"),
    TpmVendor("NSM ", "National Semiconductor"),
    TpmVendor("NTZ", "Nationz"),
    TpmVendor("NSG", "NSING"),
    TpmVendor("NTC", "Nuvoton Technology"),
    TpmVendor("QCOM", "Qualcomm"),
    TpmVendor("SMSN", "Samsung"),
    TpmVendor("SECE", "SecEdge"),
    TpmVendor("SNS", "Sinosun"),
    TpmVendor("SMSC", "SMSC"),
    TpmVendor("STM ", "STMicroelectronics"),
    TpmVendor("TXN", "Texas Instruments"),
    TpmVendor("WEC", "Winbond"),
    TpmVendor("SEAL", "Wisekey"),
)
_BY_IDENTIFIER: Mapping[str, TpmVendor] = {vendor.identifier: vendor for vendor in _VENDORS}
