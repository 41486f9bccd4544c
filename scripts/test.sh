#!/usr/bin/env bash
# Runs all checks, here and in CI: format, lint, types, words, and tests in one process per core. Arguments go to pytest:
#   scripts/test.sh -k resume        scripts/test.sh -m slow        scripts/test.sh -n 0 --pdb
# Exit status: 3 if only tests failed, 1 for any other failure.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

step() {
  local name="$1" status
  shift
  echo "== $name" >&2
  "$python" -m "$@" || {
    status=$?
    echo "scripts/test.sh: $name failed ($python -m $*)" >&2
    # pytest ends with 1 if tests failed, and with a higher status if it could not run them all.
    if [ "$name" = pytest ] && [ "$status" = 1 ]; then exit 3; fi
    exit 1
  }
}

step "ruff format" ruff format --check --quiet .
step "ruff check" ruff check --quiet .
step "mypy" mypy --strict mt
step "English" scripts.check_english
OMP_NUM_THREADS=1 step "pytest" pytest -n "${OMP_NUM_THREADS:-auto}" --maxprocesses 8 --dist worksteal "$@"
echo "scripts/test.sh: all passed" >&2
