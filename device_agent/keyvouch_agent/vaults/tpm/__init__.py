"""The TPM vault: keys that a chip made and keeps, behind a PIN that the chip enforces.

    connection, response_codes   one connection for one ceremony, every refusal in words
    answers                      every other answer, held against what was asked for
    profile, templates, parent   what the TPM can do, what its keys are
    sessions, pin_index          encrypted sessions; the PIN's counter
    endorsement, attestation_key who made the TPM; what it says of its keys
    account, account_file, key_file   what is kept on the disk
    vault, gated, recorded       the `KeyVault` port: keys, the PIN, the record
    pin_grant                    leave to set the PIN
    credential_secrets           what is kept beside a key
    grant_review                 a server's leave to set the PIN, looked through
    registration, replacement, health   the ceremonies with the server
    losses, standing             what is gone and why, how an account stands
    channel_key                  the key of the device channel
    survey                       what a person may want to know of the TPM

Modules here import tpm2-pytss, which loads libtss2. So nothing outside imports them before a TPM is wanted; but for
`connection`, which says in words what is missing.
"""
