# shellcheck shell=bash
# Files out of the distribution's own packages, without installing anything. Sourced by the scripts beside it.
#
# apt checks the signatures, as it does for an installation; root is not needed. Everything is kept below the
# directory given, and which mirror is asked is whatever the machine's apt is configured to use. What is new
# comes from Debian's testing or unstable, which any machine with apt and Debian's key can read.

# Retries and time-outs are short because every caller can live with a 'no': it says so and goes on.
APT_OPTIONS=(-qq -o APT::Sandbox::User= -o Acquire::Languages=none -o Acquire::Retries=1
             -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30)

apt_usable() {
  command -v apt-get >/dev/null && command -v apt-cache >/dev/null && command -v dpkg-deb >/dev/null
}

# apt_private_state DIR - later calls use package lists of their own below DIR, not the machine's.
apt_private_state() {
  mkdir -p "$1/lists/partial" "$1/cache/archives/partial"
  APT_OPTIONS+=(-o "Dir::State::Lists=$1/lists" -o "Dir::Cache=$1/cache")
}

# apt_unpack DIR PACKAGE... - downloads the packages and unpacks them below DIR (so DIR/usr/bin, ...).
apt_unpack() {
  local into=$1 debs status=0
  shift
  mkdir -p "$into"
  debs=$(mktemp -d "$into/debs.XXXXXX")
  # A download directory of its own, because apt-get writes into the current one.
  (cd "$debs" && apt-get "${APT_OPTIONS[@]}" download "$@") >&2 || status=1
  local deb
  for deb in "$debs"/*.deb; do
    [ "$status" = 0 ] && { dpkg-deb -x "$deb" "$into" || status=1; }
  done
  rm -rf "$debs"
  return "$status"
}

# --- Debian's testing and unstable, on any machine with apt ------------------------------------------

# Every configured archive as "URI SUITE". --print-uris knows them also while the package lists are empty.
apt_archives() {
  apt-get -o Debug::NoLocking=1 --print-uris update 2>/dev/null |
    sed -nE "s#^'((https?|file|copy):[^']*)/dists/([^']*)/(InRelease|Release)'.*#\1 \3#p"
}

# apt_debian - prints the URI of a Debian archive: DEBIAN_MIRROR, the configured archive with this machine's own
# release, or else one that is called debian; never a security archive, which has no testing or unstable.
apt_debian() {
  local release uri
  # shellcheck disable=SC2015 # printf does not fail
  release=$(. /etc/os-release && [ "${ID:-}" = debian ] && printf '%s' "${VERSION_CODENAME:-}" || true)
  # awk reads to the end, because the commands before it would be failed by a pipe that closes early.
  uri=${DEBIAN_MIRROR:-$(apt_archives | awk -v release="$release" '
    seen || $1 ~ /security/ || $2 ~ /security/ { next }
    (release != "" && $2 == release) || $1 ~ /\/debian\/?$/ { print $1; seen = 1 }')}
  [ -n "$uri" ] && printf '%s\n' "$uri"
}

# apt_debian_key DIR - prints the file with the key that Debian signs with. Ubuntu has it as a package of its own,
# signed by Ubuntu, which is unpacked below DIR if need be.
apt_debian_key() {
  local below file
  for below in "" "$1"; do
    for file in "$below"/usr/share/keyrings/debian-archive-keyring.{gpg,pgp}; do
      [ -r "$file" ] && printf '%s\n' "$file" && return 0
    done
    [ -n "$below" ] || apt_unpack "$1" debian-archive-keyring >/dev/null 2>&1 || return 1
  done
  return 1
}

# apt_only_suite DIR URI SUITE KEY - after apt_private_state DIR: later calls see only this suite, neither the
# machine's sources and pins, nor what is installed.
apt_only_suite() {
  APT_OPTIONS+=(-o "Dir::Etc::SourceList=$1/sources.list" -o Dir::Etc::SourceParts=/dev/null
                -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null
                -o "Dir::State::status=$1/status")
  : >"$1/status" # not /dev/null, which apt-cache show stumbles over
  printf 'deb [signed-by=%s] %s %s main\n' "$4" "$2" "$3" >"$1/sources.list"
  apt-get "${APT_OPTIONS[@]}" update
}

# apt_complaint LOG URI - prints apt's first error or warning in one line, which may be an expired archive, less
# the addresses: a test log is no place for the name of somebody's mirror.
apt_complaint() {
  local said host
  said=$(sed -nE '/^[EW]:/ {
    s#(https?|file|copy):[^ ]*/dists/##g
    s#(https?|file|copy):[^ ]*#(archive)#g
    p; q
  }' "$1")
  host=${2#*://}
  host=${host%%[/:]*}
  [ -z "$host" ] || said=${said//"$host"/the archive}
  printf '%s' "${said#?: }"
}
