#!/bin/sh
# Generates the committed stubs, with the grpcio-tools and mypy-protobuf that pyproject.toml pins. An argument names
# another folder to write to.
set -eu
out=$(cd "${1:-$(dirname "$0")}" && pwd)
cd "$(dirname "$0")"
python -m grpc_tools.protoc -I . --python_out="$out" --grpc_python_out="$out" --mypy_out="$out" --mypy_grpc_out="$out" \
    keyvouch/v1/*.proto
