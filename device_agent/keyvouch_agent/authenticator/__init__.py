"""A CTAP 2.1 authenticator: bytes in, a status byte and CBOR out; CTAP1/U2F beside it.

Section numbers in this package are those of the Client to Authenticator Protocol 2.1 (FIDO Alliance,
15 June 2021). Keys, PIN protection and storage are behind the `KeyVault` port. What is *not* here:
transports, files, clocks, randomness, user interfaces. They all come in through ports.
"""
