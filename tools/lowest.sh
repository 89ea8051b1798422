#!/bin/sh
# Test lb, without the stubs of the mesh, at the lowest versions of its dependencies that pyproject.toml allows.
# GRPCIO=1.80.1 takes that release of grpcio; arguments name other tests, and options of pytest.
set -eu
uv=$(tools/uv.sh)
venv=${VENVS:-.cache}/lowest${GRPCIO:+-$GRPCIO}

locked() { sed -n "s/^\($1==[^ ;]*\).*/\1/p" requirements-dev.lock; }

"$uv" venv --quiet --clear --python "${PYTHON:-.venv/bin/python}" "$venv"
echo "${GRPCIO:+grpcio==$GRPCIO}" >"$venv/constraint.txt"
"$uv" pip compile pyproject.toml --extra server --quiet --no-header --no-annotate --python "$venv/bin/python" \
  --resolution lowest-direct --constraint "$venv/constraint.txt" --output-file "$venv/lowest.txt"
# The tests' own tools are today's.
"$uv" pip install --quiet --python "$venv/bin/python" -r "$venv/lowest.txt" \
  $(for tool in pytest pytest-asyncio pytest-xdist hypothesis httpx2 cryptography h2; do locked $tool; done)
grep -E '^(grpcio(-[a-z-]+)?|googleapis-common-protos|protobuf|py-consul|tenacity|opentelemetry-api)==' "$venv/lowest.txt"
[ $# -gt 0 ] || set -- tests/core tests/telemetry tests/aio tests/sync tests/server tests/shared tests/shells tests/testing \
  tests/test_import.py tests/test_without_consul.py
# Before 1.83 an asyncio call of grpcio's raises in __del__ what its interceptor raised.
"$venv/bin/python" -m pytest -n auto --dist loadfile --no-loadscope-reorder -o pythonpath=. -o "filterwarnings=error
ignore:Exception ignored in. <function InterceptedCall.__del__:pytest.PytestUnraisableExceptionWarning" "$@"
