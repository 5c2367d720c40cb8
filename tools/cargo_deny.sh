#!/usr/bin/env bash
# cargo-deny 0.20.2: checks licences, banned crates and sources in `make test`. Built once by cargo with its own
# lock file (some minutes). Prints the path of the program.
. "$(dirname "$0")/lib.sh"

build() {
  say "  cargo-deny 0.20.2: cargo install --locked (licence check; some minutes, once)"
  cargo_install cargo-deny 0.20.2
}

once cargo-deny-0.20.2 build
echo "$CACHE/cargo-deny-0.20.2/bin/cargo-deny"
