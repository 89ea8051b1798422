#!/bin/sh
# Make .venv and install the project into it, from a lock that names every file by its hash.
#
#   tools/venv.sh requirements.lock STAMP
#
# STAMP is touched when all of it went well, and only then: an install that broke off is done again.
# PYTHON names the interpreter; without it, the first of python3, python3.14 .. python3.11 that is new enough.
set -eu
lock=$1 stamp=$2 venv=.venv

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if new_enough "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  found=$("${PYTHON:-python3}" --version 2>&1) || found="no usable ${PYTHON:-python3}"
  echo "Python 3.11 or newer is needed ($found was found); name one: make PYTHON=/path/to/python3.13" >&2
  return 1
}

if ! new_enough "$venv/bin/python" || ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
  python=$(find_python)
  echo "making $venv with $("$python" --version)"
  # --clear: what stands there may be half a venv, or one whose Python has gone.
  "$python" -m venv --clear "$venv"
fi

echo "installing from $lock (once)"
rm -f "$stamp"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock"
# What builds the project (hatchling) is in the lock, too, so this step downloads nothing.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-index --no-build-isolation --editable .
touch "$stamp"
