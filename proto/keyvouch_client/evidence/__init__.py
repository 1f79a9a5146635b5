"""Recorded evidence: reading it from files, and giving the verdict of `keyvouch.attestation` on each piece.

    stream      files to JSON values, with the place each stands at
    members     one JSON object to typed values, every fault named by its path
    ceremonies  a recorded registration or authentication to a call of the verifier
    tpm         a recorded TPM2_Certify or TPM2_Quote to a call of the verifier
    receipts    a receipt of a sign-in, or an exported audit log, to a call of the core
    vectors     one recorded vector to its verdict, and to what was expected of it

The form of the files is described in `proto/README.md`, "Evidence files". Nothing here needs a server, and nothing
imports gRPC. Not here: the command line (`keyvouch_client.commands.verify`).
"""
