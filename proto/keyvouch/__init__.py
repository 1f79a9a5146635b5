"""Keyvouch's protocol core: statements, evidence and errors, with no I/O, clock or randomness.

`keyvouch.v1` holds the gRPC messages; everything beside it is pure and needs neither grpc nor protobuf.
"""
