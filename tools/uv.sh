#!/bin/sh
# Print the path of uv, which the maintainer's targets (lock, lowest) need; installs it under .cache at first.
set -eu
if ! command -v uv; then
  dir=.cache/uv-0.13.9
  if [ ! -x "$dir/bin/uv" ]; then
    .venv/bin/python -m venv "$dir" >&2
    "$dir/bin/python" -m pip install --quiet --disable-pip-version-check uv==0.13.9 >&2
  fi
  echo "$PWD/$dir/bin/uv"
fi
