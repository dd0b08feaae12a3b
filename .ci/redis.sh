#!/usr/bin/env bash
# Finds or fetches the Redis that the tests share state through, and writes where it is:
#
#   .cache/redis.env   redis-server=PATH; also printed
#   .cache/redis.why   one line saying why there is none; only there in that case
#
# A redis-server on PATH that is new enough is used where it is. Otherwise it is taken out of the packages of this
# machine's own release, whose libc it was built for, into .cache/redis; nothing is installed. The libraries that
# the machine lacks come along, and PATH is a script that starts it with them.
#
# Exit status: 0 there is one, 3 there is none.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=$PWD/.cache
fetched=$cache/redis
env_file=$cache/redis.env
why_file=$cache/redis.why

oldest=6.2
elsewhere="put redis-server $oldest or newer on PATH"

say() { printf '%s\n' "$*" >&2; }

version_of() { "$1" --version 2>/dev/null | grep -oE '[0-9]+\.[0-9]+(\.[0-9]+)?' | head -n1 || true; }

# suits BINARY - also no when it does not run here, e.g. because a library is gone since it was fetched.
suits() {
  local said
  [ -x "$1" ] || return 1
  said=$(version_of "$1")
  [ -n "$said" ] && [ "$(printf '%s\n' "$said" "$oldest" | sort -V | head -n1)" = "$oldest" ]
}

found() { # found PATH
  mkdir -p "$cache"
  rm -f "$why_file"
  printf 'redis-server=%s\n' "$1" | tee "$env_file"
  exit 0
}

none() { # none REASON
  mkdir -p "$cache"
  rm -f "$env_file"
  say "No redis-server: $1"
  printf '%s\n' "No redis-server: $1" >"$why_file"
  exit 3
}

for path in "$(type -P redis-server || true)" "$fetched/redis-server"; do
  ! suits "$path" || found "$path"
done

# --- From the distribution's packages ---------------------------------------------------------------

# shellcheck source=apt.sh
. .ci/apt.sh
apt_usable || none "this machine has no apt to fetch it with; $elsewhere"

# A directory of its own for each run, so that two at a time do not spoil each other.
mkdir -p "$cache"
scratch=$(mktemp -d "$cache/redis-apt.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
root=$scratch/root
made=$scratch/redis
log=$scratch/log

# The script finds its own directory each time, because the repository may be moved.
wrapper() {
  cat <<'SH'
#!/bin/sh
# Made by .ci/redis.sh: Redis out of a package, with the libraries that this machine lacks.
here=$(cd "$(dirname "$0")" && pwd) || exit 1
LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
exec "$here/bin/redis-server" "$@"
SH
}

lacking() { LD_LIBRARY_PATH=$made/lib ldd "$made/bin/redis-server" | sed -nE 's/^[[:space:]]*([^ ]+) => not found$/\1/p'; }

# Of what was unpacked so far, the program and those libraries that it lacks; no when some are still to come.
keep() {
  local name file before='' now
  # In Debian it is a symbolic link into another package, and the program goes by the name it is called by.
  [ -f "$root/usr/bin/redis-server" ] || return 1
  mkdir -p "$made/bin" "$made/lib"
  cp -L "$root/usr/bin/redis-server" "$made/bin/redis-server"
  # Until nothing changes, because a library may lack others.
  now=$(lacking)
  while [ "$now" != "$before" ]; do
    for name in $now; do
      file=$(find "$root" -name "$name" -print -quit)
      [ -z "$file" ] || cp -L "$file" "$made/lib/$name"
    done
    before=$now
    now=$(lacking)
  done
  [ -z "$now" ]
}

depends() { # depends PACKAGE... - prints what these depend on, directly
  apt-cache "${APT_OPTIONS[@]}" --important depends "$@" | sed -nE 's/^[ |]+(Pre)?Depends: ([a-z0-9][^ ]*)$/\2/p' |
    sort -u
}

# Unpacks the package, then what it depends on, then what that does, until the program has all it needs: nothing
# else tells which package has a library, and what is said to be installed may have been left out of an image.
fetch() {
  local -a level=(redis-server) next
  local seen=' libc6 ' package # libc is here, and another one would not fit this machine's loader
  rm -rf "$root" "$made"
  for _ in 1 2 3 4 5; do
    # One at a time only if need be: a package that cannot be had must not cost us the others.
    apt_unpack "$root" "${level[@]}" ||
      for package in "${level[@]}"; do apt_unpack "$root" "$package" || true; done
    ! keep || break
    seen+="${level[*]} "
    next=()
    for package in $(depends "${level[@]}"); do
      case $seen in *" $package "*) ;; *) next+=("$package") ;; esac
    done
    [ "${#next[@]}" != 0 ] || return 1
    level=("${next[@]}")
  done
  wrapper >"$made/redis-server"
  chmod +x "$made/redis-server"
  suits "$made/redis-server"
}

# apt's complaint, less the names of all its archives.
complaint() {
  local said host
  said=$(apt_complaint "$log" "")
  for host in $(apt_archives | sed -nE 's#^[a-z]+://([^/: ]+).*#\1#p' | sort -u); do
    said=${said//"$host"/the archive}
  done
  printf '%s' "$said"
}

say "Fetching redis-server for the tests (once; takes a few seconds) ..."
# A machine that never ran 'apt-get update' has no package lists, and those of one that did so long ago may name
# packages that are gone: the second round fetches its own.
for round in machine private; do
  : >"$log" # what the last round says is what counts
  if [ "$round" = private ]; then
    apt_private_state "$scratch"
    apt-get "${APT_OPTIONS[@]}" update >>"$log" 2>&1 || true # one unreachable source is no reason to stop
  fi
  if fetch >>"$log" 2>&1; then
    # Under its name only when it is whole. Another run may have been faster; what it made is as good.
    suits "$fetched/redis-server" || rm -rf "$fetched"
    mv -T "$made" "$fetched" 2>/dev/null || suits "$fetched/redis-server" || none "$fetched cannot be replaced"
    found "$fetched/redis-server"
  fi
done

if [ -x "$made/redis-server" ]; then
  has=$(version_of "$made/redis-server")
  [ -z "$has" ] || none "this machine's release has $has, which is too old; $elsewhere"
fi
reason=$(complaint)
none "this machine's release has none that runs here${reason:+, or apt refused it: $reason}; $elsewhere"
