#!/usr/bin/env bash
# Makes .venv in the repository root and installs this project into it, editable, with the extras named:
#
#   .ci/venv.sh dev                      for the tests
#   .ci/venv.sh demo                     for the demonstration
#   PYTHON=python3.12 .ci/venv.sh dev    with another interpreter than python3
#
# Does nothing when .venv already has all of it. Extras add up: demo, then dev, leaves both.
# Needs Python 3.10 or newer, and nothing else: where the distribution keeps venv and pip in packages of
# their own and they are not installed, pip is taken out of the distribution's package, below .cache.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
venv=$root/.venv
stamp=$venv/.installed # first line: where the repository was; then one extra a line
log=$root/.cache/venv.log

fail() {
  printf '%s\n' "$@" >&2
  exit 1
}

[ $# -gt 0 ] || fail "Usage: .ci/venv.sh EXTRA...   (the extras are in pyproject.toml: dev, demo, ...)"

# --- Is the interpreter one we can use? -------------------------------------------------------------

python=${PYTHON:-python3}

check_python() {
  local found
  found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>&1) ||
    fail "'$python' does not run: ${found##*$'\n'}" \
      "Install Python 3.10 or newer, or name one: PYTHON=/path/to/python3 make ..."
  case $found in
    2.* | 3.[0-9]) fail "Python 3.10 or newer is needed, but '$python' is Python $found." \
      "Install a newer one, or name one: PYTHON=/path/to/python3 make ..." ;;
  esac
}

identity='import sys; print(sys.version, sys.base_prefix)'

# An environment that was moved along with its repository, whose interpreter is gone, or that was made with
# another interpreter than the one asked for now, cannot be mended: it is made anew. Without PYTHON= the one
# it has is good enough.
usable() {
  local has
  has=$("$venv/bin/python" -c "$identity" 2>/dev/null) || return 1
  [ ! -e "$stamp" ] || [ "$(head -n1 "$stamp")" = "$root" ] || return 1
  [ -z "${PYTHON:-}" ] || [ "$has" = "$("$python" -c "$identity" 2>/dev/null)" ]
}

# --- What is asked for, and is it there already? ----------------------------------------------------

installed=$(tail -n +2 "$stamp" 2>/dev/null || true)

covered() {
  local have
  for have in $installed; do
    case $have:$1 in
      "$1:$1" | dev:demo | dev:prometheus | dev:rules | dev:grafana | dev:batch | dev:redis | dev:dask) return 0 ;; # dev contains all but bench, see pyproject.toml
    esac
  done
  return 1
}

missing=
for extra in "$@"; do
  case $extra in *[!a-z0-9-]*) fail "An extra is a plain name such as dev or demo, got '$extra'." ;; esac
  covered "$extra" || missing="$missing $extra"
done

[ -z "${PYTHON:-}" ] || check_python
if usable; then
  [ -n "$missing" ] || [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || exit 0
else
  check_python
  rm -rf "$venv"
  installed=
  missing="$*"
fi

# --- Make it ----------------------------------------------------------------------------------------

mkdir -p "$root/.cache"
: >"$log"

quietly() {
  "$@" >>"$log" 2>&1 || {
    cat "$log" >&2
    fail "" "Failed: $*"
  }
}

no_pip() {
  cat "$log" >&2
  fail "This Python has no ensurepip, and pip could not be had from the distribution's packages either ($1)." \
    "Install it, on Debian or Ubuntu with: apt-get install python3-venv"
}

# Prints the PYTHONPATH that has pip: the wheel which the distribution's own venv package would have used.
pip_from_distribution() {
  local wheels=/usr/share/python-wheels unpacked=$root/.cache/pip name path
  if ! compgen -G "$wheels/pip-*.whl" >/dev/null; then
    wheels=$unpacked/usr/share/python-wheels
    # shellcheck source=apt.sh
    . "$root/.ci/apt.sh"
    apt_usable || return 1
    # The package has two names: the second is that of releases before Debian 12 and Ubuntu 22.04. A machine
    # that never ran 'apt-get update' has no package lists, so the second round fetches its own.
    for round in machine private; do
      if [ "$round" = private ]; then
        apt_private_state "$root/.cache/apt"
        apt-get "${APT_OPTIONS[@]}" update || true # one unreachable source among several is no reason to stop
      fi
      for name in python3-pip-whl python-pip-whl; do
        apt_unpack "$unpacked" "$name" && break 2
      done
    done >>"$log" 2>&1
    # Where distutils is a package of its own, an older pip does not start without it.
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' || "$python" -c 'import distutils.cmd' ||
      apt_unpack "$unpacked" python3-distutils || true
    rm -rf "$root/.cache/apt"
  fi >>"$log" 2>&1
  compgen -G "$wheels/pip-*.whl" >/dev/null || return 1
  path=$(printf '%s:' "$wheels"/*.whl)
  for name in "$unpacked"/usr/lib/python3*/; do [ -d "$name/distutils" ] && path=$path$name:; done
  printf '%s' "${path%:}"
}

if [ ! -e "$venv/bin/python" ]; then
  echo "Making .venv with ${missing# } (the first time takes about a minute) ..."
  if "$python" -c 'import ensurepip' 2>/dev/null; then
    quietly "$python" -m venv "$venv"
  else
    quietly "$python" -m venv --without-pip "$venv"
  fi
else
  echo "Updating .venv${missing:+ with$missing} ..."
fi

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  pip_path=$(pip_from_distribution) || no_pip "see above; without network it cannot work"
  quietly env PYTHONPATH="$pip_path" "$venv/bin/python" -m pip install --disable-pip-version-check pip
  rm -rf "$root/.cache/pip" # the environment has its own pip now
fi

# Written before pip starts and moved into place after it ended well: a pyproject.toml that is edited
# meanwhile is newer than the stamp, and an installation that failed leaves the old stamp.
extras=$(printf '%s\n' "$installed" "$@" | sed '/^$/d' | sort -u)
printf '%s\n' "$root" "$extras" >"$stamp.new"
quietly "$venv/bin/python" -m pip install --disable-pip-version-check --editable ".[${extras//$'\n'/,}]"
mv "$stamp.new" "$stamp"
