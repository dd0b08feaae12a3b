#!/usr/bin/env bash
# Finds or fetches the real backends that the story tests talk to, and writes where they are:
#
#   .cache/backends.env   one line NAME=PATH for each of prometheus, promtool, alertmanager, amtool,
#                         victoria-metrics and vmalert that was found; also printed
#   .cache/backends.why   one line saying why not all were found; only there when some are missing
#
# A binary on PATH that is new enough is used where it is. The others are taken out of Debian's packages into
# .cache/backends; nothing is installed. They come from testing or unstable, for stable has no Prometheus 3.
# DEBIAN_MIRROR=URI names a Debian mirror on machines whose apt has none (Ubuntu).
#
# Exit status: 0 all found, 3 some are missing.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=$PWD/.cache
fetched=$cache/backends
scratch=$cache/backends-apt # removed at the end: it is large, and it names the mirror
env_file=$cache/backends.env
why_file=$cache/backends.why

# name | what it must be | its names on PATH or in the package | the package
# A number is the oldest version that will do: Prometheus 3 for its OTLP naming of metrics, which promtool must
# parse, and an Alertmanager whose v2 API is settled. A flag must be in the binary's help: Debian's
# VictoriaMetrics does not tell its version, so it is asked for what the tests need instead.
backends='
prometheus        3.0                                prometheus                             prometheus
promtool          3.0                                promtool                               promtool
alertmanager      0.25                               alertmanager,prometheus-alertmanager   prometheus-alertmanager
amtool            0.25                               amtool                                 prometheus-alertmanager
victoria-metrics  -opentelemetry.usePrometheusNaming victoria-metrics,victoria-metrics-prod victoria-metrics
vmalert           -remoteWrite.url                   vmalert,vmalert-prod                   victoria-metrics
vmagent           -opentelemetry.usePrometheusNaming vmagent,vmagent-prod                   victoria-metrics
'

say() { printf '%s\n' "$*" >&2; }

# suits BINARY REQUIREMENT - also no when it does not run here, e.g. because it wants a newer libc.
suits() {
  local said
  case $2 in
    -*)
      said=$("$1" -help 2>&1 || true)
      [[ $said == *"$2"* ]]
      ;;
    *)
      said=$("$1" --version 2>&1 | grep -oE '[0-9]+\.[0-9]+(\.[0-9]+)?' | head -n1 || true)
      [ -n "$said" ] && [ "$(printf '%s\n' "$said" "$2" | sort -V | head -n1)" = "$2" ]
      ;;
  esac
}

# locate NAMES REQUIREMENT - prints the first binary that suits, on PATH or among those fetched.
locate() {
  local name path
  for name in ${1//,/ }; do
    for path in "$(command -v "$name" || true)" "$fetched/$name"; do
      if [ -x "$path" ] && suits "$path" "$2"; then
        printf '%s\n' "$path"
        return 0
      fi
    done
  done
  return 1
}

found=    # NAME=PATH lines
missing=  # names and requirements
packages= # that hold the missing ones
look() {
  local name requirement names package path
  found='' missing='' packages=''
  while read -r name requirement names package; do
    [ -n "$name" ] || continue
    if path=$(locate "$names" "$requirement"); then
      found+="$name=$path"$'\n'
    else
      missing+="${missing:+, }$name"
      case $requirement in -*) missing+=" with $requirement" ;; *) missing+=" >= $requirement" ;; esac
      case " $packages " in *" $package "*) ;; *) packages+="${packages:+ }$package" ;; esac
    fi
  done <<<"$backends"
}

finish() { # finish [REASON]
  rm -rf "$scratch"
  mkdir -p "$cache"
  printf '%s' "$found" | tee "$env_file"
  if [ -z "$missing" ]; then
    rm -f "$why_file"
    exit 0
  fi
  say "No $missing: $1"
  printf '%s\n' "No $missing: $1" >"$why_file"
  exit 3
}

# --- From Debian's packages -------------------------------------------------------------------------

# Of what was unpacked, only the binaries named above: the packages hold twice as much.
keep() {
  local names name
  mkdir -p "$fetched"
  while read -r _ _ names _; do
    for name in ${names//,/ }; do
      [ ! -f "$scratch/root/usr/bin/$name" ] || mv "$scratch/root/usr/bin/$name" "$fetched/$name"
    done
  done <<<"$backends"
}

look
[ -n "$missing" ] || finish

# shellcheck source=apt.sh
. .ci/apt.sh
apt_usable || finish "this machine has no apt to fetch Debian's packages with; put them on PATH"
debian=$(apt_debian) ||
  finish "apt has no Debian archive here; name one with DEBIAN_MIRROR=URI, or put them on PATH"
key=$(apt_debian_key "$scratch/root") ||
  finish "Debian's signing key is missing; install the package debian-archive-keyring"

say "Fetching the backends for the tests ($packages; the first time takes about a minute) ..."
apt_private_state "$scratch"
errors=$scratch/log
: >"$errors"
for suite in testing unstable; do
  apt_only_suite "$scratch" "$debian" "$suite" "$key" >>"$errors" 2>&1 || true
  # One at a time: a package that this suite lacks must not cost us the others.
  for package in $packages; do
    apt_unpack "$scratch/root" "$package" >>"$errors" 2>&1 || true
  done
  keep
  look
  [ -n "$missing" ] || finish
done
reason=$(apt_complaint "$errors" "$debian")
finish "Debian's testing and unstable have none that runs here${reason:+, or apt refused them: $reason}"
