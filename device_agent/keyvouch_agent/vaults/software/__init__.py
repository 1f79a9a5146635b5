"""The software-emulated fallback: keys in one sealed file, honestly labelled `software`.

What it proves: nobody reads the keys from the file without guessing the PIN through Argon2id. What it
cannot: a copy of the file can be guessed at offline, six digits hold for hours to days, and the retry
counter in the file can be copied back with it. So the server counts failures too, and policy decides
where this provider is good enough.

Opened without the gate, as a security key for benches, it does not even prove that: then the file itself opens its
keys.
"""

from keyvouch_agent.vaults.private_directory import FileSteps
from keyvouch_agent.vaults.software.master_key import KdfParameters
from keyvouch_agent.vaults.software.vault import SOFTWARE_AAGUID, SoftwareVault

__all__ = ["SOFTWARE_AAGUID", "FileSteps", "KdfParameters", "SoftwareVault"]
