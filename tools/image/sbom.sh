#!/usr/bin/env bash
# What is in the image, as CycloneDX: `tools/image/sbom.sh BINARY > strata.cdx.json`. The crates that the binary is made of, as cargo resolves them, the
# nats-server that it says it has in it, and, where dpkg knows them, the packages of the C library, its loader and the certificates. The same binary and
# sources give the same bytes.
set -euo pipefail

binary=$1
cd "$(dirname "$0")/../.."

# "strata 0.1.0", then "nats-server 2.15.2": what is embedded, which is not what is pinned where the build had no Go.
versions=$("$binary" --version)
version_of() { sed -n "s/^$1 //p" <<<"$versions" | grep . || { echo "$binary: no version of $1 in: $versions" >&2; exit 1; }; }
strata=$(version_of strata)
nats=$(version_of nats-server)

# DEPTH name vVERSION [(where from)] LICENCE REPOSITORY, tabs between; a crate's own dependencies stand behind its first mention.
crates=$(cargo tree --package strata --edges normal --locked --prefix depth --format $'\t{p}\t{l}\t{r}')
checksums=$(awk -F'"' '/^name = /{n=$2} /^version = /{v=$2} /^checksum = /{print n "@" v "\t" $2}' Cargo.lock)
# What a build step compiles into the binary is no normal dependency: such crates, of C sources, are called so (OpenSSL's is openssl-src).
sources=$(cargo tree --package strata --edges normal,build --locked --prefix none --format $'0\t{p}\t{l}\t{r}' | grep -E $'^0\t[a-z0-9_-]+-src v' | sort -u)
system=$(for package in libc6 libgcc-s1 zlib1g ca-certificates; do
  dpkg-query -W -f '${Package}\t${Version}\t${Architecture}\n' "$package" 2>/dev/null || true
done)

jq -n --arg strata "$strata" --arg nats "$nats" --arg crates "$crates" --arg sources "$sources" --arg checksums "$checksums" --arg system "$system" '
  def rows($text): $text | split("\n") | map(select(. != "") | split("\t"));
  # Before SPDX had expressions, a slash said OR.
  def licence($text): if $text == "" then {} else {licenses: [{expression: ($text | gsub(" */ *"; " OR "))}]} end;

  def mentions($text): rows($text) | map((.[1] | split(" ")) as $named | ($named[1] | ltrimstr("v")) as $version | {
      depth: (.[0] | tonumber), ref: "\($named[0])@\($version)", name: $named[0], version: $version, licence: .[2],
      repository: (.[3] | sub(" \\(\\*\\)$"; "")),
    });

  (rows($checksums) | map({key: .[0], value: .[1]}) | from_entries) as $sums
  | def library: $sums[.ref] as $sum | {type: "library", "bom-ref": .ref, name, version, scope: "required"} + licence(.licence)
      # What is of no registry is a part of this repository.
      + if $sum then {purl: "pkg:cargo/\(.name)@\(.version | @uri)", hashes: [{alg: "SHA-256", content: $sum}]} else {} end
      + if .repository == "" then {} else {externalReferences: [{type: "vcs", url: .repository}]} end;
  mentions($crates) as $mentions
  | (reduce $mentions[] as $crate ({path: [], edges: {}};
      .path = .path[:$crate.depth] + [$crate.ref]
      | if $crate.depth > 0 then .edges[.path[$crate.depth - 1]][$crate.ref] = true else . end) | .edges) as $edges
  | ($mentions[0] | .ref) as $root
  | ($mentions | unique_by(.ref) | map(select(.ref != $root) | library)) as $libraries
  | ([{type: "application", "bom-ref": "nats-server@\($nats)", name: "nats-server", version: $nats,
       purl: "pkg:golang/github.com/nats-io/nats-server/v2@v\($nats)"} + licence("Apache-2.0")]
    + (rows($system) | map({type: "library", "bom-ref": "\(.[0])@\(.[1])", name: .[0], version: .[1],
       purl: "pkg:deb/debian/\(.[0])@\(.[1] | @uri)?arch=\(.[2])"}))
    + (mentions($sources) | map(library))) as $beside
  | {
      bomFormat: "CycloneDX", specVersion: "1.5", version: 1,
      metadata: {
        timestamp: "1970-01-01T00:00:00Z",
        component: ({type: "application", "bom-ref": $root, name: "strata", version: $strata} + licence($mentions[0].licence)),
      },
      components: ($libraries + $beside),
      dependencies: (([$root] + ($libraries | map(.["bom-ref"])) | map({ref: ., dependsOn: ($edges[.] // {} | keys)}))
        + ($beside | map({ref: .["bom-ref"], dependsOn: []}))
        | .[0].dependsOn += ($beside | map(.["bom-ref"]))),
    }'
