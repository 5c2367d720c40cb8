#!/usr/bin/env bash
# What is in the image, as CycloneDX: `tools/image/sbom.sh CARGO_CYCLONEDX > strata.cdx.json`. The crates of Cargo.lock that the binary is made of, nats-server, and,
# where dpkg knows them, the packages of the C library and its loader. The same sources give the same bytes.
set -euo pipefail

repo=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# It writes beside each manifest: into a copy.
(cd "$repo" && git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$work" 2>/dev/null || cp -r "$repo"/{Cargo.toml,Cargo.lock,src,heap,sample,collector,relay,bundled-nats,config,http-client,kubernetes,e2e} "$work")
(cd "$work" && SOURCE_DATE_EPOCH=0 "$1" cyclonedx --format json --spec-version 1.5 --no-build-deps --quiet --manifest-path Cargo.toml >&2)

nats=$(sed -n 's/^const VERSION: &str = "\(.*\)";/\1/p' "$repo/bundled-nats/build.rs")
system=$(for package in libc6 libgcc-s1 zlib1g ca-certificates; do
  dpkg-query -W -f '{"type":"library","name":"${binary:Package}","version":"${Version}","purl":"pkg:deb/debian/${Package}@${Version}?arch=${Architecture}"}\n' "$package" 2>/dev/null || true
done | jq -s .)
jq --arg nats "$nats" --argjson system "$system" '
  del(.serialNumber)
  | .metadata.timestamp = "1970-01-01T00:00:00Z"
  | .components += [{type: "application", name: "nats-server", version: $nats, purl: "pkg:golang/github.com/nats-io/nats-server/v2@v\($nats)",
      licenses: [{expression: "Apache-2.0"}]}] + $system' "$work/strata.cdx.json" | sed "s|$work||g"
