#!/bin/sh
# What must hold with each release of grpcio that lb supports: private names, core's words, conformance of
# asyncio and threads. A table, one line each; what pytest says stands in .cache/releases. Exits 1 if one fails.
# RELEASES="1.80.0 1.80.1" names others than the last of each minor version that lb supports.
set -u
tests="tests/aio/test_names.py tests/aio/test_words.py tests/aio/test_goaway.py
  tests/aio/test_goaway_frames.py tests/aio/test_conformance*.py
  tests/sync/test_names.py tests/sync/test_conformance*.py"
logs=.cache/releases failed=0
mkdir -p "$logs"

echo "| grpcio | Pythons | result |"
echo "|---|---|---|"
for release in ${RELEASES:-1.76.0 1.80.1 1.81.2 1.82.3 1.83.2 1.84.2 1.85.3}; do
  # shellcheck disable=SC2086  # the tests are words
  GRPCIO=$release tools/lowest.sh $tests -q --tb=native >"$logs/$release.txt" 2>&1 || failed=1
  pythons=$(sed -n 's/^Classifier: Programming Language :: Python :: \(3\.[0-9]*\)$/\1/p' \
    "${VENVS:-.cache}/lowest-$release"/lib/python3.*/site-packages/grpcio-*.dist-info/METADATA | paste -sd ' ' -)
  echo "| $release | $pythons | $(grep -E '^[0-9]+ (passed|failed)' "$logs/$release.txt" || tail -n 1 "$logs/$release.txt") |"
done
exit $failed
