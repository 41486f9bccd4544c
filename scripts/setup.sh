# Sourced by test.sh and demo.sh, from any folder: changes to the root of the repository and sets `python` to a Python
# that has this checkout installed. Uses the active virtual environment, or creates .venv. Quick when up to date.
# PYTHON names the interpreter for a new .venv.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "error: $*" >&2
  exit 2
}

make_environment() {
  local base="${PYTHON:-python3}"
  command -v "$base" >/dev/null || fail "$base was not found. Install Python 3.11 or later, or set PYTHON to one."
  "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$base is $("$base" --version 2>&1), and mt needs 3.11 or later. Set PYTHON to a newer Python."
  "$base" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$base has no venv or no ensurepip. Install them (on Debian and Ubuntu, the package python3-venv)."
  echo "making .venv with $("$base" --version 2>&1)" >&2
  "$base" -m venv .venv
}

install_checkout() {
  # The stamp holds the checkout and its dependencies: if either changes, pip installs again.
  local stamp="$environment/.mt-installed" wanted
  wanted="$(pwd -P) $("$python" -c 'import hashlib; print(hashlib.sha256(open("pyproject.toml", "rb").read()).hexdigest())')"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing mt and its dependencies into $environment (the first time takes minutes)" >&2
    "$python" -m pip install --quiet --disable-pip-version-check -e '.[dev]' >&2 || fail "pip could not install mt. See above."
    echo "$wanted" >"$stamp"
  fi
}

if [ -n "${VIRTUAL_ENV:-}" ]; then
  environment="$VIRTUAL_ENV"
  python="$environment/bin/python"
  "$python" -m pip --version >/dev/null 2>&1 || fail "The active virtual environment, $environment, has no pip. Install it, or deactivate the environment."
else
  environment=.venv
  python="$environment/bin/python"
  "$python" -m pip --version >/dev/null 2>&1 || make_environment # also repairs one whose creation was interrupted
fi
install_checkout

# A container may show all cores of its host but allow the use of a few: further threads only wait for each other.
if [ -z "${OMP_NUM_THREADS:-}" ] && read -r quota period 2>/dev/null </sys/fs/cgroup/cpu.max && [ "$quota" != max ]; then
  n_allowed=$(((quota + period - 1) / period))
  if [ "$n_allowed" -lt "$(getconf _NPROCESSORS_ONLN)" ]; then
    export OMP_NUM_THREADS="$n_allowed"
  fi
fi
