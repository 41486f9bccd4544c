#!/usr/bin/env bash
# Tests the CUDA path on a machine without a GPU: the CUDA build of torch runs, but kernels do nothing
# (tests/null_gpu/README.md). The environment takes some gigabytes and is created once in the user's cache folder.
#
#   scripts/null_gpu.sh                     the quick tests, as in CI
#   scripts/null_gpu.sh --all               all tests, with a table of the counts
#   scripts/null_gpu.sh --torch 2.11.0      another version of torch; other arguments are passed to pytest
#   scripts/null_gpu.sh --run COMMAND…      one command on the null GPU, such as: python -m mt bench --config demo
#
# Exit status: 3 if only tests failed; 77 if the environment cannot be created on this machine. Needs Linux, gcc, and
# Python 3.11 or later with its headers: $PYTHON, or python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  local status="$1"
  shift
  echo "error: $*" >&2
  exit "$status"
}

torch=2.13.0 selection="null_gpu and not slow" run=()
while [ $# -gt 0 ]; do
  case "$1" in
    --all) selection=null_gpu && shift ;;
    --torch)
      [[ "${2:-}" =~ ^[0-9.]+$ ]] || fail 2 "--torch: expected a version such as 2.11.0"
      torch="$2" && shift 2
      ;;
    --run)
      [ $# -gt 1 ] || fail 2 "--run: expected a command"
      shift && run=("$@") && break
      ;;
    *) break ;;
  esac
done

# --- Requirements

cannot() { fail 77 "cannot set up the null GPU: $*"; }

base="${PYTHON:-python3}"
[ "$(uname -s)" = Linux ] || cannot "Linux is needed"
command -v gcc >/dev/null || cannot "gcc is not found: install it"
command -v "$base" >/dev/null || cannot "$base is not found: set PYTHON to a Python"
version="$("$base" -c 'import sys; print(*sys.version_info[:2], sep=".")')"
"$base" -c 'import os, sys, sysconfig; sys.exit(sys.version_info < (3, 11) or not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
  cannot "$base is Python $version: set PYTHON to Python 3.11 or later with its headers (python3-dev)"
folder="${XDG_CACHE_HOME:-$HOME/.cache}/mt/null-gpu/torch-$torch-py$version"
mkdir -p "$folder" && touch "$folder/lock" || cannot "$folder cannot be written"
exec 9>"$folder/lock"
flock -n 9 || { # two would overwrite each other's libraries, and slow each other down
  echo "waiting for another scripts/null_gpu.sh" >&2
  flock 9
}

# --- The environment: the dependencies of mt, and the CUDA headers that torch does not include

python="$folder/env/bin/python"
wanted="$(sha256sum pyproject.toml)"
if [ "$(cat "$folder/installed" 2>/dev/null)" != "$wanted" ] || ! "$python" -c 'import torch' 2>/dev/null; then
  echo "installing torch $torch with CUDA into $folder (the first time takes minutes)" >&2
  rm -f "$folder/installed"
  dependencies="$("$base" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' | grep -v '^torch')"
  # === selects the version of the package index, which includes CUDA, and not a local one such as 2.13.0+cpu.
  { "$base" -m venv "$folder/env" &&
    "$python" -m pip install --quiet --disable-pip-version-check "torch===$torch" 'pytest>=9' 'pytest-timeout>=2.3' $dependencies &&
    cuda="$("$python" -c 'import torch; print(torch.version.cuda or "")')" && [ -n "$cuda" ] &&
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps "nvidia-cuda-crt==$cuda.*" "nvidia-cuda-cccl==$cuda.*"; } \
    >"$folder/install.log" 2>&1 || {
    tail -n 3 "$folder/install.log" >&2
    cannot "torch $torch with CUDA cannot be installed: see $folder/install.log"
  }
  echo "$wanted" >"$folder/installed"
fi

# --- The libraries: LD_PRELOAD loads them before torch's own; torch finds the driver by its name

headers=() source=tests/null_gpu
for include in "$folder"/env/lib/python3*/site-packages/nvidia/*/include; do headers+=("-I$include"); done
build() { gcc -O1 -shared -fPIC -fvisibility=hidden -Wall -Wno-unused-value "${headers[@]}" "$@"; }
build "$source/runtime.c" "$source/blas.c" "$source/nccl.c" -o "$folder/libnullgpu.so" -ldl -lpthread
build "$source/driver.c" "$source/driver_rest.c" -Wl,-soname,libcuda.so.1 -o "$folder/libcuda.so.1" -ldl

export NULL_GPU_FOLDER="$folder" PYTHONPATH="$PWD" NULL_GPU_TABLE="$folder/table.jsonl"
if [ ${#run[@]} -gt 0 ]; then
  export PATH="$folder/env/bin:$PATH"
  exec "$python" -m tests.null_gpu.device "${run[@]}" 9>&-
fi
rm -f "$NULL_GPU_TABLE"
status=0
"$python" -m pytest tests/null_gpu -m "$selection" "$@" || status=$?
"$python" -m tests.null_gpu.device
# pytest ends with 1 if tests failed, and with a higher status if it could not run them all.
if [ "$status" = 1 ]; then exit 3; fi
exit "$status"
