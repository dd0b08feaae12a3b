#!/usr/bin/env bash
# Finds or fetches the Chromium that a test opens reports in, and writes where it is:
#
#   .cache/chromium.env   chromium=PATH; also printed
#   .cache/chromium.why   one line saying why there is none; only there in that case
#
# A Chromium or Chrome on PATH is used where it is. Otherwise it is taken out of the packages of this machine's own
# release into .cache/chromium (about 110 MB to download, 300 MB there); nothing is installed. The libraries that the
# machine lacks come along, and a font if it has none; PATH is a script that starts it with them.
#
# Exit status: 0 there is one, 3 there is none.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=$PWD/.cache
fetched=$cache/chromium
env_file=$cache/chromium.env
why_file=$cache/chromium.why

oldest=112 # the first with --headless=new
elsewhere="put chromium or google-chrome $oldest or newer on PATH"

say() { printf '%s\n' "$*" >&2; }

version_of() { "$1" --version 2>/dev/null | grep -oE '[0-9]+(\.[0-9]+)+' | head -n1 || true; }

# suits BINARY - also no when it does not run here, e.g. because it only says that a snap is needed.
suits() {
  local said
  [ -x "$1" ] || return 1
  said=$(version_of "$1")
  [ -n "$said" ] && [ "$(printf '%s\n' "$said" "$oldest" | sort -V | head -n1)" = "$oldest" ]
}

# shows BINARY - whether a page gets as far as its text; libraries that are loaded late are not missed before.
shows() {
  local page='data:text/html,<p id=x>shown</p>'
  [[ $(timeout 60 "$1" --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage \
    --user-data-dir="$scratch/profile" --dump-dom "$page" 2>>"$log") == *shown* ]]
}

found() { # found PATH
  mkdir -p "$cache"
  rm -f "$why_file"
  printf 'chromium=%s\n' "$1" | tee "$env_file"
  exit 0
}

none() { # none REASON
  mkdir -p "$cache"
  rm -f "$env_file"
  say "No Chromium: $1"
  printf '%s\n' "No Chromium: $1" >"$why_file"
  exit 3
}

for name in chromium chromium-browser google-chrome google-chrome-stable; do
  path=$(type -P "$name" || true)
  [ -z "$path" ] || ! suits "$path" || found "$path"
done
! suits "$fetched/chromium" || found "$fetched/chromium"

# --- From the distribution's packages ---------------------------------------------------------------

# shellcheck source=apt.sh
. .ci/apt.sh
apt_usable || none "this machine has no apt to fetch it with; $elsewhere"

