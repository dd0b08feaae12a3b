#!/usr/bin/env bash
# Finds or builds the OpenTelemetry Collector that the story tests send through, and writes where it is:
#
#   .cache/collector.env   otelcol=PATH; also printed
#   .cache/collector.why   one line saying why there is none; only there in that case
#
# OTELCOL=PATH names one. Otherwise it is the otelcol or otelcol-contrib on PATH, if it is new enough to load
# grafana/otel-collector.yaml. Otherwise one is built, once, as .cache/otelcol out of Debian's packages, which
# have the Collector as source only; nothing is installed. That takes two to three minutes and 3 GiB below .cache,
# which are free again afterwards. DEBIAN_MIRROR=URI names a Debian mirror on machines whose apt has none (Ubuntu).
#
# Exit status: 0 there is one, 3 there is none.
set -euo pipefail
cd "$(dirname "$0")/.."
config=grafana/otel-collector.yaml
cache=$PWD/.cache
built=$cache/otelcol
scratch=$cache/otelcol-build # removed at the end: it is large, and it names the mirror
env_file=$cache/collector.env
why_file=$cache/collector.why

# The first with an exporter called otlp_http, as in our configuration.
oldest=0.144

say() { printf '%s\n' "$*" >&2; }

loads() { "$1" validate --config="$config" >/dev/null 2>&1; }

clean() {
  # Go makes some of what it keeps read-only.
  [ ! -e "$scratch" ] || { chmod -R u+w "$scratch" && rm -rf "$scratch"; }
}

found() { # found PATH
  mkdir -p "$cache"
  rm -f "$why_file"
  printf 'otelcol=%s\n' "$1" | tee "$env_file"
  exit 0
}

none() { # none REASON
  mkdir -p "$cache"
  rm -f "$env_file"
  say "No OpenTelemetry Collector: $1"
  printf '%s\n' "No OpenTelemetry Collector: $1" >"$why_file"
  exit 3
}

# --- Is there one already? --------------------------------------------------------------------------

if [ -n "${OTELCOL:-}" ]; then
  path=$(realpath -e "$(command -v "$OTELCOL")" 2>/dev/null) || none "OTELCOL=$OTELCOL is not a program"
  loads "$path" || none "OTELCOL=$OTELCOL does not load $config; try: $OTELCOL validate --config=$config"
  found "$path"
fi

for name in otelcol otelcol-contrib; do
  path=$(command -v "$name" || true)
  [ -z "$path" ] || ! loads "$path" || found "$path"
done

# The components of our own build: those of the configuration and, to try things out, debug and nop.
program() {
  cat <<'GO'
package main

import (
	"log"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/confmap/provider/envprovider"
	"go.opentelemetry.io/collector/confmap/provider/fileprovider"
	"go.opentelemetry.io/collector/confmap/provider/yamlprovider"
	"go.opentelemetry.io/collector/exporter"
	"go.opentelemetry.io/collector/exporter/debugexporter"
	"go.opentelemetry.io/collector/exporter/nopexporter"
	"go.opentelemetry.io/collector/exporter/otlpexporter"
	"go.opentelemetry.io/collector/exporter/otlphttpexporter"
	"go.opentelemetry.io/collector/otelcol"
	"go.opentelemetry.io/collector/processor"
	"go.opentelemetry.io/collector/processor/batchprocessor"
	"go.opentelemetry.io/collector/processor/memorylimiterprocessor"
	"go.opentelemetry.io/collector/receiver"
	"go.opentelemetry.io/collector/receiver/nopreceiver"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/service/telemetry/otelconftelemetry"
)

var version = "unknown"

func components() (all otelcol.Factories, err error) {
	all.Telemetry = otelconftelemetry.NewFactory()
	all.Receivers, err = otelcol.MakeFactoryMap[receiver.Factory](
		otlpreceiver.NewFactory(), nopreceiver.NewFactory())
	if err != nil {
		return
	}
	all.Processors, err = otelcol.MakeFactoryMap[processor.Factory](
		batchprocessor.NewFactory(), memorylimiterprocessor.NewFactory())
	if err != nil {
		return
	}
	all.Exporters, err = otelcol.MakeFactoryMap[exporter.Factory](
		otlphttpexporter.NewFactory(), otlpexporter.NewFactory(), debugexporter.NewFactory(), nopexporter.NewFactory())
	return
}

func main() {
	settings := otelcol.CollectorSettings{
		BuildInfo: component.BuildInfo{
			Command:     "otelcol",
			Description: "OpenTelemetry Collector core, built from Debian's packages",
			Version:     version,
		},
		Factories: components,
		ConfigProviderSettings: otelcol.ConfigProviderSettings{ResolverSettings: confmap.ResolverSettings{
			ProviderFactories: []confmap.ProviderFactory{
				envprovider.NewFactory(), fileprovider.NewFactory(), yamlprovider.NewFactory()},
			DefaultScheme: "env",
		}},
	}
	if err := otelcol.NewCommand(settings).Execute(); err != nil {
		log.Fatal(err)
	}
}
GO
}

