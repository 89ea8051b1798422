#!/bin/sh
# Stubs of the contracts in another language, as a package that compiles as it is.
#
#   tools/stubs_for.sh go DIRECTORY [MODULE]   a Go module (needs Go; MODULE: example.com/shop/stubs)
#   tools/stubs_for.sh ts DIRECTORY            an ES module in TypeScript (needs Node.js); it needs @bufbuild/protobuf,
#                                              and @connectrpc/connect-node's gRPC transport calls with it
#
# A go.mod or package.json that stands in DIRECTORY already is left alone.
set -eu
language=${1:-} directory=${2:-} module=${3:-example.com/shop/stubs}
here=$(cd "$(dirname "$0")/.." && pwd)

usage() {
  sed -n 's/^#   //p' "$0" >&2
  exit 2
}
[ -n "$directory" ] || usage
[ -x "$here/.venv/bin/buf" ] || { echo "stubs: .venv/bin/buf is missing; make lint installs it" >&2; exit 1; }
mkdir -p "$directory"
directory=$(cd "$directory" && pwd)
cd "$here"

case $language in
  go)
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    sed "s|example.com/shop/stubs|$module|" tools/buf.gen.go.yaml >"$work/go.yaml"
    .venv/bin/buf generate --template "$work/go.yaml" --output "$directory"
    cd "$directory"
    [ -e go.mod ] || printf 'module %s\n\ngo 1.24.0\n\nrequire (\n\tgoogle.golang.org/grpc v1.76.0\n\tgoogle.golang.org/protobuf v1.36.10\n)\n' "$module" >go.mod
    go mod tidy
    ;;
  ts)
    .venv/bin/buf generate --template tools/buf.gen.ts.yaml --output "$directory"
    cd "$directory"
    [ -e package.json ] || cat >package.json <<'JSON'
{
  "name": "shop-stubs",
  "private": true,
  "type": "module",
  "dependencies": {"@bufbuild/protobuf": "^2.10.0"}
}
JSON
    ;;
  *) usage ;;
esac
