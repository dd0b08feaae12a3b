# shellcheck shell=bash
# Files out of the distribution's own packages, without installing anything. Sourced by the scripts beside it.
#
# apt checks the signatures, as it does for an installation; root is not needed. Everything is kept below the
# directory given, and which mirror is asked is whatever the machine's apt is configured to use.

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
