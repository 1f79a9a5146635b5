"""The gRPC messages and stubs, generated from the .proto files beside this one. Do not edit the stubs."""
