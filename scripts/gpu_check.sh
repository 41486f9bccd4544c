#!/usr/bin/env bash
# Checks everything that needs a GPU, in parts of under nine minutes each. Uses no network and installs nothing. On a
# CPU, the parts use small sizes, only to show that they run.
#
#   scripts/gpu_check.sh list
#   scripts/gpu_check.sh --minutes 8                       the most important parts that fit into 8 minutes
#   scripts/gpu_check.sh all                               all parts; the training run uses the demo corpus
#   scripts/gpu_check.sh --data DIR --out DIR tests attention
#   scripts/gpu_check.sh --out DIR report                  a Markdown report on all parts that have run
#
# Needs a Python that has the dependencies of mt: $PYTHON, or .venv/bin/python, or python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
command -v "$PYTHON" >/dev/null || {
  echo "error: $PYTHON was not found. Set PYTHON to a Python that has torch." >&2
  exit 2
}
PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" exec "$PYTHON" scripts/gpu_check.py "$@"
