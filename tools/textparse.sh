#!/usr/bin/env bash
# Prometheus 3's own page readers (module v0.315.0, package model/textparse) behind a pipe: the oracle of the format tests. Built from
# tools/textparse/main.go, its modules checked against tools/textparse/go.sum. Prints the path of the program; with --folder, without building
# it, the name of its folder in the cache.
. "$(dirname "$0")/lib.sh"

# A changed source is another program.
version=0.315.0-$(cat "$TOOLS"/textparse/{main.go,go.mod} | sha256sum | cut -c1-12)

[ "${1:-}" != --folder ] || { echo "textparse-$version"; exit; }

build() {
  say "  textparse $version: go build from its modules (the oracle of the format tests; under a minute)"
  (cd "$TOOLS/textparse" && go_build -ldflags "-s -w" -o "$OLDPWD/textparse" .)
}

once "textparse-$version" build
echo "$CACHE/textparse-$version/textparse"
