# Read by the other scripts. Each can be run by itself, from any folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Every step builds once: what helps a second build only fills the disk.
export CARGO_INCREMENTAL=0

step() { printf '\n==> %s\n' "$*"; "$@"; }
skipped() { printf '\nskipped: %s\n' "$*"; }
