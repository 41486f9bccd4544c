#!/usr/bin/env bash
# Trains configs/demo.yaml on the demo corpus, translates a few sentences and prints the report, in minutes from a clean
# clone. When run again, it does not train again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
mt() { "$python" -m mt "$@"; }

echo "== mt train --config configs/demo.yaml"
mt train --config configs/demo.yaml --run-dir runs/demo

echo
echo "== mt translate --model runs/demo"
sentences="$(
  head -n 3 data/demo/test.en
  echo "The old woman knows that the child reads a book."
  echo "My brother does not want to buy the small house."
)"
translations="$(echo "$sentences" | mt translate --model runs/demo)"
paste -d '\n' <(echo "$sentences" | sed 's/^/en  /') <(echo "$translations" | sed 's/^/de  /')

echo
echo "== mt eval --model runs/demo"
mt eval --model runs/demo
