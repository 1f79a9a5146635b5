"""The agent's side of `keyvouch.v1`: the only place here that knows gRPC."""
