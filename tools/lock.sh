#!/bin/sh
# Write the locks: every version and hash, for Python 3.11 to 3.14 on Linux and macOS, no index's address.
#
#   requirements.lock       what the mesh runs with
#   requirements-dev.lock   the same versions, and what tests and lint need
#
#   tools/lock.sh             keep what is locked and still fits, add what is missing
#   tools/lock.sh --upgrade   take the newest versions
set -eu
uv=$(tools/uv.sh)

compile() { # output, then what goes in
  out=$1
  shift
  "$uv" pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes --group build "$@" \
    --no-emit-index-url --no-emit-find-links --no-header --no-annotate --output-file "$out"
}

compile requirements.lock --extra services "$@"
compile requirements-dev.lock --extra services --extra dev --constraint requirements.lock "$@"
