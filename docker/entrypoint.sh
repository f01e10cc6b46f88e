#!/bin/bash
# Run the given command with CANN's environment. This script is the image's entry point, and also `python` on PATH: a
# pod with its own command, and `kubectl exec`, bypass the entry point.
#
# The ENV of CANN's image is not enough: older images have no ENV, and the ENV of 8.5.0-910b names a missing folder.
# The script of ATB is left out, because it imports torch, and only language models use ATB.
set -euo pipefail

# A function without arguments, because a sourced script sees the arguments of its caller.
source_cann() {
  local script=/usr/local/Ascend/ascend-toolkit/set_env.sh
  # An image for CPUs does not have this script.
  if [[ -r $script ]]; then
    # The script reads unset variables, and some of its commands fail.
    set +eu
    # shellcheck source=/dev/null
    source "$script" >&2
    # The script can leave an empty part at the end, which stands for the working folder: the user's, with any files.
    export PYTHONPATH=${PYTHONPATH%:}
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