# A directory of its own for each run, so that two at a time do not spoil each other.
mkdir -p "$cache"
scratch=$(mktemp -d "$cache/chromium-apt.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
root=$scratch/root
made=$scratch/chromium
log=$scratch/log

# The script finds its own directory each time, because the repository may be moved.
wrapper() {
  cat <<'SH'
#!/bin/sh
# Made by .ci/chromium.sh: Chromium out of a package, with the libraries and fonts that this machine lacks.
here=$(cd "$(dirname "$0")" && pwd) || exit 1
LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
if [ -e "$here/fonts.conf" ]; then
  FONTCONFIG_FILE=$here/fonts.conf
  export FONTCONFIG_FILE
fi
exec "$here/bin/chromium" "$@"
SH
}

fonts_conf() {
  cat <<'XML'
<?xml version="1.0"?>
<fontconfig>
  <dir>/usr/share/fonts</dir>
  <dir>/usr/local/share/fonts</dir>
  <dir prefix="relative">fonts</dir>
  <cachedir prefix="xdg">fontconfig</cachedir>
</fontconfig>
XML
}

lacking() { LD_LIBRARY_PATH=$made/lib ldd "$made/bin/chromium" | sed -nE 's/^[[:space:]]*([^ ]+) => not found$/\1/p' | sort -u; }

# Of what was unpacked so far, the libraries that the program lacks; no when some are still to come.
keep() {
  local name file before='' now
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

# depends [--recurse] PACKAGE... - libraries that these depend on, directly or not; those of a desktop are loaded only
# where there is one, and libc6 is here: another one would not fit this machine's loader.
depends() {
  apt-cache "${APT_OPTIONS[@]}" --important depends "$@" |
    sed -nE 's/^[ |]+(Pre)?Depends: (lib[a-z0-9][^ ]*|zlib1g)$/\2/p' | grep -vE '^lib(c6|gtk-)' | sort -u
}

# named LIBRARY... - of the package names read, those that are called like one of the libraries: libatk-1.0.so.0 is in
# libatk1.0-0, or libatk1.0-0t64 since time has 64 bits.
named() {
  local package plain library
  while read -r package; do
    plain=${package%t64}
    plain=${plain//[^a-z0-9]/}
    for library in "$@"; do
      library=${library/.so/}
      library=${library,,}
      if [[ $plain == "${library//[^a-z0-9]/}"* ]]; then
        printf '%s\n' "$package"
        break
      fi
    done
  done
}

# Unpacks Chromium, then of what it depends on what is called like a library that is lacking, until there is no more.
# What then still is lacking is looked for in all that it depends on, directly and then not: nothing else tells which
# package has a library, and what is said to be installed may have been left out of an image.
fetch() {
  local seen=' ' levels=' '
  local -a all lacks more level=(chromium)
  rm -rf "$root" "$made"
  apt_unpack "$root" chromium chromium-common || return 1
  [ -f "$root/usr/lib/chromium/chromium" ] || return 1 # elsewhere the package may only say to use a snap
  mkdir -p "$made/lib"
  mv "$root/usr/lib/chromium" "$made/bin"
  find "$made/bin/locales" -type f ! -name 'en-US*' -delete
  if [ -z "$(find -L /usr/share/fonts /usr/local/share/fonts -name '*.[ot]tf' -print -quit 2>/dev/null)" ]; then
    apt_unpack "$root" fonts-dejavu-core && mv "$root/usr/share/fonts" "$made/fonts" || return 1
  fi
  if [ -d "$made/fonts" ] || [ ! -r /etc/fonts/fonts.conf ]; then
    fonts_conf >"$made/fonts.conf"
  fi
  mapfile -t all < <(depends --recurse chromium)
  while ! keep; do
    mapfile -t lacks < <(lacking)
    mapfile -t more < <(printf '%s\n' "${all[@]}" | named "${lacks[@]}" | unseen "$seen")
    if [ "${#more[@]}" = 0 ]; then
      mapfile -t level < <(depends "${level[@]}" | unseen "$levels")
      [ "${#level[@]}" != 0 ] || return 1
      levels+="${level[*]} "
      more=("${level[@]}")
    fi
    seen+="${more[*]} "
    unpack_each "${more[@]}"
  done
  wrapper >"$made/chromium"
  chmod +x "$made/chromium"
  suits "$made/chromium" && shows "$made/chromium"
}

unseen() { # unseen SEEN - of the package names read, those that are not among these
  local package
  while read -r package; do
    case $1 in *" $package "*) ;; *) printf '%s\n' "$package" ;; esac
  done
}

# One at a time only if need be: a package that cannot be had must not cost us the others.
unpack_each() {
  local package
  apt_unpack "$root" "$@" || for package in "$@"; do apt_unpack "$root" "$package" || true; done
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

say "Fetching Chromium for the tests (once; takes about half a minute) ..."
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
    suits "$fetched/chromium" || rm -rf "$fetched"
    mv -T "$made" "$fetched" 2>/dev/null || suits "$fetched/chromium" || none "$fetched cannot be replaced"
    found "$fetched/chromium"
  fi
done

reason=$(complaint)
none "this machine's release has none that runs here${reason:+, or apt refused it: $reason}; $elsewhere"
