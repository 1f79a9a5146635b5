"""Pure rules of the server: records, policy, the state machines. No I/O, clock, randomness or grpc."""
