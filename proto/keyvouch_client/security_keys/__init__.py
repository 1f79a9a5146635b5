"""Roaming security keys (FIDO2 over USB HID and PC/SC), for the `keyvouch` command and the device agent alike.

    discovery   what is connected, what keeps a key from use, and waiting for one to come or go
    hid         keys on USB HID, and who may open them
    pcsc        keys in smartcard readers, contact and NFC
    standing    what a key says of itself without a touch: PIN, tries left, room, why it cannot be used
    links       connections that end: with a key that hangs, or breaks the protocol
    selection   one of several keys: by the touch of the person, or by the credential it holds
    failures    what CTAP and python-fido2 raise, as errors that tell a person what to do

They need python-fido2 (extras `agent`, `security-key`), and pyscard for readers (extra `pcsc`). What is not here: the
ceremonies themselves, and trust in anything a key says, which is the server's business.
"""
