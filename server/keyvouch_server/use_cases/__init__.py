"""One ceremony each, as numbered steps that match the drawings in the .proto files. No grpc here."""
