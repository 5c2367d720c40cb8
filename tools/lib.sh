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
