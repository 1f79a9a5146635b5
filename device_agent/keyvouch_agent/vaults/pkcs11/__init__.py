"""The PKCS#11 vault: keys in smartcards, tokens and HSMs, behind the token's own PIN.

    module_path                  which modules are loaded at all
    uri                          which token and which key are meant (RFC 7512)
    library, session             the module, its tokens; what is done while one is used
    failures, pins               every refusal in words; the tries that are left
    keys, signing                keys that the token makes or already has; their signatures
    piv, readers                 what only APDUs tell of a PIV card: exact tries, attestation; what PC/SC tells of any
    profile, record, account     which token an account is on; what is kept on the disk
    recorded, gated, vault       the `VerifyingVault` port: the record, the PIN, the keys

There are two sources of keys. A token that makes keys for its user (an HSM, SoftHSM2, a card with an applet of its own)
makes a new one for each credential. A PIV card does that only for who has its management key (NIST SP 800-73-4 part 1
section 3.1.3); so there the vault uses the keys that the organisation, or the owner's own tool, put into slot 9A or 9C.

Modules here import python-pkcs11. So nothing outside imports them before a card is wanted; but for `module_path`, `uri`
and `failures`, which do without, and `failures.require_library`, which says in words what is missing.
"""
