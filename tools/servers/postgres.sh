#!/bin/sh
# Find PostgreSQL's server programs for the tests; in CI, on Debian and as root, install them.
set -eu
found() { command -v postgres || ls /usr/lib/postgresql/*/bin/postgres 2>/dev/null | tail -n 1 | grep .; }

if ! found >/dev/null; then
  if [ -n "${CI:-}" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    # No cluster of its own is made or started: the tests make theirs.
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends postgresql-common >/dev/null
    sed -i 's/^#\? *create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends postgresql >/dev/null
  else
    echo "postgres: not found; install it for the tests that need it (Debian: apt-get install postgresql)"
    exit
  fi
fi
echo "postgres: $(found)"
