#!/usr/bin/env bash
# cargo-cyclonedx 0.5.9 (Apache-2.0, of the CycloneDX project): writes the image's list of what is in it. Built once by cargo with its own lock
# file (some minutes). Prints the path of the program.
. "$(dirname "$0")/lib.sh"

build() {
  say "  cargo-cyclonedx 0.5.9: cargo install --locked (the image's bill of materials; some minutes, once)"
  CARGO_TARGET_DIR=$PWD/target cargo install --quiet --locked --root "$PWD" cargo-cyclonedx@=0.5.9 >&2
  rm -rf target
}

once cargo-cyclonedx-0.5.9 build
echo "$CACHE/cargo-cyclonedx-0.5.9/bin/cargo-cyclonedx"
