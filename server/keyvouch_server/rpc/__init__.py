"""gRPC: one servicer per service, conversion, the error-to-status table, interceptors, listeners."""
