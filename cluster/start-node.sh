#!/usr/bin/env bash
# Start Ray on this machine: the head, or a node that joins one.
#   cluster/start-node.sh head ADDRESS            on the first machine; ADDRESS is its own, as the others reach it
#   cluster/start-node.sh join HEAD_ADDRESS       on every other machine
# Needs the same ~/.ray/auth_token (or RAY_AUTH_TOKEN_PATH) on all of them. PORT, default 6379, is the head's.
set -euo pipefail
role=${1:?head or join}
address=${2:?address of the head}
port=${PORT:-6379}
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
if [ ! -s "${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}" ] && [ -z "${RAY_AUTH_TOKEN:-}" ]; then
  echo "no Ray token: put the same one into ~/.ray/auth_token of every node (see cluster/README.md)" >&2
  exit 2
fi
# On a spot market, SPOT=aws, gcp or azure drains this node when the cloud gives notice.
if [ -n "${SPOT:-}" ]; then
  "${PYTHON:-python}" "$(dirname "$0")/spot_notice.py" "$SPOT" drain &
fi
case $role in
  head) exec ray start --block --head --node-ip-address="$address" --port="$port" --include-dashboard=false ;;
  join) exec ray start --block --address="$address:$port" ;;
  *) echo "usage: $0 head|join ADDRESS" >&2; exit 2 ;;
esac
