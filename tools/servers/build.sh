#!/bin/sh
# Build a real server for the tests from its Go module, unless PATH or .cache/bin has it.
#
#   tools/servers/build.sh consul github.com/hashicorp/consul
#   tools/servers/build.sh gopeer .   # our own, in tools/servers/gopeer
set -eu
name=$1 package=$2
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "$here/../.." && pwd)/.cache/bin

if found=$(command -v "$name"); then
  echo "$name: $found"
  exit
fi
if [ -x "$bin/$name" ] && [ -z "$(find "$here/$name" -type f -newer "$bin/$name")" ]; then
  echo "$name: .cache/bin/$name"
  exit
fi
if ! command -v go >/dev/null; then
  echo "$name: Go 1.25 or newer is needed to build it, and none is on PATH; or put $name itself on PATH" >&2
  exit 1
fi
case $(go env GOVERSION) in
  go1.?|go1.?.*|go1.1?|go1.1?.*|go1.20|go1.20.*) # from 1.21 on, go fetches the version that go.mod asks for, or says why not
    echo "$name: Go 1.25 or newer is needed to build it, $(go env GOVERSION) is on PATH" >&2
    exit 1 ;;
esac
echo "$name: building it (minutes at the first time)"
mkdir -p "$bin"
cd "$here/$name"
# go.sum is whole: no checksum database is asked, and -mod=readonly keeps it so.
GOFLAGS="-mod=readonly -buildvcs=false" GOWORK=off CGO_ENABLED=0 go build -ldflags "-s -w" -o "$bin/$name.part" "$package"
mv "$bin/$name.part" "$bin/$name"
