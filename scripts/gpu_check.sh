#!/usr/bin/env bash
# Everything that only a GPU can prove, in parts of under nine minutes each, without a network and without installing
# anything. On a CPU the parts run small, to show that they run.
#
#   scripts/gpu_check.sh list
#   scripts/gpu_check.sh --minutes 8                       the most important parts first, as far as 8 minutes go
#   scripts/gpu_check.sh all                               the demo corpus for the training run
#   scripts/gpu_check.sh --data DIR --out DIR tests attention
#   scripts/gpu_check.sh --out DIR report                  the Markdown of all parts that have run
#
# Needs a Python that has what mt imports: PYTHON names it; else .venv/bin/python, else python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
command -v "$PYTHON" >/dev/null || {
  echo "error: $PYTHON: not found: set PYTHON to a Python that has torch" >&2
  exit 2
}
PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" exec "$PYTHON" scripts/gpu_check.py "$@"
