#!/usr/bin/env bash
# Tests the CUDA path on a machine without a GPU: torch's CUDA build runs for real, kernels do nothing
# (tests/null_gpu/README.md). The environment, some gigabytes, is made once in the user's cache folder.
#
#   scripts/null_gpu.sh                     the short form, which CI runs
#   scripts/null_gpu.sh --all               all of it, with a table of what was counted
#   scripts/null_gpu.sh --torch 2.11.0      another version of torch; further arguments go to pytest
#   scripts/null_gpu.sh --run COMMAND…      one command on the null GPU, such as: python -m mt bench --config demo
#
# Exit status 77: the environment cannot be made on this machine. Needs Linux, gcc, and Python 3.11 or later: PYTHON
# names it, else it is python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

torch=2.13.0 selection="null_gpu and not slow" run=()
while [ $# -gt 0 ]; do
  case "$1" in
    --all) selection=null_gpu && shift ;;
    --torch) torch="$2" && shift 2 ;;
    --run) shift && run=("$@") && break ;;
    *) break ;;
  esac
done

cannot() {
  echo "error: no null GPU: $*" >&2
  exit 77
}

base="${PYTHON:-python3}"
[ "$(uname -s)" = Linux ] || cannot "it needs Linux"
command -v gcc >/dev/null || cannot "gcc is not found: install it"
command -v "$base" >/dev/null || cannot "$base is not found: set PYTHON to a Python"
folder="${XDG_CACHE_HOME:-$HOME/.cache}/mt/null-gpu/torch-$torch-py$("$base" -c 'import sys; print(*sys.version_info[:2], sep=".")')"
mkdir -p "$folder" || cannot "$folder cannot be made"
python="$folder/env/bin/python"
exec 9>"$folder/lock" && flock 9 # one at a time: two would also slow each other down

# --- The environment: what mt needs, and the headers of CUDA that torch does not bring

wanted="$(sha256sum pyproject.toml)"
if [ "$(cat "$folder/installed" 2>/dev/null)" != "$wanted" ]; then
  echo "installing torch $torch with CUDA into $folder (the first time takes minutes)" >&2
  dependencies="$("$base" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' | grep -v '^torch')"
  # === takes the version as the package index has it, CUDA included, and not a local one such as 2.13.0+cpu.
  { "$base" -m venv "$folder/env" &&
    "$python" -m pip install --quiet --disable-pip-version-check "torch===$torch" 'pytest>=8' $dependencies &&
    cuda="$("$python" -c 'import torch; print(torch.version.cuda or "")')" && [ -n "$cuda" ] &&
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps "nvidia-cuda-crt==$cuda.*" "nvidia-cuda-cccl==$cuda.*"; } \
    >"$folder/install.log" 2>&1 || cannot "torch $torch with CUDA cannot be installed: see $folder/install.log"
  echo "$wanted" >"$folder/installed"
fi

# --- The libraries: before torch's own by LD_PRELOAD, and the driver that it looks for by name

headers=() source=tests/null_gpu
for include in "$folder"/env/lib/python3*/site-packages/nvidia/*/include; do headers+=("-I$include"); done
build() { gcc -O1 -shared -fPIC -fvisibility=hidden -Wall -Wno-unused-value "${headers[@]}" "$@"; }
build "$source/runtime.c" "$source/blas.c" "$source/nccl.c" -o "$folder/libnullgpu.so" -ldl -lpthread &&
  build "$source/driver.c" "$source/driver_rest.c" -Wl,-soname,libcuda.so.1 -o "$folder/libcuda.so.1" -ldl ||
  cannot "its libraries do not compile against torch $torch, see above"

export NULL_GPU_FOLDER="$folder" PYTHONPATH="$PWD" NULL_GPU_TABLE="$folder/table.jsonl"
if [ ${#run[@]} -gt 0 ]; then
  export PATH="$folder/env/bin:$PATH"
  exec "$python" -m tests.null_gpu.device "${run[@]}"
fi
rm -f "$NULL_GPU_TABLE"
"$python" -m pytest tests/null_gpu -m "$selection" "$@"
"$python" -m tests.null_gpu.device
