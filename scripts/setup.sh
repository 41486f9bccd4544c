# Sourced by test.sh and demo.sh, from any folder: goes to the root of the repository and sets `python` to a Python that
# has this checkout installed. Uses the active virtual environment; where none is, makes .venv. Quick when up to date.
# PYTHON names the interpreter that a new .venv is made with.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "error: $*" >&2
  exit 2
}

make_environment() {
  local base="${PYTHON:-python3}"
  command -v "$base" >/dev/null || fail "$base: not found: install Python 3.11 or later, or set PYTHON to one"
  "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$base is $("$base" --version 2>&1): mt needs Python 3.11 or later (set PYTHON to one)"
  "$base" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$base has no venv or no ensurepip: install them (on Debian and Ubuntu the package python3-venv)"
  echo "making .venv with $("$base" --version 2>&1)" >&2
  "$base" -m venv .venv
}

install_checkout() {
  # What is installed, from where: another checkout or other dependencies install anew.
  local stamp="$environment/.mt-installed" wanted
  wanted="$(pwd -P) $("$python" -c 'import hashlib; print(hashlib.sha256(open("pyproject.toml", "rb").read()).hexdigest())')"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing mt and what it needs into $environment (the first time takes minutes)" >&2
    "$python" -m pip install --quiet --disable-pip-version-check -e '.[dev]' >&2 || fail "pip could not install mt, see above"
    echo "$wanted" >"$stamp"
  fi
}

if [ -n "${VIRTUAL_ENV:-}" ]; then
  environment="$VIRTUAL_ENV"
  python="$environment/bin/python"
  "$python" -m pip --version >/dev/null 2>&1 || fail "$environment: the active virtual environment has no pip"
else
  environment=.venv
  python="$environment/bin/python"
  "$python" -m pip --version >/dev/null 2>&1 || make_environment # also mends one whose making was interrupted
fi
install_checkout

# A container may show all cores of its host and allow the use of a few: threads beyond those only wait for each other.
if [ -z "${OMP_NUM_THREADS:-}" ] && read -r quota period 2>/dev/null </sys/fs/cgroup/cpu.max && [ "$quota" != max ]; then
  n_allowed=$(((quota + period - 1) / period))
  if [ "$n_allowed" -lt "$(getconf _NPROCESSORS_ONLN)" ]; then
    export OMP_NUM_THREADS="$n_allowed"
  fi
fi
