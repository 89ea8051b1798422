#!/bin/sh
# Test lb, without the stubs of the mesh, at the lowest versions of its dependencies that pyproject.toml allows.
set -eu
uv=$(tools/uv.sh)
venv=.cache/lowest

locked() { sed -n "s/^\($1==[^ ;]*\).*/\1/p" requirements-dev.lock; }

"$uv" venv --quiet --clear --python "${PYTHON:-.venv/bin/python}" "$venv"
"$uv" pip compile pyproject.toml --quiet --no-header --no-annotate --python "$venv/bin/python" \
  --resolution lowest-direct --output-file "$venv/lowest.txt"
# The tests' own tools are today's; the health service is one whose generated code fits an old protobuf.
"$uv" pip install --quiet --python "$venv/bin/python" -r "$venv/lowest.txt" grpcio-health-checking==1.50.0 \
  "$(locked pytest)" "$(locked pytest-asyncio)" "$(locked hypothesis)" "$(locked httpx2)" "$(locked cryptography)"
grep -E '^(grpcio|protobuf|py-consul|tenacity|opentelemetry-api)==' "$venv/lowest.txt"
"$venv/bin/python" -m pytest -o pythonpath=. tests/core tests/transport tests/discovery "$@"
