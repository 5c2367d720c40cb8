#!/usr/bin/env bash
# node_exporter 1.5.0 as Debian 12 packages it: something real to scrape in `make run` and where the page corpus is absent.
# Unpacked, not installed: no service starts and the system stays as it is. Prints the path of the program, or nothing
# (and succeeds) where apt does not have it.
. "$(dirname "$0")/lib.sh"

VERSION=1.5.0-1+b6
SHA256_amd64=8cb5b39627595ea2cf3cd27be593e0e9af87023d29e1c5b8487e2f9510097e09

fetch() {
  say "  node_exporter $VERSION: apt-get download, unpacked into the cache (something real to scrape)"
  apt-get download "prometheus-node-exporter=$VERSION" >&2 2>/dev/null || {
    apt-get update -qq >&2 2>/dev/null || true
    apt-get download "prometheus-node-exporter=$VERSION" >&2
  }
  local sum="SHA256_$(dpkg --print-architecture)" deb
  deb=$(ls ./*.deb)
  [ -n "${!sum:-}" ] || { say "no checksum for this architecture"; return 1; }
  echo "${!sum}  $deb" | sha256sum --quiet -c >&2
  dpkg -x "$deb" .
  rm "$deb"
}

have apt-get || exit 0
if ! (once "node_exporter-$VERSION" fetch); then
  say "  node_exporter: apt does not have $VERSION here; going on without"
  exit 0
fi
echo "$CACHE/node_exporter-$VERSION/usr/bin/prometheus-node-exporter"
