#!/bin/sh
# Generates radiopaque/wire/v1 from proto/radiopaque/v1.
#
#   proto/generate.sh [PYTHON]
#
# PYTHON needs grpcio-tools 1.81.1: what it generates imports on protobuf 6.33 and on 7.
# The path is mapped, so that the stubs import each other as radiopaque.wire.v1: a Python package
# named `proto` would collide with proto-plus.
set -eu
python=${1:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
mkdir -p radiopaque/wire/v1
"$python" -m grpc_tools.protoc \
  -I radiopaque/wire/v1=proto/radiopaque/v1 \
  --python_out=. --pyi_out=. \
  radiopaque/wire/v1/plan.proto radiopaque/wire/v1/crypten.proto \
  radiopaque/wire/v1/services.proto
