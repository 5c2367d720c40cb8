#!/usr/bin/env bash
# nats-server 2.9.10 as Debian 12 packages it: an external server that is too old, for the test of the refusal. Unpacked, not
# installed. Prints the path of the program, or nothing (and succeeds) where apt does not have it.
. "$(dirname "$0")/lib.sh"

VERSION=2.9.10-1+b3
SHA256_amd64=9f69ebb6f612e652382fde175622160dcd81fd97f2356f5da80bb5c3f48513dd

fetch() {
  say "  nats-server $VERSION: apt-get download, unpacked into the cache (an external server that is too old)"
  apt-get download "nats-server=$VERSION" >&2 2>/dev/null || {
    apt-get update -qq >&2 2>/dev/null || true
    apt-get download "nats-server=$VERSION" >&2
  }
  local sum="SHA256_$(dpkg --print-architecture)" deb
  deb=$(ls ./*.deb)
  [ -n "${!sum:-}" ] || { say "no checksum for this architecture"; return 1; }
  echo "${!sum}  $deb" | sha256sum --quiet -c >&2
  dpkg -x "$deb" .
  rm "$deb"
}

have apt-get || exit 0
if ! (once "nats-server-$VERSION" fetch); then
  say "  nats-server: apt does not have $VERSION here; going on without"
  exit 0
fi
echo "$CACHE/nats-server-$VERSION/usr/sbin/nats-server"
