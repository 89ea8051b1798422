#!/bin/sh
# Find libfaketime for the tests that set a process's clock; in CI, on Debian and as root, install it.
set -eu
found() { ls /usr/lib/*/faketime/libfaketimeMT.so.1 2>/dev/null | head -n 1 | grep .; }

if ! found >/dev/null; then
  if [ -n "${CI:-}" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends libfaketime >/dev/null
  else
    echo "faketime: not found; install it for the tests that need it (Debian: apt-get install libfaketime)"
    exit
  fi
fi
echo "faketime: $(found)"
