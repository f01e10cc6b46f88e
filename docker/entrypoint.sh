#!/bin/bash
# Becomes the command it is given, with CANN's environment: as the image's entry point, and as `python` on PATH, for
# pods that have a command of their own and for `kubectl exec`, which both pass an entry point by.
#
# What CANN's image has in its own ENV is not enough: older ones have none, and that of 8.5.0-910b names a folder that
# is not there. ATB's script is left out; it imports torch, and only language models use ATB.
set -euo pipefail

# Without arguments: a script that is sourced sees those of the function.
source_cann() {
  local script=/usr/local/Ascend/ascend-toolkit/set_env.sh
  # An image for CPUs has none.
  if [[ -r $script ]]; then
    # It reads variables that nobody has set, and not all its commands succeed.
    set +eu
    # shellcheck source=/dev/null
    source "$script" >&2
    set -eu
  fi
}

if [[ -z ${PNAS_ENTERED:-} ]]; then
  source_cann
  export PNAS_ENTERED=1
fi
case ${0##*/} in
  python | python3) exec /opt/pnas/bin/python "$@" ;;
  *) exec "$@" ;;
esac
