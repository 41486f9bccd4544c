#!/usr/bin/env bash
# The one door, the same here and in CI: format, lint, types, tests. Arguments go to pytest:
#   scripts/test.sh -k resume        scripts/test.sh -m slow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

step() {
  local name="$1"
  shift
  echo "== $name" >&2
  "$python" -m "$@" || {
    echo "scripts/test.sh: $name failed ($python -m $*)" >&2
    exit 1
  }
}

step "ruff format" ruff format --check --quiet .
step "ruff check" ruff check --quiet .
step "mypy" mypy --strict mt
step "pytest" pytest "$@"
echo "scripts/test.sh: all passed" >&2
