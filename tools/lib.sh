# Sourced by the scripts beside it: where foreign programs are kept, and how one gets there once.
#
# Everything lands in $STRATA_CACHE (default ~/.cache/strata), outside the clone, in one folder per program and version.
set -euo pipefail

TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$(dirname "$TOOLS")
CACHE=${STRATA_CACHE:-$HOME/.cache/strata}
mkdir -p "$CACHE"

say() { printf '%s\n' "$*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }

# go_build ARGUMENTS: `go build` of a program that is built once and started a few times, so that it is the compiler's own time that counts: it seldom
# collects its garbage and writes nothing for debuggers. All programs are built alike, so they share the packages they have in common.
go_build() {
  GOGC=400 CGO_ENABLED=0 go build -mod=readonly -trimpath -gcflags=all=-dwarf=false "$@" >&2
}

# cargo_install NAME VERSION: a program of crates.io with its own lock file, into this folder; not optimised, for the same reason.
cargo_install() {
  CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_TARGET_DIR=$PWD/target \
    cargo install --quiet --locked --root "$PWD" "$1@=$2" >&2
  rm -rf target
}

# once FOLDER FUNCTION: runs FUNCTION in an empty folder that becomes $CACHE/FOLDER only when it succeeds.
# Two callers at a time wait for each other; a finished folder is never touched again.
once() {
  local folder=$CACHE/$1 build=$2 work
  [ -d "$folder" ] && return 0
  exec 9>"$CACHE/.lock"
  flock 9
  if [ ! -d "$folder" ]; then
    work=$(mktemp -d "$CACHE/.new.XXXXXX")
    if (set -e; cd "$work"; "$build"); then
      chmod 755 "$work"
      mv "$work" "$folder"
    else
      rm -rf "$work"
      say "strata setup: cannot install $1"
      exit 1
    fi
  fi
  exec 9>&-
}