# Our own build is not asked whether it loads the configuration: it was made for it, so if it does not, then the
# configuration is wrong. A test says so; building once more would not help.
ours() { "$built" --version >/dev/null 2>&1 && program | cmp -s - "$built.go"; }

! ours || found "$built"

# --- From Debian's packages -------------------------------------------------------------------------

# shellcheck source=apt.sh
. .ci/apt.sh
elsewhere="put otelcol $oldest or newer on PATH, or name it with OTELCOL=PATH"
apt_usable || none "this machine has no apt to fetch Debian's packages with; $elsewhere"
debian=$(apt_debian) || none "apt has no Debian archive here; name one with DEBIAN_MIRROR=URI, or $elsewhere"

# Two builds in one directory would spoil each other, and the second has nothing left to do.
mkdir -p "$cache"
exec {lock}>"$cache/otelcol.lock"
flock -n "$lock" || { say "Waiting for another build of the OpenTelemetry Collector ..." && flock "$lock"; }
! ours || found "$built"

# What a signal interrupts ends first, so that nothing is written any more into what is being removed.
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
clean
rm -f "$env_file"
key=$(apt_debian_key "$scratch/root") ||
  none "Debian's signing key is missing; install the package debian-archive-keyring, or $elsewhere"

say "Building the OpenTelemetry Collector for the tests (once; takes two to three minutes, and 3 GiB meanwhile) ..."
apt_private_state "$scratch"
log=$scratch/log
: >"$log"
library=golang-opentelemetry-collector-dev
version=
for suite in testing unstable; do
  apt_only_suite "$scratch" "$debian" "$suite" "$key" >>"$log" 2>&1 || continue
  candidate=$(apt-cache "${APT_OPTIONS[@]}" show --no-all-versions "$library" 2>>"$log" |
    sed -n 's/^Version: //p' || true)
  if [ -n "$candidate" ] && dpkg --compare-versions "$candidate" ge "$oldest"; then
    version=${candidate%-*}
    break
  fi
done
complaint=$(apt_complaint "$log" "$debian")
[ -n "$version" ] ||
  none "Debian's testing and unstable have none >= $oldest${complaint:+, or apt refused it: $complaint}"

# Of all that apt would install, Go and the libraries in Go are enough: without cgo no C library is needed, and
# Debian's Go is linked statically, so it runs on older releases too.
apt-get "${APT_OPTIONS[@]}" --simulate --no-install-recommends install golang-go "$library" 2>>"$log" |
  sed -nE 's/^Inst (golang-[^ ]+) .*/\1/p' >"$scratch/packages" || true
mapfile -t packages <"$scratch/packages"
if [ "${#packages[@]}" = 0 ] || ! apt_unpack "$scratch/root" "${packages[@]}" >>"$log" 2>&1; then
  complaint=$(apt_complaint "$log" "$debian")
  none "its packages in Debian's $suite could not be had${complaint:+: $complaint}"
fi

# The libraries lie in a GOPATH, which is how Debian has them; go cannot and need not load anything.
source=$scratch/gopath/src/otelcol
mkdir -p "$source"
program >"$source/main.go"
go_root=$(printf '%s\n' "$scratch"/root/usr/lib/go-[0-9]* | sort -V | tail -n1)
if ! (cd "$source" && env -u GOFLAGS HOME="$scratch" GOROOT="$go_root" GOCACHE="$scratch/gocache" \
  GOPATH="$scratch/gopath:$scratch/root/usr/share/gocode" GO111MODULE=off GOTOOLCHAIN=local GOENV=off GOPROXY=off \
  CGO_ENABLED=0 "$go_root/bin/go" build -trimpath -gcflags=all=-dwarf=false \
  -ldflags "-s -w -X main.version=$version" -o "$scratch/otelcol" . >"$log" 2>&1); then
  tail -n 20 "$log" >&2
  none "it could not be built of Debian's $version: $(tail -n1 "$log")"
fi
"$scratch/otelcol" --version >/dev/null 2>&1 || none "what was built of Debian's $version does not run here"

# Under its name only when it is whole, and together with what it was made of.
program >"$built.go"
mv "$scratch/otelcol" "$built"
found "$built"
